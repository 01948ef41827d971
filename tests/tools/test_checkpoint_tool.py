"""The verbs on a run's checkpoints: what they print, what they write, how they end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.embed import load_embedder
from recognition import checkpoint
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import load_model
from recognition.checkpoint import Keep, Saver
from recognition.config import Config, DataSettings, settings_of
from recognition.distributed import Ranks
from recognition.errors import CheckpointError, SettingsError
from recognition.heads.centers import shard_range
from tools import checkpoint as tool
from tools.export_onnx import export

ROOT = Path(__file__).resolve().parents[2]
BACKBONE = BackboneSettings("tiny", embedding_size=8)
CLASSES = 23
SCORES = [{"set": "lfw", "accuracy": 0.9}]  # of step 10


def _weights(part: str, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {f"{part}.{name}": x for name, x in build(BACKBONE).state_dict().items()}


def _save(ranks: Ranks, run: str) -> None:
    start, stop = shard_range(CLASSES, ranks.rank, ranks.world_size)
    weight = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    rows = {"weight": weight[start:stop], "stamp": torch.arange(start, stop)}
    settings = settings_of(Config("a run", backbone=BACKBONE, data=DataSettings("somewhere")))
    labels = [f"person {number}" for number in range(CLASSES)]
    with Saver(Path(run, "checkpoints"), ranks, Keep(last=0), labels=labels) as saver:
        for step in (10, 20):
            replicated = _weights("backbone", step) | _weights("momentum", step + 1)
            state = {"settings": settings, "scores": SCORES, "scored": 10}
            saver.save(step, replicated, rows, start, state, score=step / 100)


@pytest.fixture
def run(tmp_path, on_ranks) -> Path:
    on_ranks(2, _save, str(tmp_path / "run"))
    return tmp_path / "run"


def _json(capsys, *arguments: object, status: int = 0) -> dict | list:
    assert tool.main([*map(str, arguments), "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_list_and_verify(run, capsys, tmp_path):
    found = _json(capsys, "list", run)
    assert [(save["step"], save["score"], save["files"], save["problems"]) for save in found] == [
        (10, 0.1, 6, []), (20, 0.2, 6, [])
    ]
    newest = run / "checkpoints" / "step-000000020"
    assert found[1]["bytes"] == sum(path.stat().st_size for path in newest.iterdir())
    assert _json(capsys, "verify", run) == found
    (newest / "labels.txt").write_text("other")
    found = _json(capsys, "verify", run / "checkpoints", status=4)
    assert [save["problems"] for save in found] == [[], ["labels.txt is damaged"]]
    assert tool.main(["verify", str(newest), "--json", str(tmp_path / "out.json")]) == 4
    assert capsys.readouterr().out == f"{newest}: labels.txt is damaged\n"
    assert json.loads((tmp_path / "out.json").read_text()) == found[1:]
    assert tool.main(["list", str(run)]) == 0
    assert "NO: labels.txt is damaged" in capsys.readouterr().out
    (newest / "state.json").unlink()
    assert _json(capsys, "list", newest)[0]["step"] is None


def test_inspect(run, capsys):
    facts = _json(capsys, "inspect", run)
    assert (facts["step"], facts["classes"], facts["names"]) == (20, CLASSES, CLASSES)
    by_name = {tensor["name"]: tensor for tensor in facts["tensors"]}
    assert by_name["weight"] == {
        "name": "weight", "of": "classes", "dtype": "bfloat16", "shape": [CLASSES, 8], "bytes": CLASSES * 16,
    }
    assert by_name["stamp"]["dtype"] == "int64"
    assert sum(tensor["of"] == "all ranks" for tensor in facts["tensors"]) == 2 * len(build(BACKBONE).state_dict())
    assert [(file["start"], file["stop"]) for file in facts["row_files"]] == [(0, 12), (12, CLASSES)]
    assert facts["state"]["settings"]["backbone.name"] == "tiny"
    assert tool.main(["inspect", str(run)]) == 0
    text = capsys.readouterr().out
    assert "| weight  " in text
    assert "backbone.embedding_size = 8" in text


@pytest.mark.parametrize(("ranks", "at_once"), [(1, 5), (4, 1 << 16), (CLASSES, 1 << 16)])
def test_reshard_is_the_same_to_the_bit(run, tmp_path, capsys, monkeypatch, ranks, at_once):
    monkeypatch.setattr(tool, "CLASSES_AT_ONCE", at_once)
    report = _json(capsys, "reshard", run, tmp_path / "out", "--ranks", ranks)
    old, new = checkpoint.read(run / "checkpoints" / "step-000000020"), checkpoint.read(Path(report["to"]))
    assert len(new.row_files) == ranks
    for name, rows in old.rows(0, CLASSES).items():
        assert torch.equal(new.rows(0, CLASSES)[name], rows)
        assert new.rows(0, CLASSES)[name].dtype == rows.dtype
    for file in ("replicated.safetensors", "state.json", "labels.txt"):
        assert (new.folder / file).read_bytes() == (old.folder / file).read_bytes()
    if ranks == 1:  # what two ranks wrote and one writes is the same file once more
        again = tool.reshard(new, tmp_path / "again", 2)
        for path in old.folder.iterdir():
            assert (again / path.name).read_bytes() == path.read_bytes() or path.name == "manifest.json"
    with pytest.raises(CheckpointError, match="is there already"):
        tool.reshard(old, tmp_path / "out", ranks)
    with pytest.raises(SettingsError, match=f"expected 1 to {CLASSES}"):
        tool.reshard(old, tmp_path / "x", CLASSES + 1)


@pytest.mark.parametrize("part", ["backbone", "momentum"])
def test_the_backbone_of_a_save_evaluates_and_exports(run, tmp_path, capsys, part):
    flags = ["--momentum"] if part == "momentum" else []
    older = run / "checkpoints" / "step-000000010"
    report = _json(capsys, "extract-backbone", older, tmp_path / "out.pt", *flags)
    assert (report["part"], report["step"]) == (part, 10)
    module, settings, info = load_model(tmp_path / "out.pt")
    assert (settings, info["run"], info["step"], info["part"]) == (BACKBONE, "a run", 10, part)
    assert info["scores"] == (SCORES if part == "backbone" else []), "scores are the backbone's that was scored"
    for name, tensor in _weights(part, 10 if part == "backbone" else 11).items():
        assert torch.equal(module.state_dict()[name.removeprefix(f"{part}.")], tensor)
    images = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), np.uint8)
    assert load_embedder(tmp_path / "out.pt").embed(images).shape == (2, 8)
    if part == "backbone":
        assert export(tmp_path / "out.pt", tmp_path / "out.onnx", images).min_cosine > 0.99999
        _json(capsys, "extract-backbone", run / "checkpoints" / "step-000000020", tmp_path / "later.pt")
        assert load_model(tmp_path / "later.pt")[2]["scores"] == []


def test_what_is_not_there_is_said(tmp_path, capsys):
    rows = {"weight": torch.zeros(2, 8)}
    checkpoint.save(tmp_path, 1, _weights("backbone", 1), rows, 0, {"settings": {}}, Ranks())
    with pytest.raises(CheckpointError, match=r"lacks the setting 'backbone\.name'"):
        tool.main(["extract-backbone", str(tmp_path), str(tmp_path / "out.pt")])
    settings = settings_of(Config("a run", backbone=BACKBONE))
    checkpoint.save(tmp_path, 2, _weights("backbone", 1), rows, 0, {"settings": settings}, Ranks())
    with pytest.raises(CheckpointError, match="has no momentum backbone"):
        tool.main(["extract-backbone", str(tmp_path), str(tmp_path / "out.pt"), "--momentum"])
    command = [sys.executable, ROOT / "tools" / "checkpoint.py", "verify", tmp_path / "absent"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith(f"error: {tmp_path / 'absent'}: no checkpoint here")
