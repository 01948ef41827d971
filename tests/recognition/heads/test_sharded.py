"""The sharded head against a dense float64 head, on 1, 2 and 4 processes with uneven shards."""

import numpy as np
import pytest
import torch
from torch import Tensor

from recognition.distributed import Ranks, gather_uneven_rows
from recognition.heads.margins import ArcFace, Combined, CosFace, Margin, NormFace
from recognition.heads.passes import class_bytes
from recognition.heads.row_optimizers import RowSGD
from recognition.heads.sharded import HeadSettings, ShardedHead

CLASSES, SIZE, BATCH = 37, 16, 8
CLASS_BYTES = class_bytes(BATCH, SIZE)
PLAIN = RowSGD(momentum=0.0, weight_decay=0.0)
MARGIN_CASES = [ArcFace(), CosFace(), Combined(), NormFace(s=120.0), ArcFace(s=100.0)]


def _problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    embedding = torch.randn(BATCH, SIZE, generator=generator) * 3
    label = torch.tensor([0, 36, 10, 10, 18, 19, 9, 30])
    return embedding.to(dtype), label


def _head(ranks: Ranks, settings: HeadSettings) -> ShardedHead:
    head = ShardedHead(settings, CLASSES, SIZE, ranks, seed=1)
    head.weight.mul_(30)  # away from the origin, where a step of lr 1 is small
    return head


