"""The doctor looks at all runs that the command would start: variants and seeds, on the disk and in hours."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from recognition import launch, machine
from recognition.compare import members
from recognition.config import load
from recognition.data.dataset import open_dataset
from recognition.doctor import examine, times
from recognition.doctor.disk import files_of
from recognition.doctor.needs import needs_of
from recognition.errors import SettingsError
from recognition.finish import evaluated_run

sys.path.insert(0, str(Path(__file__).parent))

import doctor_runs

VARIANTS = """
def variants():
    return {"plain": (), "qaface": ("head.inject=qaface",), "long": ("epochs=11",)}
"""
SECONDS = 10 * 6 * 1.1  # what `canned` finds, of ten epochs


@pytest.fixture
def file(tmp_path, small_set) -> str:
    path = doctor_runs.config_file(tmp_path, doctor_runs.copied(small_set, tmp_path))
    with open(path, "a") as written:
        written.write(VARIANTS)
    return path


def _fact(found: dict[str, Any], section: str, name: str) -> str:
    (text,) = [fact["text"] for fact in found["sections"][section] if fact["name"] == name]
    return text


def _needed(file: str) -> list[int]:
    """Bytes on disk of each variant."""
    configs = [member.config for member in members([file], [], [])]
    return [sum(files_of(config, needs_of(config, 12, 6, 1, on_gpu=False)).values()) for config in configs]


def _finish(file: str, *numbers: int) -> None:
    for number in numbers:
        config = members([file], [], [])[number].config
        config.folder.mkdir(parents=True)
        rows = [{"set": "pairs", "degrade": None, "accuracy": 0.9}]
        found = {"run": evaluated_run(config), "verification": rows, "ijb": {}}
        (config.folder / "evaluation.json").write_text(json.dumps(found))


def test_all_variants_are_counted_and_the_costliest_is_measured(file):
    found = doctor_runs.told(file)
    assert _fact(found, "settings", "runs") == (
        "3 runs: run_plain, run_qaface, run_long; time is of run_qaface, whose backbones compute the most")
    assert _fact(found, "memory of a rank", "run") == "run_qaface, which takes the most"
    assert "momentum backbone" in _fact(found, "memory of a rank", "held")
    assert found["figures"]["runs"] == {"all": 3, "finished": 0, "measured": "run_qaface"}
    assert found["figures"]["disk"]["needed"] == sum(_needed(file))
    scoring = times._evaluation_seconds(load(file), 1.0 / 16)
    assert found["figures"]["all_runs"] == {"count": 3, "seconds": pytest.approx(3 * (SECONDS + scoring))}
    assert "3 one after the other: at the most, were each as long as run_qaface: 4.1 min" in _fact(
        found, "time", "all runs")
    assert "and 2 more are not there yet" in _fact(found, "start", "runs' folders")


def test_seeds_multiply_and_single_does_not(file):
    seeds = doctor_runs.told(file, seeds=[3, 4])
    assert _fact(seeds, "settings", "runs").startswith(
        "6 runs: run_plain, run_qaface, run_long, each with the seeds 3, 4; time is of run_qaface_seed3")
    assert seeds["figures"]["disk"]["needed"] == 2 * sum(_needed(file))
    assert seeds["figures"]["all_runs"]["count"] == 6
    alike = doctor_runs.told(file, seeds=[3, 4], single=True)
    assert _fact(alike, "settings", "runs") == "2 runs: run, each with the seeds 3, 4; time is of run_seed3"
    assert _fact(alike, "time", "all runs").startswith("2 one after the other: 2.8 min")
    alone = doctor_runs.told(file, single=True)
    assert {"runs", "all_runs"}.isdisjoint(alone["figures"])
    assert alone["figures"]["disk"]["needed"] == _needed(file)[0]
    assert alike["figures"]["disk"]["needed"] == 2 * alone["figures"]["disk"]["needed"]


def test_memory_is_that_of_the_run_that_takes_the_most_with_its_activations(file, monkeypatch):
    """The run that is measured holds more tensors, but keeps less of an image."""
    path = Path(file)
    path.write_text(path.read_text().replace('"long": ("epochs=11",)', "").replace(
        '("head.inject=qaface",)', '("head.inject=qaface", "backbone.checkpointing=true")'))
    monkeypatch.setattr(machine, "resident_bytes", lambda: 1 << 20)
    monkeypatch.setattr(machine, "available_memory", lambda: 150_000_000)
    rows = []

    def launch(command: Sequence[str]) -> tuple[int, str]:
        rows.append(int(command[6]))
        return doctor_runs.canned(command)

    assert examine(file, ["batch_size=96"], launch, 1) == 2
    found = doctor_runs.told(file, ["batch_size=96"])
    assert _fact(found, "memory of a rank", "run") == "run_plain, which takes the most"
    assert found["figures"]["runs"]["measured"] == "run_qaface"
    assert "too little; micro_batches=" in _fact(found, "memory of a rank", "activations")
    examine(file, ["batch_size=96", "backbone.checkpointing=true"], launch, 1)
    assert rows[0] == rows[1] > 96


def test_finished_runs_are_not_run_again(file):
    _finish(file, 1)
    found = doctor_runs.told(file)
    assert "momentum backbone" not in _fact(found, "memory of a rank", "held")
    assert "1 of them finished, which are not run again; time is of run_long" in _fact(
        found, "settings", "runs")
    assert found["figures"]["all_runs"]["count"] == 2
    assert found["figures"]["disk"]["needed"] == sum(_needed(file)) - _needed(file)[1]
    _finish(file, 0, 2)
    found = doctor_runs.told(file)
    assert _fact(found, "time", "not measured") == "all runs are finished: the command prints their table"


def test_what_keeps_one_of_the_runs_from_starting_is_a_problem(file):
    for overrides, options, expected in (
        (["start.backbone=/no/model.pt"], {}, (4, "/no/model.pt: no such file")),
        ([], {"machines": 2}, (2, "several runs are compared on one machine; NNODES is for a single run")),
        (["epochs=11"], {}, (2, "run_long would train the same as run_plain; is a variant overridden?")),
        (["batch_size=15"], {"ranks": 2}, (2, "1 mistake(s) in the settings")),
    ):
        status, text = doctor_runs.problem(file, overrides, **options)
        assert (status, expected[1] in text) == (expected[0], True), text


def test_the_command_line_reaches_it(file, monkeypatch):
    asked = []
    monkeypatch.setattr(launch, "examine", lambda *arguments: asked.append(arguments) or 0)
    launch.main(["--doctor", file, "--seeds", "3", "4", "--single"])
    assert asked[0][0] == file
    assert asked[0][6:8] == ([3, 4], True)
    with pytest.raises(SettingsError, match="--side-by-side 99999"):
        launch.main(["--doctor", file, "--side-by-side", "99999"])


def test_runs_side_by_side_have_their_shares_of_the_ranks(file, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 8 << 30)
    found = doctor_runs.told(file, ["batch_size=15"], ranks=1, shares=[1, 1], seeds=[1, 2])
    assert (found["exit_status"], found["figures"]["memory"]["free"]) == (0, 4 << 30)
    status, text = doctor_runs.problem(file, ["batch_size=15"], ranks=1, shares=[2, 1], seeds=[1, 2])
    assert (status, "1 mistake(s) in the settings" in text) == (2, True), text


def _with_variants(file: str, **variants: tuple[str, ...]) -> str:
    path = Path(file)
    path.write_text(path.read_text().replace(VARIANTS, f"\ndef variants():\n    return {variants!r}\n"))
    return file


def test_data_that_variants_share_is_looked_at_once(file):
    _with_variants(file, small=("batch_size=8",), plain=(), large=("batch_size=128",),
                   bare=("epochs=9", "evaluation.sets=lfw"))
    found = doctor_runs.told(file)
    names = [fact["name"] for fact in found["sections"]["training set"]]
    assert len(names) == len(set(names))
    assert [fact["name"] for fact in found["sections"]["evaluation"]] == ["pairs", "sets"]
    assert _fact(found, "settings", "batch_size") == "run_large: 128 is larger than the set of 96 images"


def test_one_damaged_set_does_not_mark_the_others(file, tmp_path, small_set):
    sound = doctor_runs.copied(small_set, tmp_path / "other")
    damaged = Path(load(file).data.root)
    index = damaged / "train.idx"
    content = bytearray((damaged / "train.rec").read_bytes())
    content[int(index.read_text().splitlines()[40].split("\t")[1])] ^= 255
    (damaged / "train.rec").write_bytes(content)
    _with_variants(file, first=(), second=(f"data.root={sound}", "head.inject=qaface"))
    found = doctor_runs.told(file)
    assert found["exit_status"] == 3
    assert found["figures"]["runs"]["measured"] == "run_second"
    assert "trial" in found["figures"]


def test_folders_of_runs_are_looked_at_one_by_one(file):
    _, second, _ = members([file], [], [])
    (second.config.folder / "checkpoints" / "step-000000001").mkdir(parents=True)
    status, text = doctor_runs.problem(file)
    assert (status, "no checkpoint verifies" in text) == (4, True)
    assert open_dataset(second.config.data.root).num_images == 96
