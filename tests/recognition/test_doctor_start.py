"""Where a run would not start the doctor says so, with the text and the exit status that the run ends with."""

import sys
from pathlib import Path

import pytest
import torch

from recognition.assembly import assemble
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.config import load
from recognition.data.dataset import open_dataset
from recognition.distributed import Ranks
from recognition.doctor import examine, files
from recognition.errors import TrainerError
from recognition.state import make_saver, save
from recognition.status import write_status
from recognition.stopping import sole_run
from recognition.train import train

sys.path.insert(0, str(Path(__file__).parent))

import doctor_runs
from doctor_runs import problem


@pytest.fixture
def root(tmp_path, small_set) -> Path:
    return doctor_runs.copied(small_set, tmp_path)


@pytest.fixture
def file(tmp_path, root) -> str:
    return doctor_runs.config_file(tmp_path, root)


def _of_the_run(file: str, overrides: list[str]) -> tuple[int, str]:
    """Exit status and text of what a run of these settings ends with, before its first step."""
    with pytest.raises(TrainerError) as caught:
        train(load(file, overrides), Ranks())
    return caught.value.status, str(caught.value)


def _begin(file: str, *overrides: str, labels: dict[int, str] | None = None) -> Path:
    """A run's folder with a save, as after its first step."""
    config = load(file, overrides)
    run = assemble(config, Ranks(), open_dataset(config.data.root))
    with make_saver(run, labels) as saver:
        save(run, saver)
    return config.folder


@pytest.mark.parametrize("overrides", [["epochs=3"], ["data.augmentation.crop=0.5", "optimizer.lr=0.5"]])
def test_a_folder_with_another_run_is_the_problem_that_the_run_ends_with(file, overrides):
    folder = _begin(file)
    assert problem(file, []) == (0, "")
    found = problem(file, overrides)
    assert found == _of_the_run(file, overrides)
    assert found[0] == 2
    assert f"{folder} holds a run with other settings" in found[1]


def test_a_folder_with_a_run_on_other_data_is_a_problem(file, root):
    _begin(file)
    (root / "property").write_text("13,112,112\n")
    found = problem(file, [])
    assert found == _of_the_run(file, [])
    assert "data: " in found[1]


def test_a_run_that_is_at_work_and_one_that_is_damaged_are_problems(file):
    folder = _begin(file)
    with sole_run(folder, Ranks()):
        assert problem(file, []) == (2, f"{folder}: another run is using this folder")
    next(folder.rglob("replicated.safetensors")).write_bytes(b"")
    found = problem(file, [])
    assert found == _of_the_run(file, [])
    assert found[0] == 4


def test_it_is_told_how_the_run_begins(file, capsys):
    def told(*overrides: str) -> str:
        assert examine(file, overrides, doctor_runs.canned, 1) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "is not there yet: a new run" in told()
    old = _begin(file, "name=old", labels={number: str(number) for number in range(7)})
    assert "the same command goes on from there" in told("name=old")
    write_status(old, "finished")
    assert "only exports and evaluates it" in told("name=old")
    assert "backbone and 7 of 12 centres, by name" in told(f"start.checkpoint={old}")
    assert "backbone and 12 of 12 centres, by number" in told(f"start.checkpoint={old}", "start.match=number")


def test_of_a_large_set_the_start_files_alone_are_looked_at(file, capsys, monkeypatch):
    old = _begin(file, "name=old", labels={})
    monkeypatch.setattr(files, "SMALL", 0)
    assert examine(file, [f"start.checkpoint={old}"], doctor_runs.canned, 1) == 0
    assert "which classes are in the set is not known yet" in " ".join(capsys.readouterr().out.split())
    found = problem(file, [f"start.checkpoint={old}", "head.margin=subcenter"])
    assert found == _of_the_run(file, [f"start.checkpoint={old}", "head.margin=subcenter"])
    assert "centres of shape" in found[1]


@pytest.mark.parametrize(("start", "status", "expected"), [
    ("backbone=absent.pt", 4, "absent.pt: no such file"),
    ("backbone=other.pth", 4, "not tiny"),
    ("backbone=wider.pt", 4, "embedding_size=64"),
    ("checkpoint=absent", 4, "no checkpoint here"),
    ("checkpoint=wider", 4, "expected [32"),
    ("checkpoint=nameless", 2, "no names of identities"),
])
def test_what_the_run_cannot_start_from_is_the_problem_that_it_ends_with(
    tmp_path, file, start, status, expected
):
    wider = BackboneSettings("tiny", 64)
    if start == "backbone=other.pth":
        torch.save(build(BackboneSettings("mobilefacenet", 32)).state_dict(), tmp_path / "other.pth")
    elif start == "backbone=wider.pt":
        save_model(tmp_path / "wider.pt", build(wider), wider, {})
    elif "absent" not in start:
        _begin(file, f"output={tmp_path}", f"name={start.partition('=')[2]}", *(
            ["backbone.embedding_size=64"] if "wider" in start else []))
    name, _, what = start.partition("=")
    overrides = [f"start.{name}={tmp_path / what}"]
    found = problem(file, overrides)
    assert found == _of_the_run(file, overrides)
    assert found[0] == status
    assert expected in found[1]
