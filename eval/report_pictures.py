"""Contact sheets: pictures read from the sets where they lie, as small JPEGs inside the page.

Owns the way from "pair 17 of that set" to pictures. Sets are read by the loaders that evaluation uses, so a set is
trusted as little as there. Where a set lies is what the inputs say, so a page made from somebody else's JSON shows
pictures of this machine that it names: `sources` says which, and `show=False` reads none. What cannot be shown is a
sentence that says why, never an error: a report may be made far from the data. Proven by tests/eval/test_report.py.
"""

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from eval.ijb import crop_face, load_ijb
from eval.report_page import contact_sheet, heading, paragraph
from eval.safe_pickle import load_pairs
from eval.verification import decode_face, reduce_to, similarity
from recognition.data.dataset import open_dataset
from recognition.data.image_file import ImageError
from recognition.errors import DataError, SettingsError

JPEG_QUALITY = 82
# Of a curve's "hardest": title, meaning, and whether the pairs are of the same person.
KINDS = {
    "false_match": ("Hardest false matches", "different people, most alike", False),
    "false_non_match": ("Hardest false non-matches", "the same person, least alike", True),
}

# From a pair and its score to its pictures, whether they are of the same person, its caption and its cosine.
Look = Callable[[Sequence[float]], tuple[list[np.ndarray], bool, str, float]]


def data_uri(image: np.ndarray) -> str:
    """A picture, RGB uint8 [h, w, 3], as the address of itself."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    good, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)
    assert good
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


class Pictures:
    """The sets of a report, each opened once; none with `show` False."""

    def __init__(self, show: bool = True) -> None:
        self._show = show
        self._opened: dict[tuple[str, str], Any] = {}

    @property
    def sources(self) -> list[str]:
        """The paths of the sets that were opened."""
        return sorted({path for (path, _), found in self._opened.items() if not isinstance(found, Exception)})

    def _require(self, path: str) -> None:
        if not self._show:
            raise DataError("--no-pictures leaves them out")
        if not Path(path).exists():
            raise DataError(f"the set is not at {path}")

    def _open(self, path: str, load: Callable[[str], Any]) -> Any:
        key = path, load.__name__
        if key not in self._opened:
            try:
                self._opened[key] = load(path)
            except (DataError, SettingsError) as error:
                self._opened[key] = error
        if isinstance(self._opened[key], Exception):
            raise self._opened[key]
        return self._opened[key]

    def of_set(self, path: str, number: int, degrade: int | None = None) -> np.ndarray:
        """Picture `number` of a .bin file or RecordIO set; DataError when there is none, or no set."""
        self._require(path)
        try:
            if number < 0:
                raise IndexError(f"no such picture: {number}")
            if path.endswith(".bin"):
                image = decode_face(self._open(path, load_pairs)[0][number])
            else:
                image = decode_face(self._open(path, open_dataset).encoded(number))
            return reduce_to(image[None], degrade)[0] if degrade else image
        except (ImageError, IndexError, SettingsError) as error:
            raise DataError(f"{path}: image {number}: {error}") from None

    def verification_sheets(self, curve: dict[str, Any]) -> str:
        """Contact sheets of a verification set's hardest pairs, as the model saw them: [pair, score] each."""

        def look(found: Sequence[float]) -> tuple[list[np.ndarray], bool, str, float]:
            pair = int(found[0])
            images = [self.of_set(curve["path"], 2 * pair + side, curve["degrade"]) for side in (0, 1)]
            cosine = float(similarity(np.asarray(-found[-1])))
            return images, bool(self._open(curve["path"], load_pairs)[1][pair]), f"pair {pair}", cosine

        if curve["path"] is None:
            return _unsaid(curve)
        return _sheets(curve["hardest"], look)

    def ijb_sheets(self, folder: str | None, curve: dict[str, Any]) -> str:
        """Contact sheets of an IJB folder's hardest pairs, the first face of each template: [id, id, score] each."""
        if folder is None:
            return _unsaid(curve)

        def look(found: Sequence[float]) -> tuple[list[np.ndarray], bool, str, float]:
            self._require(folder)
            ijb = self._open(folder, load_ijb)
            sides = [int(np.searchsorted(ijb.template_ids, int(template))) for template in found[:2]]
            names = [int(template) for template in found[:2]]
            if any(side >= len(ijb.template_ids) or ijb.template_ids[side] != name
                   for side, name in zip(sides, names, strict=True)):
                raise DataError(f"{folder}: no templates {names[0]} and {names[1]}")
            faces = [int(np.flatnonzero(ijb.template == side)[0]) for side in sides]
            there = np.flatnonzero((ijb.first == sides[0]) & (ijb.second == sides[1]))
            if not len(there):
                raise DataError(f"{folder}: templates {names[0]} and {names[1]} are no pair")
            caption = f"templates {names[0]}, {names[1]}"
            return [crop_face(ijb, face) for face in faces], bool(ijb.issame[there[0]]), caption, found[-1]

        return _sheets(curve["hardest"], look)


def _unsaid(curve: dict[str, Any]) -> str:
    if not any(curve["hardest"].values()):
        return ""
    return paragraph("No pictures of the hardest pairs: where the set lies is not said.", muted=True)


def _sheets(hardest: dict[str, list[list[float]]], look: Look) -> str:
    parts = []
    for kind, (title, meaning, same) in KINDS.items():
        items = []
        try:
            for found in hardest.get(kind, ()):
                images, issame, caption, cosine = look(found)
                if issame != same:
                    raise DataError("the set there is another one: its labels do not fit these pairs")
                items.append(([data_uri(image) for image in images], f"{caption}: {meaning}",
                              f"{caption}, cosine {cosine:.3f}"))
        except (DataError, SettingsError, IndexError) as error:
            parts.append(paragraph(f"No pictures of the {title.lower()}: {error}.", muted=True))
            continue
        if items:
            parts += [heading(f"{title}: {meaning}"), contact_sheet(items)]
    return "".join(parts)
