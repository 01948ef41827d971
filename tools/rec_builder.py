"""Build, verify and inspect RecordIO training sets.

    python tools/rec_builder.py build SOURCE OUT   a folder per identity -> train.rec, .idx, .lst, property, labels.tsv
    python tools/rec_builder.py verify SET         framing, index, labels, every image; status 3 if anything is wrong
    python tools/rec_builder.py inspect SET        what is in it, in tables

A SET is a folder with train.rec (or several shards), or a .rec file. Each verb prints JSON instead with `--json`, or
writes it with `--json FILE`. Proven by tests/tools/test_rec_builder.py.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
from prettytable import PrettyTable

from recognition.data.dataset import open_dataset
from recognition.errors import DataError, run_command
from tools.records import build, summary, verify


def main(arguments: Sequence[str]) -> int:
    """Run one verb; 0, or 3 when `verify` found a problem."""
    options = _parser().parse_args(arguments)
    status: int = options.verb(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rec_builder.py", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("build", help="write a set from a folder per identity")
    verb.set_defaults(verb=_build)
    verb.add_argument("source", type=Path, metavar="SOURCE", help="folder with one folder of images per identity")
    verb.add_argument("out", type=Path, metavar="OUT", help="folder of the set; an earlier build there is replaced")
    verb.add_argument("--shards", type=int, default=1, metavar="N", help="write train_00.rec … instead of train.rec")
    verb.add_argument("--resize", type=_side, metavar="SIDE", help="give every image SIDE × SIDE pixels (no alignment)")
    verb.add_argument("--quality", type=_quality, metavar="1-100", help="encode every image as JPEG of this quality; "
                      f"without it JPEG files are copied and others encoded at {build.DEFAULT_QUALITY}")
    verb.add_argument("--max-unreadable", type=_share, metavar="SHARE", help="more unreadable images than this share "
                      f"stop the build with status 3 (default: {build.DEFAULT_UNREADABLE_SHARE:g}, but never for up to "
                      f"{build.DEFAULT_UNREADABLE_IMAGES} images)")
    _add_common(verb)

    verb = verbs.add_parser("verify", help="check framing, index, labels and every image")
    verb.set_defaults(verb=_verify)
    verb.add_argument("set", type=Path, metavar="SET", help="folder of the set, or a .rec file")
    _add_common(verb)

    verb = verbs.add_parser("inspect", help="say what is in a set")
    verb.set_defaults(verb=_inspect)
    verb.add_argument("set", type=Path, metavar="SET", help="folder of the set, or a .rec file")
    verb.add_argument("--sheet", type=Path, metavar="PNG", help="write a contact sheet of identities")
    _add_common(verb, threads=False)
    return parser


def _add_common(verb: argparse.ArgumentParser, threads: bool = True) -> None:
    if threads:
        verb.add_argument("--threads", type=_threads, metavar="N", help="threads (default: one a core)")
    verb.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON instead of tables, or to FILE")


def _side(text: str) -> int:
    if not 1 <= (side := int(text)) <= 4096:
        raise argparse.ArgumentTypeError(f"{text}; expected 1 to 4096")
    return side


def _quality(text: str) -> int:
    if not 1 <= (quality := int(text)) <= 100:
        raise argparse.ArgumentTypeError(f"{text}; expected 1 to 100")
    return quality


def _threads(text: str) -> int:
    if not 1 <= (threads := int(text)) <= 1024:
        raise argparse.ArgumentTypeError(f"{text}; expected 1 to 1024")
    return threads


def _share(text: str) -> float:
    if not 0 <= (share := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text}; expected 0 to 1")
    return share


def _build(options: argparse.Namespace) -> int:
    settings = build.BuildSettings(
        options.shards, options.resize, options.quality, options.max_unreadable, options.threads)
    report = build.build(options.source, options.out, settings)
    table = PrettyTable(["set", report["set"]], align="l")
    for name in ("images", "identities", "height", "width", "shards", "bytes"):
        table.add_row([name, f"{report[name]:,}"])
    table.add_row(["unreadable images, left out", len(report["unreadable"])])
    table.add_row(["identities left out with them", report["identities_without_readable_image"]])
    table.add_row(["other files, not looked at", len(report["ignored"])])
    _report(report, str(table), options.json)
    return 0


def _verify(options: argparse.Namespace) -> int:
    findings = verify.verify(options.set, options.threads)
    lines = [verify.sentence(problem) for problem in findings.problems]
    lines += [f"warning: {verify.sentence(warning)}" for warning in findings.warnings]
    lines.append(f"{options.set}: {findings.records:,} records, {findings.images:,} images, "
                 f"{len(findings.problems)} problems, {len(findings.warnings)} warnings")
    _report({"root": str(options.set), **vars(findings)}, "\n".join(lines), options.json)
    return DataError.status if findings.problems else 0


def _inspect(options: argparse.Namespace) -> int:
    dataset = open_dataset(options.set)
    facts = summary.summarise(dataset)
    if options.sheet:
        sheet = cv2.cvtColor(summary.contact_sheet(dataset), cv2.COLOR_RGB2BGR)
        if options.sheet.suffix.lower() != ".png" or not cv2.imwrite(str(options.sheet), sheet):
            raise DataError(f"{options.sheet}: could not be written; expected the name of a .png file in a folder")
        facts["sheet"] = str(options.sheet)
    _report(facts, summary.tables(facts), options.json)
    return 0


def _report(facts: dict[str, Any], text: str, target: str | None) -> None:
    """Print the text, or the facts as JSON; a file gets the JSON beside the printed text."""
    if target == "-":
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    print(text)
    if target:
        Path(target).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
