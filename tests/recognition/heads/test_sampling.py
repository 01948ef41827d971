"""Sampled classes: all of the batch, others equally likely, distinct, in fixed shapes, other ones on every rank."""

import numpy as np
import pytest
import torch

from recognition.distributed import Ranks
from recognition.heads.margins import ArcFace
from recognition.heads.sampling import Rows, pick_rows
from recognition.heads.sharded import HeadSettings, ShardedHead

CLASSES = 40
LABELS = [[2], [2, 50, 2, 39, 7], [-3, 40, 99], list(range(40)), [0, 0, 0, 0], [39, 38, 37, 0]]


def _pick(label: list[int], rate: float, seed: int, classes: int = CLASSES) -> Rows:
    return pick_rows(torch.tensor(label), classes, rate, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 0.75, 0.97])
@pytest.mark.parametrize("label", LABELS)
def test_positives_are_there_and_no_class_twice(label, rate):
    owned = sorted({x for x in label if 0 <= x < CLASSES})
    for seed in range(50):
        rows = _pick(label, rate, seed)
        if rows.index is None:
            assert rows.count == CLASSES
            assert rows.column.tolist() == [x if x in owned else -1 for x in label]
            continue
        index = rows.index.tolist()
        assert rows.count == len(index) == len(set(index)) == max(min(len(label), CLASSES), int(rate * CLASSES))
        assert min(index) >= 0
        assert max(index) < CLASSES
        assert index[: len(owned)] == owned
        found = [index[place] if place >= 0 else None for place in rows.column.tolist()]
        assert found == [x if x in owned else None for x in label]


@pytest.mark.parametrize("label", [[2, 39, 7, 2], [0, 1, 2, 3], [50, 60]])
@pytest.mark.parametrize("rate", [0.1, 0.25, 0.6])
def test_every_other_class_is_equally_likely(label, rate):
    counts, draws = np.zeros(CLASSES), 4000
    for seed in range(draws):
        rows = _pick(label, rate, seed)
        assert rows.index is not None
        counts[rows.index.numpy()] += 1
    owned = sorted({x for x in label if x < CLASSES})
    assert (counts[owned] == draws).all()
    share = (rows.count - len(owned)) / (CLASSES - len(owned))
    others = np.delete(counts, owned)
    assert np.abs(others - draws * share).max() <= 5 * np.sqrt(draws * share * (1 - share)) + 1e-9


def test_pairs_of_classes_are_drawn_together_about_as_often_as_by_chance():
    """Not exactly: neighbours a little less. Over pairs farther apart the ratio to independent draws is near one."""
    together, draws = np.zeros((CLASSES, CLASSES)), 4000
    for seed in range(draws):
        rows = _pick([99], 0.5, seed)
        assert rows.index is not None
        mask = np.zeros(CLASSES)
        mask[rows.index.numpy()] = 1
        together += np.outer(mask, mask)
    far = [(i, (i + gap) % CLASSES) for gap in (3, 7, 20) for i in range(CLASSES)]
    chance = draws * 0.5 * 19 / 39
    assert np.abs(np.mean([together[pair] for pair in far]) / chance - 1) < 0.1
    assert all(together[i, (i + 1) % CLASSES] > 0.4 * chance for i in range(CLASSES))


def test_weights_make_the_sum_stand_for_all_classes():
    rows = _pick([3, 3, 8], 0.25, 1)
    assert rows.weight is not None
    assert rows.weight.sum().item() == pytest.approx(CLASSES)
    assert (rows.weight[:2] == 1).all()


def test_a_shard_smaller_than_the_batch_is_used_whole():
    rows = _pick([0, 1, 2, 5, 6, 7], 0.5, 0, classes=3)
    assert rows.index is None
    assert rows.count == 3


def test_streams_differ_by_rank_and_step():
    def drawn(rank: int, step: int) -> list[int]:
        head = ShardedHead(HeadSettings(ArcFace(), sample_rate=0.3), 64, 4, Ranks(rank=rank, world_size=2))
        rows = head.rows(torch.tensor([0, 63]), step)
        assert rows.index is not None
        return rows.index.tolist()

    assert drawn(0, 1) == drawn(0, 1)
    assert drawn(0, 1) != drawn(0, 2)
    assert drawn(0, 1) != drawn(1, 1)
