"""Faults of a run and what must come of them: stops, bad numbers, spoilt copies, ranks that hang or leave.

Kills are in test_kills.py, damaged and hostile saves in test_checkpoint*.py, bad data in tests/recognition/data.
"""

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recognition import train as training
from recognition.assembly import Run, assemble
from recognition.backbones import BackboneSettings
from recognition.config import CheckpointSettings, Config, DataSettings, EvaluationSettings, LogSettings
from recognition.distributed import Ranks, gather_uneven_rows
from recognition.errors import NumericsError
from recognition.heads.margins import AdaFace
from recognition.heads.sharded import HeadSettings
from recognition.memory import QAFace
from recognition.optimizer import OptimizerSettings
from recognition.state import replicated_state
from recognition.status import read_status
from recognition.train import train, train_step

sys.path.append(str(Path(__file__).parent))  # also for the processes that it starts
import fault_runs as runs

# Row 11: a signal saves and leaves


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, small_set) -> Path:
    """A run on two ranks that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    ranks = runs.Ranks(runs.write_config(folder, small_set), 2)
    assert ranks.wait() == [0, 0], ranks.said()
    return folder


@pytest.mark.parametrize(("number", "to", "again"), [
    (signal.SIGTERM, None, False), (signal.SIGINT, (1,), False), (signal.SIGTERM, None, True),
])
def test_a_signal_saves_and_the_run_goes_on_to_the_bit(tmp_path, small_set, whole, number, to, again):
    config = runs.write_config(tmp_path, small_set)
    ranks = runs.Ranks(config, 2)
    ranks.until(8)
    ranks.signal(number, to)
    if again:
        for _ in range(20):  # whatever it does meanwhile
            time.sleep(0.02)
            ranks.signal(signal.SIGINT)
            ranks.signal(signal.SIGTERM)
    assert ranks.wait(30) == [128 + number] * 2, ranks.said()
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_status"]) == ("stopped", 128 + number)
    assert 8 <= status["step"] < runs.STEPS
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    assert int(newest.name.partition("-")[2]) == status["step"]
    second = runs.Ranks(config, 2)
    assert second.wait() == [0, 0], second.said()
    assert runs.steps_of(tmp_path) == runs.steps_of(whole)
    assert runs.newest_state(tmp_path) == runs.newest_state(whole)


@pytest.mark.parametrize("point", [
    "replicated begun", pytest.param("snapshot", marks=pytest.mark.slow),
    pytest.param("renamed", marks=pytest.mark.slow),
])
def test_a_signal_during_a_save_is_safe(tmp_path, small_set, whole, point):
    config = runs.write_config(tmp_path, small_set)
    ranks = runs.Ranks(config, 2, kill=runs.Kill(point, 10, (0,), signal.SIGTERM))
    assert ranks.wait(40) == [143, 143], ranks.said()
    assert 10 <= read_status(tmp_path / "run")["step"] < runs.STEPS
    second = runs.Ranks(config, 2)
    assert second.wait() == [0, 0], second.said()
    assert runs.newest_state(tmp_path) == runs.newest_state(whole)


# Row 13: numbers that are not finite


def _config(output: Path, root: Path, **changed: object) -> Config:
    inject = QAFace(start_epoch=0.2, stat_momentum=0.5, momentum_batch_norm="train")
    config = Config(
        name="run", output=str(output), seed=3, batch_size=16, epochs=3,
        data=DataSettings(str(root), reader="fallback"), backbone=BackboneSettings("tiny", embedding_size=32),
        head=HeadSettings(AdaFace(s=16.0), 0.5, inject=inject), optimizer=OptimizerSettings(lr=0.05),
        evaluation=EvaluationSettings(every_epochs=0), log=LogSettings(every_steps=1, tensorboard=False),
        checkpoint=CheckpointSettings(every_epochs=1, every_minutes=0),
    )
    return dataclasses.replace(config, **changed)


def _spoil(run: Run, spoilt: Callable[[int], bool], rank: int) -> None:
    """Make the embeddings of one rank NaN at the steps for which `spoilt` says so."""

    def hook(module: nn.Module, images: tuple[Tensor], output: Tensor) -> Tensor:
        return output * torch.nan if run.ranks.rank == rank and module.training and spoilt(run.step) else output

    run.backbone.register_forward_hook(hook)


def _state(run: Run) -> dict[str, np.ndarray]:
    rows = {name: gather_uneven_rows(rows, run.ranks) for name, rows in run.head.state().items()}
    return {name: tensor.detach().clone().numpy() for name, tensor in (replicated_state(run) | rows).items()}


def _bad_step(ranks: Ranks, config: Config) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], bool]:
    run = assemble(config, ranks)
    _spoil(run, lambda step: step == 4, ranks.world_size - 1)
    before: dict[str, np.ndarray] = {}
    for batch in run.loader.batches(0, 5):
        before = _state(run)
        figures = train_step(run, batch, 0.05)
    return before, _state(run), bool(figures.bad)


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_nan_on_one_rank_changes_nothing_on_any(on_ranks, tmp_path, small_set, world):
    """Weights, momentum, centres, momentum backbone, memory, statistics, margin state, BatchNorm: to the bit."""
    found = on_ranks(world, _bad_step, _config(tmp_path, small_set))
    for before, after, bad in found:
        assert bad
        assert {"memory", "stamp", "memory.statistics", "head.mean"} <= before.keys() | {"head.mean"}
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value, err_msg=name)


def _train_spoilt(ranks: Ranks, config: Config, bad: list[int], times: int) -> tuple[str, dict, list[str]]:
    """Train with NaN at some steps, the first `times` times that they are reached: the error, state and loss lines."""
    met: dict[int, int] = {}
    runs_made = []

    def spoilt(step: int) -> bool:
        met[step] = met.get(step, 0) + (step in bad)
        return 0 < met[step] <= times

    def assembled(config: Config, ranks: Ranks) -> Run:
        run = assemble(config, ranks)
        _spoil(run, spoilt, ranks.world_size - 1)
        runs_made.append(run)
        return run

    training.assemble = assembled
    message = ""
    try:
        train(config, ranks)
    except NumericsError as error:
        message = str(error)
    finally:
        training.assemble = assemble
    (run,) = runs_made
    log = (config.folder / "train.log").read_text() if ranks.is_first else ""
    return message, _state(run), log.splitlines()


@pytest.mark.parametrize("world", [1, 2])
def test_three_bad_steps_go_back_once_and_the_run_recovers(on_ranks, tmp_path, small_set, world):
    plain, spoilt = _config(tmp_path / "a", small_set), _config(tmp_path / "b", small_set)
    expected = on_ranks(world, _train_spoilt, plain, [], 0)
    found = on_ranks(world, _train_spoilt, spoilt, [8, 9, 10], 1)
    for (message, state, _), (_, whole, _) in zip(found, expected, strict=True):
        assert message == ""
        for name, value in whole.items():
            np.testing.assert_array_equal(state[name], value, err_msg=name)
    log = found[0][2]
    assert sum("going back to the last checkpoint" in line for line in log) == 1
    steps = [json.loads(line)["step"] for line in (spoilt.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 19))


@pytest.mark.parametrize("world", [1, 2])
def test_bad_steps_after_going_back_end_the_run(on_ranks, tmp_path, small_set, world):
    config = _config(tmp_path, small_set)
    for message, _, _ in on_ranks(world, _train_spoilt, config, [8, 9, 10], 99):
        assert message.startswith("by step 11 after going back to a checkpoint, 3 steps of the last 1000")
    assert sorted(p.name for p in (config.folder / "checkpoints").glob("step-*")) == ["step-000000006"]


def test_ten_scattered_bad_steps_go_back_too(tmp_path, small_set):
    config = _config(tmp_path, small_set, epochs=6)
    message, _, log = _train_spoilt(Ranks(), config, list(range(7, 26, 2)), 1)
    assert message == ""
    assert sum("going back" in line for line in log) == 1


# Row 14: a copy that differs


def _flip(ranks: Ranks, config: Config, at: int) -> str:
    def assembled(config: Config, ranks: Ranks) -> Run:
        run = assemble(config, ranks)

        def hook(module: nn.Module, images: tuple[Tensor]) -> None:
            if run.step == at and ranks.rank == 1:
                weight = next(run.backbone.parameters()).data[0, 0, 0, 0:1]
                weight.view(torch.int32).bitwise_xor_(1)  # the lowest bit of one number

        run.backbone.register_forward_pre_hook(hook)
        return run

    training.assemble = assembled
    try:
        train(config, ranks)
    except NumericsError as error:
        return str(error)
    finally:
        training.assemble = assemble
    return ""


def test_a_flipped_bit_is_found_at_the_next_comparison(on_ranks, tmp_path, small_set):
    config = _config(tmp_path, small_set, checkpoint=CheckpointSettings(every_epochs=0, compare_steps=5))
    for message in on_ranks(2, _flip, config, 7):
        assert message.startswith("at step 10 the ranks' copies differ: rank 0: backbone.")
        assert "rank 1: backbone." in message  # of two, nobody knows which is right


def test_a_spoilt_copy_is_not_saved(on_ranks, tmp_path, small_set):
    config = _config(tmp_path, small_set, checkpoint=CheckpointSettings(every_epochs=1, every_minutes=0))
    for message in on_ranks(2, _flip, config, 8):
        assert message.startswith("at step 12 the ranks' copies differ")
    assert [path.name for path in (config.folder / "checkpoints").glob("step-*")] == ["step-000000006"]
