"""Sub-centres: the dominant one, and samples far from it that stop counting; on 1, 2 and 4 processes."""

from typing import Any

import numpy as np
import pytest
import torch

from recognition.distributed import Ranks, gather_uneven_rows
from recognition.heads.margins import SubCenter
from recognition.heads.row_optimizers import RowSGD
from recognition.heads.sharded import HeadSettings, ShardedHead

CLASSES, K = 6, 2
# Class 0: three samples near its first centre, one near its second, at a right angle to the first.
LABEL = torch.tensor([0, 0, 0, 0, 4, 5, 4, 5])


def _problem() -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.eye(CLASSES * K)
    return weight, weight[[0, 0, 0, 1, 8, 10, 8, 10]] * 3 + 0.01


def _steps(ranks: Ranks, drop_epoch: float) -> dict[str, Any]:
    margin = SubCenter(centers_per_class=K, s=8.0, drop_degrees=60.0, drop_epoch=drop_epoch)
    head = ShardedHead(HeadSettings(margin, optimizer=RowSGD(0.0, 0.0)), CLASSES, CLASSES * K, ranks, steps_per_epoch=2)
    weight, embedding = _problem()
    head.weight.copy_(weight[head.start * K : head.stop * K])
    share = len(LABEL) // ranks.world_size
    own = slice(ranks.rank * share, (ranks.rank + 1) * share)
    results = [head.step(embedding[own], LABEL[own], step, 1e-6) for step in range(3)]
    assert head.dominance is not None
    return {
        "length": [np.linalg.norm(result.embedding_gradient.numpy(), axis=1) for result in results],
        "loss": [result.loss.item() for result in results],
        "chosen": gather_uneven_rows(head.dominance.chosen, ranks).numpy(),
    }


@pytest.mark.parametrize("world", [1, 2, 4])
def test_far_samples_stop_counting_from_their_epoch_on(on_ranks, world):
    results = on_ranks(world, _steps, 1.0)
    chosen = results[0]["chosen"]
    assert chosen[0].tolist() == [9, 3]
    assert chosen[4].tolist() == [6, 0]
    length = [np.concatenate([result["length"][step] for result in results]) for step in range(3)]
    assert (length[0] > 0).all()
    assert (length[1] > 0).all()
    assert length[2][3] == 0
    assert (np.delete(length[2], 3) > 0).all()
    assert results[0]["loss"][2] < results[0]["loss"][1]


def test_nothing_is_dropped_without_the_setting():
    assert ShardedHead(HeadSettings(SubCenter()), CLASSES, 4, Ranks()).dominance is None
