"""The sharded head against a dense float64 head, on 1, 2 and 4 processes with uneven shards."""

import numpy as np
import pytest
import torch
from torch import Tensor

from recognition import distributed
from recognition.distributed import Ranks, gather_uneven_rows
from recognition.heads import row_optimizers
from recognition.heads.margins import MARGINS, ArcFace, Combined, CosFace, Margin, NormFace
from recognition.heads.passes import class_bytes
from recognition.heads.row_optimizers import RowSGD
from recognition.heads.sharded import TILE_BYTES, HeadSettings, ShardedHead
from recognition.memory import Injection, QAFace

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


class _WithoutValues(ShardedHead):
    """A head on tensors that have shapes but no values; there are no random streams for such."""

    def _generator(self, *key: int) -> None:
        return None


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("name", MARGINS)
def test_nothing_is_read_on_the_host(name, rate, monkeypatch):
    """Asking a tensor without values for one raises: on a GPU it would be a wait for the device.

    torch's fused optimiser kernel, which takes its flag on the device, is the one thing that cannot run without values.
    """
    monkeypatch.setattr(row_optimizers, "_gated_sgd", lambda *_, **__: None)
    monkeypatch.setitem(TILE_BYTES, "meta", 1 << 14)
    settings = {"broadface": {"queue": 10}, "subcenter": {"drop_degrees": 75.0}}.get(name, {})
    inject = Injection() if name == "subcenter" else QAFace()
    head_settings = HeadSettings(
        MARGINS[name](**settings), 1.0 if name == "broadface" else rate, inject=inject, catch_up_decay=True,
        ignore_above=0.9,
    )
    head = _WithoutValues(head_settings, 200, SIZE, Ranks(device=torch.device("meta")))
    embedding, label = torch.empty(BATCH, SIZE, device="meta"), torch.empty(BATCH, dtype=torch.int64, device="meta")
    result = head.step(embedding, label, step=0, lr=0.1)
    head.remember(result, embedding, 0, result.finite)
    assert result.embedding_gradient.shape == (BATCH, SIZE)


def _collectives(ranks: Ranks, name: str, rate: float) -> list[tuple[str, tuple[int, ...]]]:
    """What a step sends, as (operation, shape)."""
    settings = {"broadface": {"queue": 10}, "arcface": {"s": 100.0} if rate == 0.5 else {}}.get(name, {})
    head = ShardedHead(HeadSettings(MARGINS[name](**settings), rate), CLASSES, SIZE, ranks, seed=1)
    sent = []
    real = {operation: getattr(distributed, operation) for operation in ("_all_gather", "_reduce_scatter")}
    all_reduce = distributed.dist.all_reduce

    def counted(operation, function):
        def call(tensor, *arguments, **options):
            sent.append((operation, tuple(tensor.shape)))
            return function(tensor, *arguments, **options)

        return call

    embedding, label = _problem()
    share = BATCH // ranks.world_size
    own = slice(ranks.rank * share, (ranks.rank + 1) * share)
    try:
        for operation, function in real.items():
            setattr(distributed, operation, counted(operation, function))
        distributed.dist.all_reduce = counted("all_reduce", all_reduce)
        head.step(embedding[own], label[own], step=0, lr=0.1)
    finally:
        for operation, function in real.items():
            setattr(distributed, operation, function)
        distributed.dist.all_reduce = all_reduce
    return sent


PLAIN_COLLECTIVES = [("_all_gather", (BATCH, SIZE)), ("_all_gather", (BATCH,)), ("_reduce_scatter", (BATCH // 2, SIZE))]
BEYOND = {
    "curricularface": [(BATCH, 1), (BATCH,), (BATCH, 1)],
    "mvsoftmax": [(BATCH, 1), (BATCH, 1)],
    "adacos": [(BATCH, 1), (BATCH, 1), (BATCH, 1)],
    "circle": [(BATCH,), (BATCH, 2)],
    "sphereface2": [(BATCH, 3)],
    "uniface": [(BATCH, 3)],
    "broadface": [(10 + BATCH, SIZE), (10 + BATCH, 2)],
}


@pytest.mark.parametrize("name", MARGINS)
def test_one_softmax_collective_a_step_but_for_the_margins_that_need_more(on_ranks, name):
    for sent in on_ranks(2, _collectives, name, 1.0):
        assert [call for call in sent if call[0] != "all_reduce"] == PLAIN_COLLECTIVES
        reduced = [shape for operation, shape in sent if operation == "all_reduce"]
        assert reduced == BEYOND.get(name, [(BATCH, 2)])


def test_a_scale_beyond_float32_takes_one_collective_more(on_ranks):
    for sent in on_ranks(2, _collectives, "arcface", 0.5):
        assert [shape for operation, shape in sent if operation == "all_reduce"] == [(BATCH,), (BATCH, 2)]


@pytest.mark.gpu
@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("name", MARGINS)
def test_a_step_on_cuda_waits_for_nothing(name, rate):
    """torch's own check of synchronising calls, where there is a GPU."""
    device = torch.device("cuda", 0)
    settings = {"broadface": {"queue": 10}, "subcenter": {"drop_degrees": 75.0}}.get(name, {})
    inject = Injection() if name == "subcenter" else QAFace(start_epoch=0)
    head_settings = HeadSettings(MARGINS[name](**settings), 1.0 if name == "broadface" else rate, inject=inject)
    head = ShardedHead(head_settings, 2000, 64, Ranks(device=device), product_dtype=torch.bfloat16)
    embedding, label = torch.randn(16, 64, device=device), torch.arange(16, device=device)
    try:
        for step in range(3):
            result = head.step(embedding, label, step, lr=0.1)
            head.remember(result, embedding, step, result.finite)
            torch.cuda.set_sync_debug_mode("error")  # the first step may compile kernels and allocate
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.finite
