"""What the doctor says that a run takes on disk and in memory is what it takes; what does not fit is a problem."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eval.ijb_cache import PARTS, EmbeddingCache
from eval.ijb_lists import IjbSet
from recognition import machine
from recognition.assembly import assemble
from recognition.backbones import BackboneSettings, build
from recognition.config import CheckpointSettings, Config, DataSettings, EvaluationSettings, load
from recognition.data.dataset import open_dataset
from recognition.distributed import Ranks
from recognition.doctor.disk import _bytes_in, files_of, look_at_disk
from recognition.doctor.memory import _room, _smaller_batch, _smaller_head
from recognition.doctor.needs import _bytes, _kept, needs_of, saves_at_once
from recognition.doctor.report import Report
from recognition.folding import Folded
from recognition.heads.margins import ArcFace, SubCenter
from recognition.heads.row_optimizers import RowAdagrad, RowAdamW
from recognition.heads.sharded import HeadSettings
from recognition.memory import QAFace
from recognition.optimizer import OptimizerSettings
from recognition.state import make_saver, save

sys.path.insert(0, str(Path(__file__).parent))

import doctor_runs


@pytest.fixture
def file(tmp_path, small_set) -> str:
    return doctor_runs.config_file(tmp_path, doctor_runs.copied(small_set, tmp_path))


HEADS = {
    "plain": HeadSettings(ArcFace()),
    "qaface": HeadSettings(ArcFace(), optimizer=RowAdamW(), storage="bf16", inject=QAFace(), catch_up_decay=True),
    "subcenters": HeadSettings(SubCenter(), storage="bf16"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_save_is_as_large_as_was_said(tmp_path, small_set, kind):
    config = Config(
        name="run", output=str(tmp_path), batch_size=16, epochs=2, data=DataSettings(str(small_set), reader="fallback"),
        backbone=BackboneSettings("tiny", 64), head=HEADS[kind],
        optimizer=OptimizerSettings(kind="adamw" if kind == "plain" else "sgd"),
    )
    run = assemble(config, Ranks(), open_dataset(small_set))
    with make_saver(run) as saver:
        save(run, saver)
    written = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").rglob("*.safetensors"))
    needs = needs_of(config, run.dataset.num_classes, 6, 1, on_gpu=False)
    headers = 100_000  # names and shapes, 200 bytes a tensor
    assert 0 <= written - needs.save < headers
    assert needs.parameters == sum(p.numel() for p in run.backbone.parameters())
    rows = sum(tensor.numel() * tensor.element_size() for tensor in run.head.state().values())
    parts = needs.in_memory
    assert rows == sum(parts.get(name, 0) for name in ("centres", "centres' optimiser", "memory", "counts"))
    assert ("momentum backbone" in parts) == (kind == "qaface")
    shared = needs_of(config, run.dataset.num_classes, 6, 4, on_gpu=False).in_memory
    assert shared["centres"] == parts["centres"] / 4


@pytest.mark.parametrize(("overrides", "is_there"), [
    ([], True), (["speed.fold=off"], False), (["head.inject.momentum_batch_norm=train"], False),
    (["head.inject=vpl"], False),
])
def test_the_momentum_backbone_s_folded_copy_is_counted(file, overrides, is_there):
    """What the copy has for its own: the other tensors are the module's."""
    config = load(file, ["head.inject=qaface", *overrides])
    counted = needs_of(config, 12, 6, 1, on_gpu=True).in_memory.get("its folded copy", 0)
    module = build(config.backbone)
    folded = Folded(module.eval(), torch.empty(2, 3, 112, 112, device="meta"))
    own = sum(_bytes(tensor) for fold in folded._folds for tensor in (fold.filled.weight, fold.filled.bias))
    assert counted == own * is_there
    assert own > 0.9 * sum(map(_bytes, module.parameters()))
    assert "its folded copy" not in needs_of(config, 12, 6, 1, on_gpu=False).in_memory  # speed.fold=auto


def test_embeddings_of_ijb_take_what_their_cache_takes(tmp_path):
    count = 1500
    names = [f"{number}.jpg" for number in range(count)]
    (tmp_path / "ijb" / "meta").mkdir(parents=True)
    (tmp_path / "ijb" / "meta" / "ijbb_face_tid_mid.txt").write_text("".join(f"{name} 1 1\n" for name in names))
    nothing = np.zeros(count)
    faces = IjbSet("IJBB", tmp_path, names, nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing,
                   nothing, None)
    cache = EmbeddingCache(tmp_path / "cache", {}, faces)
    for rows in cache.chunks():
        for part in PARTS:
            cache.write(part, rows, np.zeros((len(rows), 32), np.float32))
    written = sum(path.stat().st_size for path in cache.folder.glob("*.npy"))
    config = Config(name="run", backbone=BackboneSettings("tiny", 32))
    needs = needs_of(config, 12, 6, 1, on_gpu=False)
    assert files_of(config, needs) == needs.on_disk
    scored = replace(config, evaluation=EvaluationSettings(ijb=(str(tmp_path / "ijb"), str(tmp_path / "none"))))
    assert files_of(scored, needs)["embeddings of IJB"] == pytest.approx(written, rel=0.01)
    report = Report()
    look_at_disk([(scored, needs)], report)
    assert report.figures["disk"]["needed"] == sum(files_of(scored, needs).values())


