"""The fast path trains what the plain one trains: the same losses but for rounding, and an exact resume.

Scale, rate and clipping are ones at which a small problem does not amplify rounding (tests/recognition/test_train.py).
The C++ compiler takes the time here, a second for each kernel. So the backbone has blocks of one shape, and what runs
on 2 ranks has the shapes of what ran on 1: its kernels are found on the disk.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from recognition.assembly import assemble
from recognition.backbones import BACKBONES, BackboneSettings
from recognition.backbones.iresnet import Block
from recognition.backbones.parts import full_precision, norm_1d, norm_2d
from recognition.backbones.recomputed import Blocks
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


class Small(nn.Module):
    """A stem to 14×14, IResNet's blocks, a linear map and a norm."""

    def __init__(self, embedding_size: int, dropout: float, norm: str, checkpointing: bool) -> None:
        super().__init__()
        self.conv1, self.bn1, self.prelu = nn.Conv2d(3, 16, 9, 8, 4, bias=False), norm_2d(norm, 16), nn.PReLU(16)
        self.layer1 = Blocks(*(Block(16, 16, 1, norm) for _ in range(2)), checkpointing=checkpointing)
        self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(16 * 14 * 14, embedding_size)
        self.features = norm_1d(norm, embedding_size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.layer1(self._stem(image)).flatten(1))
        with full_precision(x):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))

    def _stem(self, image: torch.Tensor) -> torch.Tensor:
        return self.prelu(self.bn1(self.conv1(image)))


if __name__.startswith("rank_worker"):  # the ranks' processes load this file by another name
    BACKBONES["small"] = Small


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(BACKBONES, "small", Small)


def _config(output: Path, root: Path, speed: SpeedSettings = PLAIN, **changed: object) -> Config:
    config = Config(
        name="run", output=str(output), seed=3, batch_size=16, epochs=STEPS / 6, micro_batches=2,
        data=DataSettings(str(root), reader="fallback"), backbone=BackboneSettings("small", 32),
        head=HeadSettings(ArcFace(s=8.0, m=0.3), sample_rate=0.5, inject=QAFace(start_epoch=0.3)),
        optimizer=OptimizerSettings(lr=0.003, clip_norm=1.0), evaluation=EvaluationSettings(every_epochs=0),
        checkpoint=CheckpointSettings(every_minutes=0), log=LogSettings(every_steps=1, tensorboard=False), speed=speed,
    )
    return dataclasses.replace(config, **changed)


def _learn(ranks: Ranks, config: Config, stop: int | None = None, saved: int = -1) -> tuple[list[float], dict]:
    """Losses step by step, and the replicated state; the run goes on where one was saved."""
    run = assemble(config, ranks)
    resume(run)
    losses, compiled = [], counters["stats"]["unique_graphs"]
    with make_saver(run) as saver:
        for batch in run.loader.batches(run.step, stop or len(run.rates)):
            losses.append(float(train_step(run, batch, 0.003).loss))
            if run.step == saved:
                save(run, saver)
    assert counters["stats"]["unique_graphs"] == compiled  # nothing is left for the steps to compile
    return losses, {name: value.detach().clone().numpy() for name, value in replicated_state(run).items()}


def test_folding_changes_rounding_only(tmp_path, small_set):
    plain, folded = (
        _learn(Ranks(), _config(tmp_path, small_set, SpeedSettings(fold=fold))) for fold in ("off", "on")
    )
    np.testing.assert_allclose(folded[0], plain[0], rtol=1e-5)
    assert folded[1].keys() == plain[1].keys()
    memory = "memory.statistics"
    np.testing.assert_allclose(folded[1][memory], plain[1][memory], rtol=1e-3)


CASES = {"parts": (1, "blocks", 2, False), "checkpointing": (1, "blocks", 2, True), "whole": (1, "whole", 1, False),
         "2 ranks": (2, "blocks", 1, False)}


