"""Steps in parts against steps at once, what BatchNorm and dropout see, and what a bad step leaves."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recognition import distributed
from recognition.assembly import Run, assemble
from recognition.backbones import BackboneSettings, build
from recognition.batch_statistics import BatchStatistics
from recognition.config import Config, DataSettings
from recognition.data.batch import normalise
from recognition.distributed import Ranks, gather_uneven_rows
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.memory import QAFace
from recognition.micro_batches import MicroBatches
from recognition.optimizer import OptimizerSettings
from recognition.schedule import ScheduleSettings
from recognition.state import replicated_state
from recognition.train import train_step

GROUP = BackboneSettings("tiny", 32, norm="group")


def _config(root: Path, parts: int, backbone: BackboneSettings, **changed: Any) -> Config:
    """Scale, rate and clipping at which rounding is not amplified; injection from the third step on."""
    config = Config(
        "run", batch_size=16, micro_batches=parts, epochs=2, backbone=backbone,
        data=DataSettings(str(root), reader="fallback"),
        head=HeadSettings(ArcFace(s=8.0, m=0.3), inject=QAFace(start_epoch=0.2, stat_momentum=0.6)),
        optimizer=OptimizerSettings(lr=0.003, clip_norm=1.0), schedule=ScheduleSettings("cosine"),
    )
    return dataclasses.replace(config, **changed)


def _state(run: Run) -> dict[str, np.ndarray]:
    state = {name: tensor.detach().clone().numpy() for name, tensor in replicated_state(run).items()}
    return state | {name: gather_uneven_rows(rows, run.ranks).numpy() for name, rows in run.head.state().items()}


def _steps(ranks: Ranks, config: Config, count: int) -> tuple[list[tuple[float, float]], dict[str, np.ndarray]]:
    """Loss and gradient norm of each step, and the state after the last."""
    run = assemble(config, ranks)
    figures = [train_step(run, batch, float(run.rates[run.step])) for batch in run.loader.batches(0, count)]
    return [(step.loss.item(), step.gradient_norm.item()) for step in figures], _state(run)


@pytest.mark.parametrize(("world", "parts"), [(1, 4), (2, 2), (2, 8)])
def test_steps_in_parts_equal_steps_at_once(on_ranks, small_set, world, parts):
    """Three steps without batch statistics, with QAFace: losses, gradients, and all of the state with its memory.

    Later, rounding takes an activation over PReLU's kink, which is a jump of 1e-5. Without kinks, five steps are
    compared with an independent reference in test_injection_step.py.
    """
    whole = on_ranks(world, _steps, _config(small_set, 1, GROUP), 3)
    cut = on_ranks(world, _steps, _config(small_set, parts, GROUP), 3)
    for (expected_figures, expected), (figures, state) in zip(whole, cut, strict=True):
        np.testing.assert_allclose(figures, expected_figures, rtol=1e-5)
        assert state.keys() == expected.keys()
        for group in {name.split(".")[0] for name in expected}:  # a bias alone, near zero, is all rounding
            names = [name for name in expected if name.split(".")[0] == group]
            tolerance = 1e-5 * max(np.abs(expected[name]).max() for name in names)
            for name in names:
                np.testing.assert_allclose(state[name], expected[name], rtol=0, atol=tolerance, err_msg=name)
        assert state["stamp"].max() == 2
        assert not np.array_equal(state["memory"], np.zeros_like(state["memory"]))


def _gradients(ranks: Ranks, parts: int) -> dict[str, np.ndarray]:
    """The backbone's gradients, summed over ranks, of a sum of embeddings with weights of their own."""
    torch.manual_seed(0)
    backbone = build(GROUP)
    replica = distributed.replicate(backbone, ranks, torch.zeros(1, 3, 112, 112))
    generator = torch.Generator().manual_seed(ranks.rank)
    image, gradient = torch.rand(8, 3, 112, 112, generator=generator), torch.randn(8, 32, generator=generator)
    batch = MicroBatches(image, parts, replica, torch.float32, lambda part: None)
    batch.embed(BatchStatistics(backbone, ranks))
    batch.back_propagate(gradient)
    return {name: p.grad.numpy() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("world", [1, 2])
def test_gradients_of_parts_add_up_once_over_ranks(on_ranks, world):
    expected = on_ranks(world, _gradients, 1)[0]
    assert expected
    for gradients in on_ranks(world, _gradients, 4):
        assert gradients.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(gradients[name], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=name)


def _exchanges(ranks: Ranks, parts: int) -> int:
    """How often a step's passes send something: once a bucket of gradients, where each is sent once."""
    all_reduce, sent = distributed.dist.all_reduce, []

    def counted(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sent.append(tensor.shape)
        return all_reduce(tensor, *arguments, **options)

    backbone = build(GROUP)
    replica = distributed.replicate(backbone, ranks, torch.zeros(1, 3, 112, 112))
    batch = MicroBatches(torch.rand(4, 3, 112, 112), parts, replica, torch.float32, lambda part: None)
    distributed.dist.all_reduce = counted
    try:
        batch.embed(BatchStatistics(backbone, ranks))
        batch.back_propagate(torch.ones(4, 32))
    finally:
        distributed.dist.all_reduce = all_reduce
    return len(sent)


def test_ranks_exchange_gradients_once(on_ranks):
    whole = on_ranks(2, _exchanges, 1)
    assert min(whole) > 0
    assert on_ranks(2, _exchanges, 4) == whole


def _one_step(ranks: Ranks, config: Config) -> tuple[list[np.ndarray], np.ndarray, dict, dict]:
    """A step: what the backbone returned, call by call; the images; its buffers before and after."""
    run = assemble(config, ranks)
    batch = next(iter(run.loader.batches(0, 1)))
    before = {name: buffer.clone() for name, buffer in run.backbone.named_buffers()}
    returned: list[np.ndarray] = []
    run.backbone.register_forward_hook(lambda module, images, output: returned.append(output.detach().numpy().copy()))
    train_step(run, batch, lr=0.01)
    after = {name: buffer.clone() for name, buffer in run.backbone.named_buffers()}
    return returned, batch.image.numpy(), before, after


@pytest.mark.parametrize("world", [1, 2])
def test_running_statistics_move_once_a_part_and_see_it_alone(on_ranks, small_set, world):
    results = on_ranks(world, _one_step, _config(small_set, 2, BackboneSettings("tiny", 32)))
    buffers = []
    for returned, images, before, _ in results:
        torch.manual_seed(0)  # the run's
        expected = build(BackboneSettings("tiny", 32)).to(memory_format=torch.channels_last)
        expected.load_state_dict(expected.state_dict() | before)
        outputs = [expected(part).detach().numpy() for part in normalise(torch.from_numpy(images)).chunk(2)]
        np.testing.assert_array_equal(returned, [*outputs, *outputs])
        buffers.append(dict(expected.named_buffers()))
    for *_, after in results:
        for name, buffer in after.items():
            if buffer.is_floating_point():
                mean = sum(each[name] for each in buffers) / world
                torch.testing.assert_close(buffer, mean, rtol=1e-6, atol=1e-7)
            else:
                assert buffer == 2, name


@pytest.mark.parametrize("batch_norm", ["average", "train"])  # "train": the momentum backbone draws dropout, too
def test_dropout_draws_the_same_in_both_passes(on_ranks, small_set, batch_norm):
    inject = QAFace(start_epoch=0.2, momentum_batch_norm=batch_norm)
    config = _config(small_set, 4, dataclasses.replace(GROUP, dropout=0.5))
    config = dataclasses.replace(config, head=dataclasses.replace(config.head, inject=inject))
    drawn, *_ = _one_step(Ranks(), config)
    np.testing.assert_array_equal(drawn[:4], drawn[4:])
    plain, *_ = _one_step(Ranks(), _config(small_set, 4, GROUP))
    assert not np.array_equal(drawn[0], plain[0])
    # And not in all parts: equal images in two parts get other embeddings.
    run = assemble(config, Ranks())
    batch = next(iter(run.loader.batches(0, 1)))
    same = dataclasses.replace(batch, image=batch.image[:4].repeat(4, 1, 1, 1))
    returned: list[Tensor] = []
    run.backbone.register_forward_hook(lambda module, images, output: returned.append(output.detach()))
    train_step(run, same, lr=0.01)
    assert not torch.equal(returned[0], returned[1])


def _bad_step(ranks: Ranks, config: Config) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], bool]:
    """The state before and after a step in which the second part on the last rank is not finite, in both passes."""
    run = assemble(config, ranks)
    first, second = run.loader.batches(0, 2)
    train_step(run, first, lr=0.01)
    calls = iter(range(4))

    def spoil(module: nn.Module, x: tuple[Tensor], output: Tensor) -> Tensor:
        return output * torch.nan if next(calls) % 2 and ranks.rank == ranks.world_size - 1 else output

    run.backbone.get_submodule("fc").register_forward_hook(spoil)
    before = _state(run)
    figures = train_step(run, second, lr=0.01)
    assert next(calls, None) is None
    return before, _state(run), bool(figures.bad)


@pytest.mark.parametrize("world", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing(on_ranks, small_set, world):
    for before, after, bad in on_ranks(world, _bad_step, _config(small_set, 2, BackboneSettings("tiny", 32))):
        assert bad
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_mixed_precision_keeps_every_gradient(small_set):
    """Weights that a forward without a graph has cast must not be used in one with a graph."""
    (whole,), state = _steps(Ranks(), _config(small_set, 1, GROUP, precision="bf16"), 1)
    (cut,), cut_state = _steps(Ranks(), _config(small_set, 4, GROUP, precision="bf16"), 1)
    np.testing.assert_allclose(cut, whole, rtol=5e-3)
    for name, value in state.items():
        if name.startswith("optimizer.") and name.endswith("weight.momentum_buffer"):
            np.testing.assert_allclose(cut_state[name], value, rtol=0, atol=0.1 * np.abs(value).max(), err_msg=name)
