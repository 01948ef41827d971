"""The fast path trains what the plain one trains: the same losses but for rounding, and an exact resume.

Scale, rate and clipping are ones at which a small problem does not amplify rounding (tests/recognition/test_train.py).
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recognition.assembly import assemble
from recognition.backbones import BackboneSettings
from recognition.config import CheckpointSettings, Config, DataSettings, EvaluationSettings, LogSettings
from recognition.distributed import Ranks
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.memory import QAFace
from recognition.optimizer import OptimizerSettings
from recognition.speed import SpeedSettings
from recognition.state import make_saver, replicated_state, resume, save
from recognition.train import train, train_step

STEPS = 8
PLAIN = SpeedSettings(compile="off", fold="off")


def _config(output: Path, root: Path, speed: SpeedSettings = PLAIN, **changed: object) -> Config:
    config = Config(
        name="run", output=str(output), seed=3, batch_size=16, epochs=STEPS / 6, micro_batches=2,
        data=DataSettings(str(root), reader="fallback"), backbone=BackboneSettings("tiny", 32, norm="group"),
        head=HeadSettings(ArcFace(s=8.0, m=0.3), sample_rate=0.5, inject=QAFace(start_epoch=0.3)),
        optimizer=OptimizerSettings(lr=0.003, clip_norm=1.0), evaluation=EvaluationSettings(every_epochs=0),
        checkpoint=CheckpointSettings(every_minutes=0), log=LogSettings(every_steps=1, tensorboard=False), speed=speed,
    )
    return dataclasses.replace(config, **changed)


def _learn(ranks: Ranks, config: Config, stop: int | None = None, saved: int = -1) -> tuple[list[float], dict]:
    """Losses step by step, and the replicated state; the run goes on where one was saved."""
    run = assemble(config, ranks)
    resume(run)
    losses = []
    with make_saver(run) as saver:
        for batch in run.loader.batches(run.step, stop or len(run.rates)):
            losses.append(float(train_step(run, batch, 0.003).loss))
            if run.step == saved:
                save(run, saver)
    return losses, {name: value.detach().clone().numpy() for name, value in replicated_state(run).items()}


def test_folding_changes_rounding_only(tmp_path, small_set):
    backbone = BackboneSettings("tiny", 32)
    plain, folded = (
        _learn(Ranks(), _config(tmp_path, small_set, SpeedSettings(fold=fold), backbone=backbone), stop=5)
        for fold in ("off", "on")
    )
    np.testing.assert_allclose(folded[0], plain[0], rtol=1e-5)
    assert folded[1].keys() == plain[1].keys()
    memory = "memory.statistics"
    np.testing.assert_allclose(folded[1][memory], plain[1][memory], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "way"), [(1, "blocks"), (1, "whole"), (2, "blocks")])
def test_compiled_runs_have_the_losses_of_plain_ones(on_ranks, tmp_path, small_set, world, way):
    """fp32, injection, sampling, two parts; batch statistics, since group norm has no kernel of its own to fuse."""
    backbone = BackboneSettings("tiny", 32)
    plain = on_ranks(world, _learn, _config(tmp_path, small_set, backbone=backbone))
    fast = on_ranks(world, _learn, _config(tmp_path, small_set, SpeedSettings(compile=way, fold="on"),
                                           backbone=backbone))
    assert fast[0][1].keys() == plain[0][1].keys()
    assert fast[0][0] != plain[0][0]  # to the bit: or nothing was compiled
    np.testing.assert_allclose(fast[0][0], plain[0][0], rtol=1e-5)


@pytest.mark.slow
def test_in_bf16_the_fast_path_stays_within_bf16s_own_noise(on_ranks, tmp_path, small_set):
    """Its noise: the spread of runs on 1 and 2 ranks, in 1 and 2 parts, which differ in the order of sums alone."""
    def losses(world: int, **changed: object) -> np.ndarray:
        config = _config(tmp_path, small_set, precision="bf16", **changed)
        return np.array(on_ranks(world, _learn, config)[0][0])

    runs = np.stack([losses(1, micro_batches=1), losses(1), losses(2, micro_batches=1), losses(2)])
    spread = np.ptp(runs, axis=0).max()
    assert spread > 0
    fast = losses(1, speed=SpeedSettings(compile="whole", fold="on"))
    exact = np.array(on_ranks(1, _learn, _config(tmp_path, small_set))[0][0])
    assert np.abs(fast - runs.mean(axis=0)).max() <= 2 * spread
    assert np.abs(runs - exact).max() <= 0.01 * exact.max()


@pytest.mark.slow
def test_a_compiled_run_goes_on_as_one_that_was_not_stopped(tmp_path, small_set):
    """Saved with keys that a plain run reads, evaluated as written, with dropout; to the bit."""
    backbone = BackboneSettings("tiny", 32, dropout=0.3)
    speed = SpeedSettings(compile="blocks", fold="on")
    whole, stopped = (_config(tmp_path / name, small_set, speed, backbone=backbone) for name in ("whole", "stopped"))
    losses, state = _learn(Ranks(), whole)
    _learn(Ranks(), stopped, stop=6, saved=5)
    resumed_losses, resumed = _learn(Ranks(), stopped)
    assert resumed_losses == losses[5:]
    for name, value in state.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    evaluation = EvaluationSettings(("pairs",), every_epochs=1)
    train(_config(tmp_path / "stopped", small_set, PLAIN, backbone=backbone, evaluation=evaluation), Ranks())


@pytest.mark.slow
def test_scores_of_a_compiled_backbone_are_those_of_the_plain_one(tmp_path, small_set):
    evaluation = EvaluationSettings(("pairs",), every_epochs=1)
    scores = [
        train(_config(tmp_path / str(number), small_set, speed, backbone=BackboneSettings("tiny", 32),
                      evaluation=evaluation), Ranks()).scores
        for number, speed in enumerate([PLAIN, SpeedSettings(compile="blocks")])
    ]
    assert scores[0][0]["mean_norm"] == pytest.approx(scores[1][0]["mean_norm"], rel=1e-3)


_WITHOUT_COMPILER = """
import sys, torch
from torch import nn
from recognition.distributed import Ranks
from recognition.speed import SpeedSettings, try_compiled
network = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
def run(): network(torch.ones(2, 4)).sum().backward()
print("auto:", try_compiled(SpeedSettings(), [network], run, Ranks(device=torch.device("cuda", 0))))
run()
try_compiled(SpeedSettings(compile="whole"), [network], run, Ranks())
"""


@pytest.mark.slow
def test_without_a_compiler_auto_goes_on_and_an_explicit_way_says_what_is_missing(tmp_path):
    environment = os.environ | {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
                                "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", _WITHOUT_COMPILER], env=environment, capture_output=True, text=True,
                          check=False)
    assert done.stdout.strip() == "auto: off"
    assert "SettingsError: speed.compile=whole fails here" in done.stderr
    assert torch.__version__ >= "2.10"
