"""The figures of a logged step are those of its tensors, over all ranks; logging changes nothing that is trained."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from recognition.assembly import assemble
from recognition.backbones import BackboneSettings
from recognition.config import CheckpointSettings, Config, DataSettings, EvaluationSettings, LogSettings
from recognition.distributed import Ranks
from recognition.heads.margins import AdaFace
from recognition.heads.sharded import HeadSettings
from recognition.memory import QAFace
from recognition.optimizer import OptimizerSettings
from recognition.train import train, train_step
from recognition.watch import read_step, spread


def _config(output: Path, root: Path, **changed: object) -> Config:
    config = Config(
        name="run", output=str(output), seed=3, batch_size=16, epochs=1,
        data=DataSettings(str(root), reader="fallback"),
        backbone=BackboneSettings("tiny", 16), head=HeadSettings(AdaFace(s=16.0), inject=QAFace(start_epoch=0.5)),
        optimizer=OptimizerSettings(lr=0.05), evaluation=EvaluationSettings(("pairs",), every_epochs=1),
        checkpoint=CheckpointSettings(every_epochs=0),
    )
    return dataclasses.replace(config, **changed)


def _two_steps(ranks: Ranks, config: Config) -> tuple[dict, dict, np.ndarray]:
    """Figures of the second step, the lengths behind them, and this rank's lengths of the momentum embeddings."""
    run = assemble(config, ranks)
    for batch in run.loader.batches(0, 2):
        step = train_step(run, batch, 0.05)
    groups, norms = read_step(run, step, 0.05, 0.25 * (ranks.rank + 1))
    assert groups["train"]["loss"] == step.loss.item()
    assert groups["head"]["margin_mean"] == run.head.margin_state["mean"].item()
    return groups, norms, step.momentum_embedding.norm(dim=1).numpy()


def test_figures_are_of_the_global_batch_on_every_rank(on_ranks, tmp_path, small_set):
    found = on_ranks(2, _two_steps, _config(tmp_path, small_set))
    momentum = np.concatenate([own for _, _, own in found])
    for groups, norms, _ in found:
        assert list(groups) == ["train", "head", "injection", "machine"]
        np.testing.assert_allclose(norms["momentum"], momentum, rtol=1e-6)
        head = groups["head"]
        assert head["momentum_norm_max"] == norms["momentum"].max()
        assert len(norms["embedding"]) == 16
        assert head["embedding_norm_mean"] == pytest.approx(norms["embedding"].mean())
        assert head["embedding_norm_min"] <= head["embedding_norm_mean"] <= head["embedding_norm_max"]
        assert {"margin_mean", "margin_deviation"} <= head.keys()
        assert {"norm_mean", "fresh", "injected_positives"} <= groups["injection"].keys()
        assert groups["machine"]["data_wait"] == 0.5  # the worse rank's
        assert groups["machine"]["memory_gb"] > 0.05
    names = [name for values in found[0][0].values() for name in values]
    assert len(names) == len(set(names))  # metrics.jsonl has no groups


def test_spread_of_what_is_not_finite_is_unknown():
    assert spread(np.array([3.0, 4.0, 5.0])) == {"mean": 4.0, "std": pytest.approx(np.sqrt(2 / 3)), "min": 3, "max": 5}
    assert all(np.isnan(value) for value in spread(np.array([1.0, np.inf])).values())


def test_logging_changes_no_bit_of_what_is_trained(tmp_path, small_set):
    """Every step logged with histograms, curves and pictures, or nothing but the last step: the same losses."""
    losses = {}
    least = {"log": LogSettings(6, tensorboard=False, pictures=False), "evaluation": EvaluationSettings(every_epochs=0)}
    for name, changed in (("all", {"log": LogSettings(1)}), ("least", least)):
        config = _config(tmp_path / name, small_set, **changed)
        train(config, Ranks())
        lines = [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]
        losses[name] = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert losses["least"] == {6: losses["all"][6]}
    assert len(losses["all"]) == 6
