"""Shared by the tests of tools/rec_builder.py: running a verb, and pictures to build from."""

import json
from pathlib import Path

import cv2
import numpy as np

from tools import rec_builder


def run(*arguments):
    """The command's exit status."""
    return rec_builder.main([str(argument) for argument in arguments])


def facts(capsys, *arguments, status=0):
    """What the command prints as JSON, once its exit status is the expected one."""
    capsys.readouterr()
    assert run(*arguments, "--json") == status
    return json.loads(capsys.readouterr().out)


def picture(number, side):
    """A smooth random picture, uint8 [side, side, 3], the same for the same number."""
    generator = np.random.default_rng(number)
    return cv2.resize(generator.integers(0, 256, (4, 4, 3), np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)


def write_source(folder: Path, side: int) -> Path:
    """Three identities: 3, 2 and 2 pictures, one of them PNG, one greyscale, and things to leave aside."""
    files = ["b/1.jpg", "b/2.JPG", "b/3.png", "a/x.jpeg", "a/y.jpg", "ça va/1.jpg", "ça va/2.jpg"]
    for number, file in enumerate(files):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        image = picture(number, side)
        ok, encoded = cv2.imencode(path.suffix.lower(), image[..., 0] if file == "a/y.jpg" else image)
        assert ok
        path.write_bytes(encoded.tobytes())
    (folder / "README.txt").write_text("about")
    (folder / "a" / "Thumbs.db").write_text("x")
    (folder / "a" / ".DS_Store").write_text("x")
    return folder
