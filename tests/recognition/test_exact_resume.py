"""A run that was stopped in the middle of an epoch ends as one that was not: losses to the bit, every tensor."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from recognition.assembly import assemble
from recognition.backbones import BackboneSettings
from recognition.config import CheckpointSettings, Config, DataSettings, EvaluationSettings
from recognition.data.plan import Augmentation
from recognition.distributed import Ranks, gather_uneven_rows
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.memory import QAFace
from recognition.optimizer import OptimizerSettings
from recognition.state import make_saver, replicated_state, resume, save
from recognition.train import train_step

STOP, SAVED = 8, 7  # of six steps an epoch; the step after the save is lost


def _config(output: Path, root: Path, reader: str, inject: bool, rate: float) -> Config:
    head = HeadSettings(ArcFace(s=16.0, m=0.3), rate)
    if inject:
        head = dataclasses.replace(head, inject=QAFace(start_epoch=0.3, stat_momentum=0.5))
    augmentation = Augmentation(crop=0.3, downsample=0.3, blur=0.2, jpeg=0.2, colour=0.2)
    return Config(
        name="run", output=str(output), seed=3, batch_size=16, epochs=2,
        data=DataSettings(str(root), reader=reader, augmentation=augmentation),  # type: ignore[arg-type]
        backbone=BackboneSettings("tiny", embedding_size=32, dropout=0.3), head=head,
        optimizer=OptimizerSettings(lr=0.05), evaluation=EvaluationSettings(every_epochs=0),
        checkpoint=CheckpointSettings(every_minutes=0),
    )


def _learn(ranks: Ranks, config: Config, stop: int | None) -> tuple[dict[int, str], dict[str, np.ndarray]]:
    """Losses by step, as hexadecimal floats, and all state with the shards joined."""
    run = assemble(config, ranks)
    resume(run)
    losses = {}
    with make_saver(run) as saver:
        for batch in run.loader.batches(run.step, stop or len(run.rates)):
            figures = train_step(run, batch, float(run.rates[run.step]))
            losses[run.step] = float(figures.loss).hex()
            if run.step == SAVED:
                save(run, saver)
    rows = {name: gather_uneven_rows(rows, ranks) for name, rows in run.head.state().items()}
    return losses, {name: tensor.detach().clone().numpy() for name, tensor in (replicated_state(run) | rows).items()}


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("inject", [False, True], ids=["plain", "qaface"])
@pytest.mark.parametrize("rate", [1.0, 0.5], ids=["full", "sampled"])
@pytest.mark.parametrize("reader", ["dali", "fallback"])
def test_a_run_that_went_on_equals_the_uninterrupted_one(on_ranks, tmp_path, small_set, world, inject, rate, reader):
    if reader == "dali":
        pytest.importorskip("nvidia.dali")
    whole, stopped = (_config(tmp_path / name, small_set, reader, inject, rate) for name in ("whole", "stopped"))
    for config in (whole, stopped):
        config.folder.mkdir(parents=True)
    expected = on_ranks(world, _learn, whole, None)
    on_ranks(world, _learn, stopped, STOP)
    found = on_ranks(world, _learn, stopped, None)
    for (losses, state), (all_losses, whole_state) in zip(found, expected, strict=True):
        assert losses == {step: loss for step, loss in all_losses.items() if step > SAVED}
        assert state.keys() == whole_state.keys()
        for name, value in whole_state.items():
            np.testing.assert_array_equal(state[name], value, err_msg=name)
