"""eval/thresholds.py: which threshold is believed of a model, of its run's evaluation or of its file."""

import json

import pytest

from eval.thresholds import Threshold, UnknownThresholdError, from_evaluation, from_model
from recognition.errors import DataError, SettingsError
from tests.eval.evaluated_runs import evaluation, row


def test_thresholds_of_a_run(tmp_path):
    run = evaluation(tmp_path / "run", [
        row("lfw", 3000, one=0.2, two=0.31), row("lfw", 3000, 16, one=0.5, two=0.6),
        row("cplfw", 2000, one=0.25, two=0.3), row("small", 200, one=0.22),
    ])  # fmt: skip
    assert from_evaluation(run, 1e-3) == Threshold(
        0.31, 1e-3, "lfw, 3000 pairs of different people, the highest of 2 sets")
    assert from_evaluation(run, 1e-2).value == 0.25
    assert from_evaluation(run, 1e-3, "cplfw") == Threshold(0.3, 1e-3, "cplfw, 2000 pairs of different people")
    with pytest.raises(UnknownThresholdError, match=r"needs 1000 .*, small has 200, enough for --far 0\.01"):
        from_evaluation(run, 1e-3, "small")
    with pytest.raises(SettingsError, match="no set 'agedb'"):
        from_evaluation(run, 1e-3, "agedb")
    with pytest.raises(SettingsError, match=r"no thresholds at FAR 0.002; it has 0.001, 0.01"):
        from_evaluation(run, 2e-3)


def test_the_strictest_far_that_the_pairs_support(tmp_path):
    """Unless one is asked for: the repository's own small runs have 900 pairs of different people."""
    few = evaluation(tmp_path / "few", [row("pairs", 900, one=0.4), row("pairs", 900, 16, one=0.7, two=0.8)])
    assert from_evaluation(few) == Threshold(0.4, 1e-2, "pairs, 900 pairs of different people")
    with pytest.raises(UnknownThresholdError, match=r"too few pairs for FAR 0\.001: .*has 900, enough for --far 0\.01"):
        from_evaluation(few, 1e-3)
    many = evaluation(tmp_path / "many", [row("lfw", 3000, one=0.2, two=0.3), row("small", 200, one=0.22)])
    assert from_evaluation(many) == Threshold(0.3, 1e-3, "lfw, 3000 pairs of different people")
    assert from_evaluation(many, None, "small") == Threshold(0.22, 1e-2, "small, 200 pairs of different people")
    with pytest.raises(UnknownThresholdError, match=r"too few pairs for FAR 0\.01: .* tiny has 9"):
        from_evaluation(evaluation(tmp_path / "none", [row("tiny", 9)]))


def test_whose_evaluation_it_is(tmp_path):
    run = evaluation(tmp_path / "run", [row("lfw", 3000, two=0.31)])
    (run / "copy.onnx").write_bytes((run / "model.onnx").read_bytes())
    for name in ("", "model.onnx", "model_last.pt", "copy.onnx"):
        assert from_evaluation(run / name, 1e-3).value == 0.31
    for name in ("model_best.pt", "model_int8.onnx"):
        (run / name).write_bytes(b"another network")
        with pytest.raises(UnknownThresholdError, match=rf"is of model\.onnx as it was then: {name} has another"):
            from_evaluation(run / name, 1e-3)
    with pytest.raises(UnknownThresholdError, match=r"no evaluation\.json beside"):
        from_evaluation(tmp_path / "model.onnx", 1e-3)
    older = {"set": "lfw", "degrade": None, "accuracy": 0.99}
    with pytest.raises(UnknownThresholdError, match=r"no thresholds in evaluation\.json"):
        from_evaluation(evaluation(tmp_path / "old", [older]), 1e-3)
    for text in ("[]", '{"model": 3, "verification": []}', '{"model": "m", "verification": [{}]}',
                 '{"model": "m", "verification": [], "sha256": 3}'):  # somebody else's file of this name
        (run / "evaluation.json").write_text(text)
        with pytest.raises(UnknownThresholdError, match="is not a run's evaluation"):
            from_evaluation(run, 1e-3)
    (run / "evaluation.json").write_text("{")
    with pytest.raises(DataError, match="not a run's evaluation"):
        from_evaluation(run, 1e-3)


