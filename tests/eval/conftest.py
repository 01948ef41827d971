"""Shared by the tests of IJB: a small folder in its layout, and a cheap network."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognition.data.align import TEMPLATE

PROJECTION = np.random.default_rng(0).normal(size=(14 * 14 * 3, 16)) / 100
GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}


def _embed(images: np.ndarray) -> np.ndarray:
    coarse = images.reshape(len(images), 14, 8, 14, 8, 3).mean(axis=(2, 4)).reshape(len(images), -1)
    return ((coarse - 127.5) @ PROJECTION).astype(np.float32)


@pytest.fixture(scope="session")
def cheap_network() -> Callable[[np.ndarray], np.ndarray]:
    """Coarse pixels times a matrix, no friend of mirrors: uint8 [n, 112, 112, 3] → float32 [n, 16]."""
    return _embed


@pytest.fixture(scope="session")
def make_ijb() -> Callable[..., Path]:
    """`make_ijb(folder, prefix="ijbc", seed=0)` writes a folder and returns it, see `_make_ijb`."""
    return _make_ijb


def _make_ijb(folder: Path, prefix: str = "ijbc", seed: int = 0) -> Path:
    """18 templates of 6 people, 1 to 6 faces each, in unordered lists; every pair of templates; two galleries.

    The first template of a person is in a gallery (of two people each; two people are in none), the others are probes.
    """
    generator = np.random.default_rng(seed)
    (folder / "loose_crop").mkdir(parents=True, exist_ok=True)
    (folder / "meta").mkdir(exist_ok=True)
    faces = []
    for template in range(18):
        person = np.random.default_rng(100 + template % 6).integers(0, 256, (6, 6, 3))
        for _ in range(generator.integers(1, 7)):
            face = np.clip(person + generator.normal(0, 150, person.shape), 0, 255).astype(np.uint8)
            image = cv2.resize(face, (160, 150), interpolation=cv2.INTER_CUBIC)
            name = f"{len(faces) + 1}.png"
            cv2.imwrite(str(folder / "loose_crop" / name), image)
            points = TEMPLATE * generator.uniform(0.9, 1.2) + generator.normal(0, 2, (5, 2)) + 15
            faces.append((name, 700 + 13 * template, generator.integers(1, 4), points, generator.uniform(0.5, 1)))
    faces = [faces[i] for i in generator.permutation(len(faces))]
    pairs = [(a, b) for a in range(18) for b in range(a)]
    meta = folder / "meta"
    write_lines(meta / f"{prefix}_face_tid_mid.txt", [f"{n} {t} {m}" for n, t, m, _, _ in faces])
    write_lines(
        meta / f"{prefix}_name_5pts_score.txt",
        [f"{n} {' '.join(f'{v:.3f}' for v in p.flat)} {s:.3f}" for n, _, _, p, s in faces],
    )
    write_lines(
        meta / f"{prefix}_template_pair_label.txt",
        [f"{700 + 13 * pairs[i][0]} {700 + 13 * pairs[i][1]} {int(pairs[i][0] % 6 == pairs[i][1] % 6)}"
         for i in generator.permutation(len(pairs))],
    )  # fmt: skip
    one, two = GALLERIES[prefix]
    lists = {f"gallery_{one}": [0, 1], f"gallery_{two}": [2, 3], "probe_mixed": range(6, 18)}
    for name, templates in lists.items():
        rows = [f"{700 + 13 * template},{40 + template % 6}" for template in generator.permutation(list(templates))]
        write_lines(meta / f"{prefix}_1N_{name}.csv", ["TEMPLATE_ID,SUBJECT_ID", *rows])
    return folder


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
