"""CUDA graphs give what the kernels one by one give: losses of a run, folded and in parts, with random numbers."""

import dataclasses

import pytest
import torch

from recognition.assembly import assemble
from recognition.backbones import BackboneSettings
from recognition.config import Config, DataSettings
from recognition.distributed import ALONE, Ranks
from recognition.errors import SettingsError
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.memory import QAFace
from recognition.optimizer import OptimizerSettings
from recognition.speed import SpeedSettings
from recognition.train import train_step


def _config(small_set, **changed):
    config = Config(
        "graphs", batch_size=16, epochs=2, precision="fp32", data=DataSettings(str(small_set), reader="fallback"),
        backbone=BackboneSettings("mobilefacenet", 32, dropout=0.2), optimizer=OptimizerSettings(lr=0.003),
        head=HeadSettings(ArcFace(s=8.0, m=0.3), inject=QAFace(start_epoch=0.3)),
        speed=SpeedSettings(compile="off", tune=False),
    )
    return dataclasses.replace(config, **changed)


def test_graphs_need_a_gpu(small_set):
    with pytest.raises(SettingsError, match=r"speed\.graphs"):
        assemble(_config(small_set, speed=SpeedSettings(graphs=True)), ALONE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backbone", ["mobilefacenet", "iresnet18", "vit_t"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("compiled", ["off", "blocks"])
def test_a_run_of_graphs_has_the_losses_of_one_without(small_set, backbone, parts, compiled):
    ranks = Ranks(device=torch.device("cuda", torch.cuda.current_device()))
    losses = []
    for graphs in (False, True):
        speed = SpeedSettings(compile=compiled, graphs=graphs, tune=False)
        config = _config(small_set, backbone=BackboneSettings(backbone, 32, dropout=0.2), micro_batches=parts,
                         speed=speed)
        run = assemble(config, ranks)
        batches = run.loader.batches(0, 10)
        losses.append([train_step(run, batch, 0.003).loss.item() for batch in batches])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("graphs", [False, True])
def test_the_host_waits_for_the_device_in_no_step(small_set, graphs):
    ranks = Ranks(device=torch.device("cuda", torch.cuda.current_device()))
    run = assemble(_config(small_set, speed=SpeedSettings(compile="off", graphs=graphs)), ranks)
    try:
        for number, batch in enumerate(run.loader.batches(0, 6)):
            figures = train_step(run, batch, 0.003)
            run.guard.post(run.step, figures.bad)
            if number == 2:
                torch.cuda.set_sync_debug_mode("error")  # the first steps may compile kernels and allocate
    finally:
        torch.cuda.set_sync_debug_mode("default")