def test_files_that_a_run_takes_away_meanwhile_do_not_count(tmp_path, monkeypatch):
    for name in ("old", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_bytes(bytes(100))

    def walk(folder, real=os.walk):
        for place, folders, names in real(folder):
            if Path(place).name == "old":
                (tmp_path / "old" / "part").unlink()
            yield place, folders, names

    monkeypatch.setattr(os, "walk", walk)
    assert _bytes_in(tmp_path) == 100


def test_activations_are_what_autograd_keeps():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 112 * 112, 8, bias=False), nn.ReLU())
    kept = [_kept(layers, count, torch.float32, torch.device("cpu")) for count in (2, 4)]
    assert kept[1] - kept[0] == 2 * 4 * (3 * 112 * 112 + 8)  # the product's factor, and the ReLU's result


@pytest.mark.parametrize(("settings", "expected"), [
    (CheckpointSettings(every_epochs=1, keep=2), 3),
    (CheckpointSettings(every_epochs=1, keep=0), 12),  # ten epochs, the end, and one being written
    (CheckpointSettings(every_epochs=1, keep=2, keep_best=True), 4),
    (CheckpointSettings(every_epochs=0, keep=2), 2),  # one at the end
    (CheckpointSettings(every_epochs=1, every_steps=10, keep=2, keep_every_steps=20), 6),
])
def test_saves_that_are_there_at_once(settings, expected):
    config = Config(name="run", epochs=10, checkpoint=settings)
    assert saves_at_once(config, 6) == expected


def test_a_ranks_room_is_its_share_of_this_machine(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 8 << 30)
    assert _room(torch.device("cpu"), 2)[0] == 4 << 30


def _small_machine(monkeypatch, available: int) -> None:
    monkeypatch.setattr(machine, "resident_bytes", lambda: 1 << 20)
    monkeypatch.setattr(machine, "available_memory", lambda: available)


def test_activations_that_do_not_fit_are_a_problem_with_a_way_out(file, monkeypatch):
    _small_machine(monkeypatch, 150_000_000)
    found = doctor_runs.told(file, ["batch_size=96"])
    (fact,) = [fact for fact in found["sections"]["memory of a rank"] if fact["kind"] == "problem"]
    parts = int(re.search(r"micro_batches=(\d+) would fit", fact["text"])[1])
    memory = found["figures"]["memory"]
    assert memory["tensors"] < memory["free"] < memory["tensors"] + memory["activations"]
    assert memory["tensors"] + memory["activations"] / parts < memory["free"]
    again = doctor_runs.told(file, ["batch_size=96", f"micro_batches={parts}"])
    assert again["exit_status"] == 0
    assert again["figures"]["memory"]["activations"] == pytest.approx(memory["activations"] / parts)


def test_what_is_chosen_already_is_no_way_out():
    plain, chosen = Config(name="a", batch_size=12), HeadSettings(ArcFace(), optimizer=RowAdagrad(), storage="bf16")
    checkpointing = BackboneSettings(checkpointing=True)
    assert _smaller_batch(plain, 2, 1.0, 5.0) == (
        "micro_batches=2 would fit, backbone.checkpointing=true takes fewer bytes, or a smaller batch_size")
    assert _smaller_batch(replace(plain, backbone=checkpointing), 2, 1.0, 3.0) == (
        "micro_batches=3 would fit, or a smaller batch_size")
    assert _smaller_batch(replace(plain, backbone=checkpointing), 2, 1.0, 0.5) == "a smaller backbone or batch_size"
    assert "head.storage=bf16, head.optimizer=adagrad take fewer bytes" in _smaller_head(plain)
    assert _smaller_head(replace(plain, head=chosen)) == "more GPUs or machines share the classes"


def test_ranks_share_this_machines_memory_and_the_batch(file, monkeypatch):
    _small_machine(monkeypatch, 8 << 30)
    one, two = (doctor_runs.told(file, ranks=ranks)["figures"]["memory"] for ranks in (1, 2))
    assert (one["free"], two["free"]) == (8 << 30, 4 << 30)
    assert two["activations"] == pytest.approx(one["activations"] / 2)
    images = 16 * 3 * 112 * 112 * 5  # as bytes and as floats
    assert one["tensors"] - two["tensors"] == pytest.approx(images / 2, abs=10_000)  # and of the centres half