def test_a_file_of_the_same_name_is_another_network(tmp_path):
    """A model written over the one that was evaluated has no threshold, nor one that no digest is noted of."""
    run = evaluation(tmp_path / "run", [row("lfw", 3000, two=0.31)])
    (run / "model.onnx").write_bytes(b"int8, in its place")
    with pytest.raises(UnknownThresholdError, match=r"model\.onnx has another SHA-256, and another network"):
        from_evaluation(run / "model.onnx", 1e-3)
    assert from_evaluation(run, 1e-3).value == 0.31
    (run / "model_last.pt").write_bytes(b"trained on")
    with pytest.raises(UnknownThresholdError, match=r"model_last\.pt has another SHA-256"):
        from_evaluation(run, 1e-3)
    (run / "evaluation.json").write_text(json.dumps({"model": "model.onnx", "verification": [row("lfw", 9, two=0.3)]}))
    with pytest.raises(UnknownThresholdError, match=r"does not note its model's SHA-256 .* the run's command"):
        from_evaluation(run / "model.onnx", 1e-3)


OWN = {"scores": [row("lfw", 3000, one=0.2, two=0.3), row("lfw", 3000, 16, one=0.6, two=0.7)]}


def test_a_file_tells_its_own_thresholds(tmp_path):
    """Where no evaluation lies beside the model: a .pt file's info, or an ONNX file's metadata as text."""
    text = {"scores": json.dumps(OWN["scores"])}
    for info in (OWN, text, text | {"precision": "fp32", "scores_of": "float32 network"},
                 text | {"precision": "int8", "scores_of": "this file"}):
        found = from_model(tmp_path / "m.onnx", info)
        assert found == Threshold(
            0.3, 1e-3, "lfw, 3000 pairs of different people, by the scores in the model's file")
    assert from_model(tmp_path / "m.onnx", OWN, 1e-2, "lfw").value == 0.2
    with pytest.raises(SettingsError, match=r"m\.onnx's own scores: no set 'agedb'"):
        from_model(tmp_path / "m.onnx", OWN, None, "agedb")
    run = evaluation(tmp_path / "run", [row("lfw", 3000, two=0.31)])
    assert from_model(run / "model.onnx", OWN).value == 0.31, "the evaluation of this very file comes first"
    (run / "model_best.pt").write_bytes(b"another network, with scores of its own")
    assert from_model(run / "model_best.pt", OWN).value == 0.3
    few = evaluation(tmp_path / "few", [row("lfw", 900, one=0.4)])
    with pytest.raises(UnknownThresholdError, match=r"^too few pairs for FAR 0\.001: [^;]*$"):
        from_model(few, OWN, 1e-3)


@pytest.mark.parametrize(("info", "reason"), [
    ({}, "no evaluation.json beside the model; its file carries no scores"),
    ({"scores": []}, "its file carries no scores"),
    ({"scores": "[]"}, "no evaluation.json beside the model; no thresholds in m.onnx's own scores"),
    ({"scores": "0.99"}, "no scores of this project's"),
    ({"scores": "a 99 %"}, "no scores of this project's"),
    ({"scores": [{"set": "lfw", "degrade": None, "accuracy": 0.9}]}, "no thresholds in m.onnx's own"),
    (OWN | {"precision": "int8"}, "not of this int8 network but of the float32 network"),
    (OWN | {"precision": "fp16", "scores_of": "float32 network"}, "not of this fp16 network but of the float32"),
    (OWN | {"scores_of": "network in bfloat16"}, "not of this fp32 network but of the network in bfloat16"),
    (OWN | {"scores_in": "bfloat16"}, "not of this fp32 network but of the network in bfloat16"),
    (OWN | {"embedding": "unit length", "scores_of": "float32 network"}, "were not of unit length"),
])  # fmt: skip
def test_scores_that_say_nothing_of_the_file(tmp_path, info, reason):
    with pytest.raises(UnknownThresholdError, match=reason):
        from_model(tmp_path / "m.onnx", info)
