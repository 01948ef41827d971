"""docs/tutorial.md, run as written: a clone of the checkout, a folder of pictures, and every command of the page."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.demo_faces.crew import draw
from tools.demo_faces.picture import Request
from tools.demo_faces.scene import Variation

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "tutorial.md"


def commands() -> list[str]:
    """The blocks of the page that are to be run, in order."""
    return re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)


def copy_checkout(place: Path) -> Path:
    """What a clone would hold: the files that git knows, or does not ignore, as they are now."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    return place


def draw_pictures(folder: Path, people: int, each: int) -> None:
    """A folder a person, as a user brings it."""
    wanted = [Request("train", 5000 + person, number, "recognisable") for person in range(people)
              for number in range(each)]
    for picture in draw(7, Variation(), wanted, os.cpu_count() or 1):
        place = folder / f"person_{picture.request.identity - 5000:03d}" / f"{picture.request.number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture.jpeg)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_the_tutorial_runs_as_written(tmp_path):
    checkout = copy_checkout(tmp_path / "checkout")
    draw_pictures(checkout / "my_pictures", people=100, each=6)
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "CUDA_VISIBLE_DEVICES": "",
                   "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    blocks = commands()
    assert len(blocks) >= 6
    for block in blocks:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=checkout, env=environment, text=True,
                              capture_output=True, check=False)
        print(block, done.stdout, done.stderr, sep="\n")
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    for left in ("runs/first/report.html", "runs/mine/model.onnx", "build/roc.png", "build/first_int8.onnx",
                 "build/embeddings.parquet"):
        assert (checkout / left).stat().st_size > 0, left
