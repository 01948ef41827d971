"""inspect: the counts behind the histogram, and its pictures."""

import json

import cv2
import numpy as np
import pytest

from recognition.errors import SettingsError
from tests.tools.rec_runs import run
from tools.records.histogram import images_histogram


def test_classes_that_double():
    counts = [1, 1, 2, 3, 4, 4, 5, 8, 9, 16, 17, 0, 1024, 1025]
    found = images_histogram(np.repeat(np.arange(len(counts)), counts))
    assert [(bar["from"], bar["to"], bar["identities"]) for bar in found] == [
        (1, 1, 2), (2, 2, 1), (3, 4, 3), (5, 8, 2), (9, 16, 2), (17, 32, 1), (33, 64, 0), (65, 128, 0), (129, 256, 0),
        (257, 512, 0), (513, 1024, 1), (1025, 2048, 1)]
    assert sum(bar["images"] for bar in found) == sum(counts)
    assert images_histogram(np.array([3, 3, 3]))[0] == {"from": 3, "to": 4, "identities": 1, "images": 3}


def test_pictures_of_a_set(small_set, tmp_path, capsys):
    sheet, histogram = tmp_path / "sheet.png", tmp_path / "histogram.png"
    assert run("inspect", small_set, "--sheet", sheet, "--histogram", histogram, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images_histogram"] == [{"from": 5, "to": 8, "identities": 12, "images": 96}]
    first = cv2.imread(str(histogram))
    assert first is not None
    assert (first == (0xC9, 0x63, 0x25)).all(axis=2).sum() > 1000  # the bar of identities is there, in its colour
    assert (first == (0x5F, 0x7B, 0x0F)).all(axis=2).sum() > 1000
    with pytest.raises(SettingsError, match=r"sheet\.png: exists; --replace"):
        run("inspect", small_set, "--sheet", sheet)
    content = histogram.read_bytes()
    assert run("inspect", small_set, "--histogram", histogram, "--replace") == 0
    assert histogram.read_bytes() == content
    with pytest.raises(SettingsError, match=r"sheet\.jpg: expected the name of a \.png file"):
        run("inspect", small_set, "--sheet", tmp_path / "sheet.jpg")
