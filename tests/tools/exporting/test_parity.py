"""Before and after: what is compared, on which images, and the accuracy on pairs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eval.embed import load_embedder
from eval.verification import evaluate, load_bin
from tools.export_onnx import export, main, split
from tools.exporting.form import Form
from tools.exporting.parity import verify


def test_compared_and_calibrated_on_different_images(faces: np.ndarray) -> None:
    check, rest = split(faces)
    assert (len(check), len(rest)) == (32, 128)
    assert not {face.tobytes() for face in check} & {face.tobytes() for face in rest}
    check, rest = split(faces[:40])
    assert (len(check), len(rest)) == (32, 40)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_accuracy_before_and_after(
    given_file: Callable[..., Path], tmp_path: Path, small_set: Path, faces_folder: Path, precision: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out, figures = given_file(), tmp_path / "out.onnx", tmp_path / "figures.json"
    pairs = small_set / "pairs.bin"
    assert main([str(path), str(out), "--precision", precision, "--images", str(faces_folder), "--pairs", str(pairs),
                 "--quality", "--json", str(figures)]) == 0
    (row,) = json.loads(figures.read_text())["verification"]
    before, after = (evaluate(load_embedder(file, 1, "cpu").embed, load_bin(pairs))["accuracy"] for file in (path, out))
    assert (row["set"], row["pairs"], row["before"], row["after"]) == ("pairs", 20, before, after)
    assert row["difference"] == after - before
    said, beside = capsys.readouterr()
    assert (f"int8: calibrating on up to 256 faces of {faces_folder}" in beside) == (precision == "int8")
    assert f"32 given images of {faces_folder}" in said
    assert "accuracy before" in said
    assert "measured at export on 128 images; below -2 is unrecognisable" in said
    assert ("of float32's" in said) == (precision == "int8")


def test_before_is_of_the_reference_and_after_of_the_file(
    given_file: Callable[..., Path], tmp_path: Path, small_set: Path, faces: np.ndarray
) -> None:
    """A reference that cannot tell people apart: figures of one side twice would show."""
    out, pairs = tmp_path / "out.onnx", small_set / "pairs.bin"
    export(given_file(), out, faces)

    def useless(images: np.ndarray) -> np.ndarray:
        return np.random.default_rng(len(images)).normal(size=(len(images), 8)).astype(np.float32)

    (row,), (figures,) = verify(out.read_bytes(), useless, [pairs], progress=False)
    before, after = (evaluate(embed, load_bin(pairs))["accuracy"] for embed in (useless, load_embedder(out, 1).embed))
    assert before < after
    assert (row["before"], row["after"], row["difference"]) == (before, after, after - before)
    assert (figures["set"], figures["accuracy"]) == ("pairs", after)


def test_a_file_is_compared_as_it_is_asked_for(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray
) -> None:
    form = Form(batch=4, unit=True, preprocessing="uint8", quality=True)
    report = export(given_file(), tmp_path / "out.onnx", faces, form=form)
    assert [row[0] for row in report.batches] == [4]
    assert report.min_cosine > 0.99999
    assert report.quality_error is not None
    assert report.quality_error < 1e-3
