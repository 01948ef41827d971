"""Whose accuracy a file states: its own where it was measured, else that of the network, and never another's."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from eval.embed import load_embedder
from eval.ijb_cache import file_sha256
from eval.verification import evaluate, load_bin
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from tools.export_onnx import export
from tools.exporting.form import Form
from tools.exporting.scores import run_sets, scores_of_run

TRAINED = [{"set": "lfw", "accuracy": 0.9}]


def facts_of(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_was_measured_is_the_files_own(
    given_file: Callable[..., Path], tmp_path: Path, small_set: Path, faces: np.ndarray, precision: str
) -> None:
    def trained(model: onnx.ModelProto) -> None:
        model.metadata_props.add(key="scores", value=json.dumps(TRAINED))

    path, out, again = given_file(change=trained), tmp_path / "out.onnx", tmp_path / "again.onnx"
    export(path, out, faces, form=Form(precision))  # type: ignore[arg-type]
    assert json.loads(facts_of(out)["scores"]) == TRAINED
    assert facts_of(out)["scores_of"] == "float32 network"
    report = export(path, out, faces, form=Form(precision), pairs=[small_set / "pairs.bin"])  # type: ignore[arg-type]
    (row,) = json.loads(facts_of(out)["scores"])
    assert row == evaluate(load_embedder(out, 1, "cpu").embed, load_bin(small_set / "pairs.bin"))
    assert facts_of(out)["scores_of"] == "this file"
    assert report.num_bytes == out.stat().st_size
    if precision == "fp32":
        export(out, again, faces, form=Form("fp16"))
        assert json.loads(facts_of(again)["scores"]) == [row]
        assert facts_of(again)["scores_of"] == "float32 network", "and not of the float16 file"


def test_scores_taken_in_half_precision_are_told_as_that(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray
) -> None:
    """Training on a GPU scores in bf16; the word survives a second export."""
    settings, out, again = BackboneSettings("tiny", embedding_size=16), tmp_path / "out.onnx", tmp_path / "again.onnx"
    info = {"run": "demo", "scores": TRAINED, "scores_in": "bfloat16"}
    save_model(tmp_path / "model_last.pt", build(settings), settings, info)
    export(tmp_path, out, faces[:2])
    export(out, again, faces[:2])
    assert [facts_of(path)["scores_of"] for path in (out, again)] == ["network in bfloat16"] * 2


def test_without_scores_nobody_is_named(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    export(given_file(), tmp_path / "out.onnx", faces)
    assert not [key for key in facts_of(tmp_path / "out.onnx") if key.startswith("scores")]


def test_a_runs_evaluation_counts_if_it_is_of_this_file(tmp_path: Path, faces: np.ndarray) -> None:
    settings, out = BackboneSettings("tiny", embedding_size=16), tmp_path / "model.onnx"
    module = build(settings)
    save_model(tmp_path / "model_last.pt", module, settings, {"run": "demo", "scores": []})
    export(tmp_path, out, faces[:2])
    assert facts_of(out)["scores"] == "[]"
    assert "scores_of" not in facts_of(out)
    evaluation = {"sha256": {"model_last.pt": file_sha256(tmp_path / "model_last.pt")}, "verification": TRAINED}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    export(tmp_path, out, faces[:2])
    assert json.loads(facts_of(out)["scores"]) == TRAINED
    assert facts_of(out)["scores_of"] == "float32 network"
    save_model(tmp_path / "model_last.pt", build(settings), settings, {"run": "demo", "scores": []})
    export(tmp_path, out, faces[:2])
    assert facts_of(out)["scores"] == "[]", "other weights"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": SHA}', '{"sha256": SHA, "verification": [1]}',
                                  '{"sha256": {"a": "b"}, "verification": [{"set": "lfw"}]}', '{"verification": [{}]}',
                                  '{"sha256": 3, "verification": [{}]}', '{"sha256": SHA, "verification": 3}'])
def test_an_evaluation_that_says_nothing_of_this_file(tmp_path: Path, text: str) -> None:
    model = tmp_path / "model_last.pt"
    model.write_bytes(b"weights")
    assert scores_of_run(model) == []
    known = json.dumps({"model_last.pt": file_sha256(model)})
    (tmp_path / "evaluation.json").write_text(text.replace("SHA", known))
    assert scores_of_run(model) == []


def test_the_sets_of_a_run(tmp_path: Path) -> None:
    assert run_sets(tmp_path) == ([], [])
    (tmp_path / "set").mkdir()
    for file in ("set/lfw.bin", "set/cfp.bin", "agedb.bin"):
        (tmp_path / file).write_bytes(b"")
    settings = {"data.root": str(tmp_path / "set"),
                "evaluation.sets": ["lfw", "cfp.bin", str(tmp_path / "agedb.bin"), "calfw"]}
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings}))
    found = [tmp_path / file for file in ("set/lfw.bin", "set/cfp.bin", "agedb.bin")]
    assert run_sets(tmp_path) == (found, ["calfw"])
    (tmp_path / "config.json").write_text('{"settings": {"data.root": "a", "evaluation.sets": 5}}')
    assert run_sets(tmp_path) == ([], [])