def _dense(weight: Tensor, margin: Margin, rows: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss and gradients in float64 by autograd over the classes `rows`, formulas written out again."""
    embedding, label = _problem(torch.float64)
    weight = weight.double().requires_grad_()
    embedding.requires_grad_()
    used = torch.from_numpy(rows)
    cosine = torch.nn.functional.normalize(embedding) @ torch.nn.functional.normalize(weight[used]).T
    column = torch.searchsorted(used, label)
    c = cosine[torch.arange(BATCH), column]
    if isinstance(margin, ArcFace):
        theta = torch.acos(c)
        target = torch.where(theta + margin.m < torch.pi, torch.cos(theta + margin.m), c - margin.m * np.sin(margin.m))
    elif isinstance(margin, CosFace):
        target = c - margin.m
    elif isinstance(margin, Combined):
        target = torch.cos(torch.acos(c) + margin.m2) - margin.m3
    else:
        target = c
    logit = cosine.clone()
    logit[torch.arange(BATCH), column] = target
    loss = torch.nn.functional.cross_entropy(logit * margin.s, column)
    loss.backward()
    assert embedding.grad is not None
    assert weight.grad is not None
    return loss.item(), embedding.grad.numpy(), weight.grad.numpy()


def _one_step(ranks: Ranks, settings: HeadSettings) -> dict[str, np.ndarray]:
    """One step with plain SGD of rate 1, so that −Δw is the centres' gradient."""
    head = _head(ranks, settings)
    before = head.weight.clone()
    embedding, label = _problem()
    share = BATCH // ranks.world_size
    own = slice(ranks.rank * share, (ranks.rank + 1) * share)
    index = head.rows(label, 3).index
    used = torch.arange(len(before)) if index is None else index
    result = head.step(embedding[own], label[own], step=3, lr=1.0)
    return {
        "loss": result.loss.numpy(),
        "finite": result.finite.numpy(),
        "embedding_gradient": result.embedding_gradient.numpy(),
        "weight": gather_uneven_rows(before, ranks).numpy(),
        "weight_gradient": gather_uneven_rows(before - head.weight, ranks).numpy(),
        "unmoved": gather_uneven_rows((before == head.weight).all(dim=1), ranks).numpy(),
        "used": np.sort(gather_uneven_rows(used + head.start, ranks).numpy()),
    }


def _compare(results: list[dict[str, np.ndarray]], margin: Margin) -> None:
    first = results[0]
    loss, embedding_gradient, weight_gradient = _dense(torch.from_numpy(first["weight"]), margin, first["used"])
    assert first["loss"] == pytest.approx(loss, rel=2e-6)
    got = np.concatenate([result["embedding_gradient"] for result in results])
    for mine, dense in ((got, embedding_gradient), (first["weight_gradient"], weight_gradient)):
        np.testing.assert_allclose(mine, dense, rtol=1e-4, atol=2e-6 * np.abs(dense).max() + 1e-7)
    assert all(result["loss"] == first["loss"] and result["finite"] for result in results)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("margin", MARGIN_CASES, ids=str)
@pytest.mark.parametrize("tile_bytes", [1 << 28, 3 * CLASS_BYTES], ids=["one tile", "tiles of 3"])
def test_equals_dense(on_ranks, world, margin, tile_bytes):
    settings = HeadSettings(margin, optimizer=PLAIN, tile_bytes=tile_bytes)
    _compare(on_ranks(world, _one_step, settings), margin)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_sampled_equals_dense_over_the_rows_present(on_ranks, world, rate):
    settings = HeadSettings(ArcFace(), sample_rate=rate, optimizer=PLAIN, tile_bytes=4 * CLASS_BYTES)
    results = on_ranks(world, _one_step, settings)
    _compare(results, ArcFace())
    used = results[0]["used"]
    assert set(_problem()[1].tolist()) <= set(used.tolist())
    assert len(used) < CLASSES


@pytest.mark.parametrize("world", [1, 2])
def test_unsampled_rows_do_not_change_by_a_bit(on_ranks, world):
    settings = HeadSettings(ArcFace(), sample_rate=0.3, optimizer=RowSGD(weight_decay=5e-2))
    first = on_ranks(world, _one_step, settings)[0]
    moved = np.flatnonzero(~first["unmoved"])
    assert set(moved.tolist()) == set(first["used"].tolist())


def _many_steps(ranks: Ranks, settings: HeadSettings) -> np.ndarray:
    head = _head(ranks, settings)
    embedding, label = _problem()
    share = BATCH // ranks.world_size
    own = slice(ranks.rank * share, (ranks.rank + 1) * share)
    for step in range(10):
        head.step(embedding[own] * (1 + step), label[own], step, lr=0.1)
    return gather_uneven_rows(head.weight, ranks).numpy()


def test_centers_do_not_depend_on_the_number_of_ranks(on_ranks):
    settings = HeadSettings(ArcFace())
    alone = on_ranks(1, _many_steps, settings)[0]
    for world in (2, 4):
        np.testing.assert_allclose(on_ranks(world, _many_steps, settings)[0], alone, rtol=1e-4, atol=1e-6)


def test_gradient_of_a_large_scale_does_not_cancel():
    """At s = 64 a well-separated sample has loss e^-40; a subtracted log-sum-exp would say 0 or worse."""
    head = ShardedHead(HeadSettings(NormFace(s=64.0)), 2, 2, Ranks())
    head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    result = head.step(torch.tensor([[5.0, 1.0]]), torch.tensor([0]), step=0, lr=0.0)
    gap = 64 * (5 - 1) / np.sqrt(26)
    assert result.loss.item() == pytest.approx(np.log1p(np.exp(-gap)), rel=1e-4)
    assert result.embedding_gradient.abs().max() > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_not_finite_changes_nothing_and_says_so(bad):
    head = ShardedHead(HeadSettings(ArcFace()), CLASSES, SIZE, Ranks())
    before = {name: tensor.clone() for name, tensor in head.state().items()}
    embedding, label = _problem()
    embedding[3, 2] = bad
    result = head.step(embedding, label, step=0, lr=0.1)
    assert not result.finite
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state().items())


def test_zero_embedding_has_finite_gradient():
    head = ShardedHead(HeadSettings(ArcFace()), CLASSES, SIZE, Ranks())
    embedding, label = _problem()
    embedding[0] = 0
    result = head.step(embedding, label, step=0, lr=0.1)
    assert result.finite
    assert torch.isfinite(result.embedding_gradient).all()
    assert (result.embedding_gradient[0] == 0).all()
