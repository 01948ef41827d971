"""eval/norm_quality.py: what a model's file says of quality, and what is made of a norm."""

import numpy as np
import pytest

from eval.norm_quality import NormQuality, quality_in
from recognition.errors import CheckpointError


def test_numbers_of_a_model_file_and_text_of_an_onnx_file():
    wanted = NormQuality(20.0, 4.0, -2.0)
    assert quality_in({"step": 3, "quality_mean": 20, "quality_std": 4.0, "quality_threshold": -2.0}, "m") == wanted
    assert quality_in({"quality_mean": "20.0", "quality_std": "4", "quality_threshold": "-2"}, "m") == wanted
    norms = {"mean": 20.0, "deviation": 4.0, "tau": 2.0, "of": "momentum"}
    assert quality_in({"run": "a", "norms": norms}, "m") == wanted
    assert quality_in({"run": "a", "norms": None}, "m") is quality_in({"run": "a", "norms": {"mean": 3}}, "m") is None
    unit = {"quality_mean": "20.0", "quality_std": "4", "quality_threshold": "-2", "embedding": "unit length"}
    assert quality_in(unit, "m") is None
    assert quality_in({**unit, "embedding": "raw"}, "m") == wanted
    assert quality_in({"run": "a", "step": 3}, "m") is None


def test_z_and_what_is_recognizable():
    quality = NormQuality(20.0, 4.0, -2.0)
    norm = np.array([20, 24, 12, 11.99], np.float32)
    np.testing.assert_allclose(quality.z(norm), [0, 1, -2, -2.0025], rtol=1e-5)
    assert quality.z(norm).dtype == np.float32
    assert quality.recognizable(norm).tolist() == [True, True, True, False]


@pytest.mark.parametrize(("info", "reason"), [
    ({"quality_mean": 1.0, "quality_std": 1.0}, "m: its quality: lacks 'quality_threshold'"),
    ({"quality_mean": "much", "quality_std": 1.0, "quality_threshold": 0}, "m: its quality: Expecting value"),
    ({"quality_mean": 1.0, "quality_std": 0, "quality_threshold": 0}, "std 0"),
    ({"quality_mean": "NaN", "quality_std": 1.0, "quality_threshold": 0}, "mean nan"),
    ({"quality_mean": [1], "quality_std": 1.0, "quality_threshold": 0}, "m: its quality"),
])  # fmt: skip
def test_what_cannot_be_used_is_said(info, reason):
    with pytest.raises(CheckpointError, match=reason):
        quality_in(info, "m")