@pytest.mark.slow
@pytest.mark.parametrize(("world", "way", "parts", "checkpointing"), CASES.values(), ids=CASES)
def test_compiled_runs_have_the_losses_of_plain_ones(on_ranks, tmp_path, small_set, world, way, parts, checkpointing):
    """fp32, injection, sampling."""
    same = {"backbone": BackboneSettings("small", 32, checkpointing=checkpointing), "micro_batches": parts}
    plain = on_ranks(world, _learn, _config(tmp_path, small_set, **same))
    fast = on_ranks(world, _learn, _config(tmp_path, small_set, SpeedSettings(compile=way, fold="on"), **same))
    assert fast[0][1].keys() == plain[0][1].keys()
    assert fast[0][0] != plain[0][0]  # to the bit: or nothing was compiled
    np.testing.assert_allclose(fast[0][0], plain[0][0], rtol=1e-5)


@pytest.mark.slow
def test_in_bf16_the_fast_path_stays_within_bf16s_own_noise(on_ranks, tmp_path, small_set):
    """Its noise: the spread of runs on 1 and 2 ranks, in 1 and 2 parts, which differ in the order of sums alone."""
    backbone = BackboneSettings("small", 32, norm="group")  # batch statistics are of parts, and of ranks

    def losses(world: int, **changed: object) -> np.ndarray:
        config = _config(tmp_path, small_set, precision="bf16", backbone=backbone, **changed)
        return np.array(on_ranks(world, _learn, config)[0][0])

    runs = np.stack([losses(1, micro_batches=1), losses(1), losses(2, micro_batches=1), losses(2)])
    spread = np.ptp(runs, axis=0).max()
    assert spread > 0
    fast = losses(1, speed=SpeedSettings(compile="blocks", fold="on"))
    exact = np.array(on_ranks(1, _learn, _config(tmp_path, small_set, backbone=backbone))[0][0])
    assert np.abs(fast - runs.mean(axis=0)).max() <= 2 * spread
    assert np.abs(runs - exact).max() <= 0.01 * exact.max()


@pytest.mark.slow
def test_folded_and_compiled_in_bf16_errs_no_more_than_plain_bf16(tmp_path, small_set):
    """With BatchNorm, which the test above cannot have; errors are those of a run in float32."""
    runs = {"exact": {}, "plain": {"precision": "bf16"},
            "fast": {"precision": "bf16", "speed": SpeedSettings(compile="blocks", fold="on")}}
    losses = {name: np.array(_learn(Ranks(), _config(tmp_path, small_set, micro_batches=1, **changed))[0])
              for name, changed in runs.items()}
    plain, fast = (np.abs(losses[name] - losses["exact"]).max() for name in ("plain", "fast"))
    assert 0 < fast <= 2 * plain + 1e-4 * losses["exact"].max()


@pytest.mark.slow
def test_a_compiled_run_goes_on_as_one_that_was_not_stopped(tmp_path, small_set):
    """To the bit, with dropout; and a plain run goes on from what it saved."""
    backbone = BackboneSettings("small", 32, dropout=0.3)
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
        train(_config(tmp_path / str(number), small_set, speed, evaluation=evaluation), Ranks()).scores
        for number, speed in enumerate([PLAIN, SpeedSettings(compile="blocks")])
    ]
    assert scores[0][0]["mean_norm"] == pytest.approx(scores[1][0]["mean_norm"], rel=1e-3)


_WITHOUT_COMPILER = """
import torch
from recognition.backbones.iresnet import Block
from recognition.distributed import Ranks
from recognition.speed import try_compiled
network = Block(4, 4, 1, "batch")
def run(): network(torch.ones(2, 4, 8, 8)).sum().backward()
print("auto:", try_compiled("blocks", [network], run, Ranks(), asked=False))
run()
try_compiled("whole", [network], run, Ranks(), asked=True)
"""


@pytest.mark.slow
def test_without_a_compiler_auto_goes_on_and_an_explicit_way_says_what_is_missing(tmp_path):
    environment = os.environ | {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
                                "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", _WITHOUT_COMPILER], env=environment, capture_output=True, text=True,
                          check=False)
    assert done.stdout.strip() == "auto: off"
    assert "SettingsError: speed.compile=whole fails here" in done.stderr
