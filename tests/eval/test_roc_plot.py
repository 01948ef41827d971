"""eval/roc_plot.py: a picture that a decoder opens and that depends on its curves, and names refused early."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from eval.metrics import roc_summary
from eval.roc_plot import check_plot_path, write_roc_plot
from recognition.errors import DataError, SettingsError


def summary(distance):
    generator = np.random.default_rng(0)
    same = generator.random(400) < 0.3
    return roc_summary(generator.normal(size=400) + distance * same, same)


def test_curves_are_in_the_picture(tmp_path):
    good, bad = summary(9), summary(0.5)  # the good one refuses nobody: nothing of it on a logarithmic axis
    pictures = []
    for number, curves in enumerate(({"a": bad}, {"a": bad, "b": good}, {"a": good})):
        path = tmp_path / "new folder" / f"{number}.png"
        write_roc_plot(path, curves, "a set")
        pictures.append(cv2.imread(str(path)))
        assert pictures[-1].shape == (690, 1650, 3)
    assert all((one != two).any() for one, two in pairwise(pictures))
    write_roc_plot(tmp_path / "roc.svg", {"a": bad}, "my set")
    assert "<svg" in (tmp_path / "roc.svg").read_text()


def test_names_and_places_that_cannot_be(tmp_path):
    with pytest.raises(SettingsError, match=r"roc.txt: expected a name ending in .png, .svg, .pdf"):
        check_plot_path("roc.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_roc_plot(tmp_path / "file" / "roc.png", {"a": summary(1)}, "")
