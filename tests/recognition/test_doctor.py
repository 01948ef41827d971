"""The doctor's figures are those of real runs, its problems have the run's exit status, and it leaves no file."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from recognition import launch, machine
from recognition.assembly import assemble
from recognition.backbones import BackboneSettings, build
from recognition.config import CheckpointSettings, Config, DataSettings, load
from recognition.data.dataset import open_dataset
from recognition.distributed import Ranks
from recognition.doctor import examine, files, trial
from recognition.doctor.examine import _room
from recognition.doctor.needs import _bytes, _kept, needs_of, saves_at_once
from recognition.doctor.report import Report, amount
from recognition.doctor.times import estimate, read_line, span
from recognition.errors import SettingsError
from recognition.folding import Folded
from recognition.heads.margins import ArcFace, SubCenter
from recognition.heads.row_optimizers import RowAdamW
from recognition.heads.sharded import HeadSettings
from recognition.memory import QAFace
from recognition.optimizer import OptimizerSettings
from recognition.state import make_saver, save

sys.path.insert(0, str(Path(__file__).parent))

import doctor_runs

ROOT = Path(__file__).resolve().parents[2]
@pytest.fixture
def root(tmp_path, small_set) -> Path:
    return doctor_runs.copied(small_set, tmp_path)


@pytest.fixture
def file(tmp_path, root) -> str:
    return doctor_runs.config_file(tmp_path, root)


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


def _config(root: Path) -> Config:
    return Config(name="run", data=DataSettings(str(root), reader="fallback"), batch_size=16, epochs=10,
                  backbone=BackboneSettings("tiny", 32))


def _looked(root: Path) -> Report:
    report = Report()
    files.look_at_sets(_config(root), report)
    return report


def test_a_sound_set_is_told_with_its_numbers(root):
    before = sorted(root.iterdir())
    report = _looked(root)
    text = report.text(110)
    assert report.problems == []
    assert "96 images of 12 identities" in " ".join(text.split())
    assert sorted(root.iterdir()) == before


@pytest.mark.parametrize(("damage", "expected"), [
    ("cut", "point where no record can begin"),
    ("longer", "do not belong together"),
    ("frame", "record"),
    ("label", "`property` states 11 identities"),
    ("images", "cannot be: more than data.bad_share"),
    ("gone", "train.idx"),
])
def test_a_damaged_set_is_a_problem_of_the_data(root, damage, expected):
    rec, index = root / "train.rec", root / "train.idx"
    content = bytearray(rec.read_bytes())
    if damage == "cut":
        rec.write_bytes(content[: len(content) // 2])
    elif damage == "longer":
        rec.write_bytes(content + content[:1000])
    elif damage == "frame":
        offset = int(index.read_text().splitlines()[40].split("\t")[1])
        content[offset] ^= 255
        rec.write_bytes(content)
    elif damage == "label":
        (root / "property").write_text("11,112,112\n")
    elif damage == "images":
        for line in index.read_text().splitlines()[1:20:5]:
            at = int(line.split("\t")[1])
            content[at + 40 : at + 80] = bytes(40)
        rec.write_bytes(content)
    else:
        index.unlink()
    (problem,) = _looked(root).problems
    assert problem.status == 3
    assert expected in problem.text


def test_a_large_set_is_opened_in_part(root, monkeypatch):
    monkeypatch.setattr(files, "SMALL", 0)
    monkeypatch.setattr(files, "_RUN", 2)
    part, is_whole = files.open_for_trial(replace(_config(root), batch_size=8))
    whole = open_dataset(root)
    assert (is_whole, part.num_classes) == (False, 12)
    assert 8 <= part.num_images < whole.num_images
    keys = [part.place(sample)[1] for sample in range(part.num_images)]
    everywhere = {whole.place(sample)[1]: sample for sample in range(whole.num_images)}
    for sample, key in enumerate(keys):
        assert part.labels[sample] == whole.labels[everywhere[key]]
        assert np.array_equal(part.encoded(sample), whole.encoded(everywhere[key]))


def _launch(command: Sequence[str]) -> tuple[int, str]:
    """One rank in this process instead of the launcher's, with little patience."""
    path, out, rows, overrides = command[2], Path(command[4]), int(command[6]), command[8:]
    config = load(path, overrides)
    found = trial.measure(config, Ranks(), files.open_for_trial(config)[0], rows, patience=0.01)
    out.write_text(json.dumps(found | {"whole_set": True}))
    return 0, ""


