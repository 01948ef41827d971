"""A shard's storage: tiles read and written, bf16 rounded once, skipped decay, what a checkpoint keeps."""

import pytest
import torch

from recognition.distributed import Ranks
from recognition.heads.margins import ArcFace, SubCenter
from recognition.heads.passes import class_bytes
from recognition.heads.row_optimizers import RowAdagrad, RowAdamW, RowOptimizer, RowSGD
from recognition.heads.sharded import HeadSettings, ShardedHead
from recognition.memory import QAFace

CLASSES, SIZE, BATCH = 50, 8, 6
OPTIMIZERS = [RowSGD(), RowAdamW(), RowAdagrad(weight_decay=0.1)]


def _train(
    settings: HeadSettings, steps: int = 6, lr: float = 0.1, dtype: torch.dtype = torch.float32
) -> ShardedHead:
    head = ShardedHead(settings, CLASSES, SIZE, Ranks(), seed=1, batch_size=BATCH, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        embedding = torch.randn(BATCH, SIZE, generator=generator)
        label = torch.randint(0, CLASSES, (BATCH,), generator=generator)
        result = head.step(embedding, label, step, lr)
        assert result.finite
        head.remember(result, embedding, step, result.finite)
    return head


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_tiles_change_nothing(optimizer: RowOptimizer, rate: float):
    whole, tiled = (
        _train(
            HeadSettings(ArcFace(), rate, optimizer, tile_bytes=width * class_bytes(BATCH, SIZE, itemsize=8)),
            dtype=torch.float64,
        ).state()
        for width in (CLASSES, 7)
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, tiled[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda x: type(x).__name__)
def test_bf16_storage_follows_float32(optimizer: RowOptimizer):
    exact, stored = (
        _train(HeadSettings(ArcFace(s=16.0), 1.0, optimizer, inject=QAFace(start_epoch=0), storage=kind), lr=0.002)
        for kind in ("fp32", "bf16")
    )
    assert stored.memory is not None
    assert stored.weight.dtype == stored.memory.rows.dtype == torch.bfloat16
    cosine = torch.cosine_similarity(stored.weight.float(), exact.weight, dim=1)
    assert cosine.min() > 0.99
    assert sum(t.nbytes for t in stored.state().values()) < 0.7 * sum(t.nbytes for t in exact.state().values())


def test_bf16_state_is_at_most_three_thousand_bytes_a_class():
    head = ShardedHead(HeadSettings(ArcFace(), inject=QAFace(), storage="bf16"), 4, 512, Ranks())
    assert sum(tensor.nbytes for tensor in head.state().values()) / 4 <= 3100


def test_bf16_rounding_is_a_function_of_seed_and_step():
    settings = HeadSettings(ArcFace(), 0.5, storage="bf16")
    first, again = _train(settings), _train(settings)
    assert all(torch.equal(tensor, again.state()[name]) for name, tensor in first.state().items())


@pytest.mark.parametrize("storage", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("margin", [ArcFace(), SubCenter()], ids=lambda x: type(x).__name__)
def test_unused_classes_do_not_change_by_a_bit(optimizer, margin, storage):
    settings = HeadSettings(margin, 0.2, optimizer, storage=storage, catch_up_decay=True)
    head = ShardedHead(settings, CLASSES, SIZE, Ranks())
    label = torch.tensor([3, 3, 7, 9, 40, 41])
    for step in range(3):
        index = head.rows(label, step).index
        before = {name: tensor.clone() for name, tensor in head.state().items()}
        head.step(torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(step)), label, step, 0.1)
        unused = torch.ones(CLASSES, dtype=torch.bool)
        unused[index] = False
        assert unused.sum() == CLASSES - 10
        for name, tensor in head.state().items():
            assert torch.equal(tensor[unused], before[name][unused]), name
        assert not torch.equal(head.state()["weight"][label], before["weight"][label])


@pytest.mark.parametrize("storage", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_a_step_that_is_not_finite_changes_nothing(optimizer, storage, rate):
    head = _train(HeadSettings(ArcFace(), rate, optimizer, storage=storage, catch_up_decay=True))
    before = {name: tensor.clone() for name, tensor in head.state().items()}
    result = head.step(torch.full((BATCH, SIZE), torch.nan), torch.arange(BATCH), 6, 0.1)
    assert not result.finite
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state().items())


def test_skipped_decay_is_made_up_for():
    """A class used at steps 0 and 5 alone has then decayed as if it had been used in between, gradients aside."""
    decay, lr = 0.1, 0.1
    optimizer = RowSGD(momentum=0.0, weight_decay=decay)
    lengths = {}
    for catch_up in (False, True):
        settings = HeadSettings(ArcFace(s=0.01, m=0.0), 0.02, optimizer, catch_up_decay=catch_up)
        head = ShardedHead(settings, CLASSES, SIZE, Ranks(), seed=1)
        head.weight.mul_(100)
        start = head.weight[7].norm()
        for step, label in enumerate([7, 3, 3, 3, 3, 7]):
            head.step(torch.ones(1, SIZE), torch.tensor([label]), step, lr)
        lengths[catch_up] = (head.weight[7].norm() / start).item()
    assert lengths[False] == pytest.approx((1 - lr * decay) ** 2, rel=1e-3)
    assert lengths[True] == pytest.approx((1 - lr * decay) ** 6, rel=1e-3)


def test_what_is_stored_of_sub_centers_is_by_class():
    head = ShardedHead(HeadSettings(SubCenter(centers_per_class=4, drop_degrees=75.0)), CLASSES, SIZE, Ranks())
    shapes = {name: tuple(tensor.shape) for name, tensor in head.state().items()}
    assert shapes == {"weight": (CLASSES, 4, SIZE), "velocity": (CLASSES, 4, SIZE), "chosen": (CLASSES, 4)}
    assert head.state()["weight"].data_ptr() == head.weight.data_ptr()
