"""Make the demo's data: drawn faces as a training set, verification sets and an IJB-shaped folder.

    python tools/make_demo_data.py OUT [--identities N] [--images-per-identity K] [--seed S] [--workers W]
    python tools/make_demo_data.py --sheet PNG          a contact sheet: a row a person, best pictures first

OUT gets train.rec, train.idx, train.lst, property and quality.csv; demo.bin (recognisable pairs) and
demo_degraded.bin (badly degraded pairs), each with NAME_quality.csv; ijb/ with loose_crop/, meta/ and quality.csv; and
demo.json, what it was made from, written last. No person is in two of the sets. Every picture is a pure function of
the seed, the person and the picture's number: the same bytes however many processes draw. docs/demo_data.md tells how
hard the task is. Proven by tests/tools/test_make_demo_data.py.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recognition.errors import SettingsError, run_command
from tools.demo_faces import sets
from tools.demo_faces.crew import draw
from tools.demo_faces.picture import Picture, Request
from tools.demo_faces.scene import Variation

VERSION = 1  # of the drawing: raised whenever the same settings give other bytes
MADE_FROM = "demo.json"
SHEET_ROWS, SHEET_COLUMNS = 8, 10


@dataclass(frozen=True)
class DemoSettings:
    """What the demo's data is made of."""

    seed: int = 1
    identities: int = 2000
    images_per_identity: int = 10
    verification_identities: int = 400
    verification_pairs: int = 2000
    degraded_identities: int = 200
    degraded_pairs: int = 1000
    ijb_identities: int = 60
    variation: Variation = field(default_factory=Variation)

    def __post_init__(self) -> None:
        for name in ("identities", "images_per_identity", "ijb_identities"):
            if getattr(self, name) < 2:
                raise SettingsError(f"{name} = {getattr(self, name)}; expected at least 2")
        if self.seed < 0:
            raise SettingsError(f"seed = {self.seed}; expected a whole number from 0")


def make_demo_data(out: Path, settings: DemoSettings | None = None, workers: int | None = None) -> bool:
    """Make the data in `out`; False, at once, where it is there already with the same settings.

    Work goes on in a folder beside `out` that takes its name when complete. Data of other settings is replaced; a
    folder that holds anything else is left alone (SettingsError).
    """
    out, settings = Path(out), settings or DemoSettings()
    made_from = json.dumps({"version": VERSION, **asdict(settings)}, indent=1) + "\n"
    if _is_made(out, made_from):
        return False
    if out.exists() and not (out / MADE_FROM).exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out}: not demo data ({MADE_FROM} is missing) and not empty; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        print(f"drawing {settings.identities} people and their pairs into {out}", flush=True)
        _make_sets(work, settings, workers or os.cpu_count() or 1)
        (work / MADE_FROM).write_text(made_from)
        work.chmod(0o755)  # mkdtemp's is the owner's alone
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    except OSError:
        if not _is_made(out, made_from):  # else another process made the same meanwhile
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def _is_made(out: Path, made_from: str) -> bool:
    try:
        return (out / MADE_FROM).read_text() == made_from
    except (OSError, UnicodeDecodeError):
        return False


def _make_sets(folder: Path, settings: DemoSettings, workers: int) -> None:
    seed = settings.seed
    pairs = {
        "demo": ("verification", "recognisable", settings.verification_identities, settings.verification_pairs),
        "demo_degraded": ("degraded", "degraded", settings.degraded_identities, settings.degraded_pairs),
    }
    pair_requests = {name: sets.pair_requests(*what, seed=seed) for name, what in pairs.items()}
    plans = sets.plan_templates(settings.ijb_identities, seed)
    images = settings.identities * settings.images_per_identity

    def pictures(requests: Iterable[Request], count: int, name: str) -> Iterator[Picture]:
        drawn = draw(seed, settings.variation, requests, workers)
        return iter(tqdm(drawn, desc=name, total=count, unit=" pictures", disable=None))

    for name, requests in pair_requests.items():
        sets.write_pairs(folder / f"{name}.bin", pictures(requests, len(requests), name))
    loose = sets.template_requests(plans)
    sets.write_ijb(folder / "ijb", pictures(loose, len(loose), "ijb"), plans, seed)
    training = sets.training_requests(settings.identities, settings.images_per_identity)
    sets.write_training(folder, pictures(training, images, "train"), settings.identities)


def contact_sheet(settings: DemoSettings, rows: int = SHEET_ROWS, columns: int = SHEET_COLUMNS) -> np.ndarray:
    """Pictures uint8 [rows · 112, columns · 112, 3] BGR: a row a training identity, best quality first."""
    strips = []
    for identity in range(rows):
        requests = [Request("train", identity, number, "all") for number in range(columns)]
        pictures = sorted(draw(settings.seed, settings.variation, requests, 1), key=lambda picture: -picture.quality)
        images = [cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR) for picture in pictures]
        strips.append(np.concatenate(np.array(images), axis=1))
    return np.vstack(strips)


def main(arguments: Sequence[str]) -> int | None:
    """Read the command line and make what it asks for."""
    defaults = DemoSettings()
    parser = argparse.ArgumentParser(prog="make_demo_data.py", description="Make the demo's data: drawn faces.")
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--identities", type=int, default=defaults.identities, help="people in the training set")
    parser.add_argument("--images-per-identity", type=int, default=defaults.images_per_identity)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write a contact sheet (alone or beside OUT)")
    given = parser.parse_args(arguments)
    if given.out is None and given.sheet is None:
        parser.error("expected OUT or --sheet PNG")
    settings = DemoSettings(
        seed=given.seed, identities=given.identities, images_per_identity=given.images_per_identity
    )
    if given.sheet is not None:
        given.sheet.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(given.sheet), contact_sheet(settings)):
            raise SettingsError(f"{given.sheet}: cannot be written as a picture; expected a name ending in .png")
    if given.out is not None:
        made = make_demo_data(given.out, settings, given.workers)
        images = settings.identities * settings.images_per_identity
        print(f"{given.out}: {'made' if made else 'already holds'} {images} pictures of {settings.identities} people")
    return 0


if __name__ == "__main__":
    run_command(main)