def test_a_sound_run_is_told_in_hours_and_leaves_no_file(tmp_path, file, capsys):
    before = sorted(path for path in tmp_path.rglob("*"))
    status = examine(file, [], _launch, 1, json_path=None)
    text = capsys.readouterr().out
    assert status == 0, text
    for title in ("this machine", "settings", "training set", "evaluation", "disk", "memory of a rank", "time"):
        assert f"\n{title}\n" in text
    assert "60 steps, 6 an epoch" in text
    assert "Loader" not in text.partition("loader alone")[2].partition("\n")[0]
    assert "compiled" not in text
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_what_the_run_compiles_is_told_and_not_waited_for(file, capsys):
    assert examine(file, ["speed.compile=blocks"], _launch, 1, json_path=None) == 0
    assert "compiles its backbone (speed.compile=blocks)" in " ".join(capsys.readouterr().out.split())


def test_a_ranks_room_is_its_share_of_this_machine(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 8 << 30)
    assert _room(torch.device("cpu"), 2)[0] == 4 << 30


@pytest.mark.parametrize(("overrides", "status", "expected"), [
    (["batch_size=15", "seed=-1"], 2, "2 mistake(s)"),
    (["batch_size=128"], 2, "128 is larger than the set of 96 images"),
    (["data.root=/no/such/folder"], 2, "/no/such/folder"),
    (["evaluation.sets=lfw"], 2, "no file"),
    (["checkpoint.keep=0", "checkpoint.every_steps=1", "epochs=900000"], 2, "too little"),
    (["head.tile_bytes=99999999999999"], 2, "before any activation"),
])
def test_problems_have_the_runs_status(tmp_path, file, capsys, overrides, status, expected):
    ranks = 2 if overrides[0] == "batch_size=15" else 1
    out = tmp_path / "doctor.json"
    assert examine(file, overrides, _launch, ranks, json_path=str(out)) == status
    told = json.loads(out.read_text())
    assert told["exit_status"] == status
    problems = [fact["text"] for facts in told["sections"].values() for fact in facts if fact["kind"] == "problem"]
    assert any(expected in text for text in problems), problems
    assert "✗" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--doctor", "a.py", "b.py"], "looks at one config"),
    (["--doctor", "a.py", "--fresh"], "starts nothing"),
    (["a.py", "--json", "x.json"], "--json goes with --doctor"),
])
def test_arguments_that_do_not_go_together(arguments, expected):
    with pytest.raises(SettingsError, match=expected):
        launch.main(arguments)


def test_seconds_of_the_whole_batch():
    points = [[4, 1.0], [16, 2.0], [32, 4.0]]
    assert read_line(points, 32) == 4.0
    assert read_line(points, 64) == 8.0
    assert read_line(points[:1], 8) == 2.0
    found = {"ranks": 2, "batch": 64, "loader": {"batches": 5, "seconds": 10.0}, "points": points, "together": []}
    guess = estimate(found, 64)
    assert (guess.step, guess.loader, guess.seconds, guess.measured) == (4.0, 2.0, 4.0, False)
    measured = estimate(found | {"together": [4.0, 5.0, 6.0, 7.0]}, 64)
    assert measured.seconds == 5.5
    assert measured.low < 5.5 < measured.high


def test_amounts_in_words():
    assert [span(seconds) for seconds in (4, 40, 600, 7200)] == ["4.0 s", "40 s", "10 min", "2.0 h"]
    assert span(864_000) == "10.0 days"
    assert [amount(count) for count in (2e3, 5.12e8, 7.7e9, 1.2e13)] == ["2 kB", "512 MB", "7.7 GB", "12.0 TB"]


@pytest.mark.slow
def test_the_command_measures_on_all_ranks_and_writes_nothing(tmp_path, file, root):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        active = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        return subprocess.run(["bash", ROOT / "run.sh", "--doctor", file, *arguments], capture_output=True, text=True,
                              cwd=tmp_path, env=os.environ | active | {"NPROC": "2"}, check=False, timeout=240)

    before = sorted(path for path in tmp_path.rglob("*"))
    done = run("--json", "found.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "both together" in done.stdout
    told = json.loads((tmp_path / "found.json").read_text())
    assert told["figures"]["trial"]["ranks"] == 2
    (tmp_path / "found.json").unlink()
    assert sorted(path for path in tmp_path.rglob("*")) == before
    (root / "train.idx").write_text("")
    assert run().returncode == 3
