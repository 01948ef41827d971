"""The plain heads compute what the sharded head computes: a fair opponent."""

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.baseline.head import FullSoftmax, PartialFC
from recognition.distributed import Ranks, gather_uneven_rows
from recognition.heads.margins import ArcFace, CosFace
from recognition.heads.sharded import HeadSettings, ShardedHead

CLASSES, SIZE, BATCH = 53, 256, 8
MARGINS = {"arcface": ArcFace(), "cosface": CosFace()}


def _problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(BATCH, SIZE, generator=generator) * 3, torch.tensor([0, 52, 10, 10, 27, 26, 9, 30])


def _both(ranks: Ranks, margin: str, kind: type[PartialFC]) -> list[list[np.ndarray]]:
    """Third step's loss and embedding gradient, weight and momentum after it: the sharded head's, the baseline's."""
    ours = ShardedHead(HeadSettings(MARGINS[margin]), CLASSES, SIZE, ranks, seed=1)
    ours.weight.mul_(30)
    plain = kind(ours.weight.clone(), CLASSES, margin, ranks)
    embedding, label = _problem()
    share = BATCH // ranks.world_size
    own = slice(ranks.rank * share, (ranks.rank + 1) * share)
    for step in range(3):
        result = ours.step(embedding[own], label[own], step, lr=0.1)
        loss, gradient = plain.step(embedding[own], label[own], lr=0.1)
    state = ours.state()
    pairs = ([result.loss, result.embedding_gradient, state["weight"], state["velocity"]],
             [loss, gradient, plain.weight.detach(), plain.momentum])
    return [[first.numpy(), *(gather_uneven_rows(x, ranks).numpy() for x in others)] for first, *others in pairs]


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize(("world", "kind"), [(1, PartialFC), (2, PartialFC), (1, FullSoftmax)])
def test_equals_the_sharded_head(on_ranks, world, margin, kind):
    for ours, plain in on_ranks(world, _both, margin, kind):
        for mine, other in zip(ours, plain, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def _sampled(update: str) -> tuple[PartialFC, Tensor, Tensor, Tensor]:
    before = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(4)) / 100
    plain = PartialFC(before.clone(), CLASSES, sample_rate=0.4, sampled_update=update, weight_decay=0.0)
    torch.manual_seed(7)
    loss, gradient = plain.step(*_problem(), lr=1.0)
    return plain, before, loss, gradient


@pytest.mark.parametrize("update", ["rows", "dense"])
def test_sampled_equals_full_over_the_rows_present(update):
    plain, before, loss, gradient = _sampled(update)
    used = (plain.weight != before).any(dim=1).nonzero().squeeze(1)
    embedding, label = _problem()
    assert len(used) == int(0.4 * CLASSES)
    assert set(label.tolist()) <= set(used.tolist())
    part = FullSoftmax(before[used].clone(), len(used), weight_decay=0.0)
    part_loss, part_gradient = part.step(embedding, torch.searchsorted(used, label), lr=1.0)
    torch.testing.assert_close(loss, part_loss)
    torch.testing.assert_close(gradient, part_gradient)
    torch.testing.assert_close(plain.weight[used], part.weight)
    torch.testing.assert_close(plain.momentum[used], part.momentum)


def test_only_the_dense_update_drifts_unsampled_centers():
    """The second step's rows differ; momentum of the first step moves the others where SGD sees all centres."""
    moved = {}
    for update in ("rows", "dense"):
        plain, *_ = _sampled(update)
        first = plain.weight.detach().clone()
        plain.step(*_problem(), lr=1.0)
        moved[update] = int((plain.weight != first).any(dim=1).sum())
    assert moved["rows"] == int(0.4 * CLASSES) < moved["dense"]
