"""The numbers that ranks exchange after each step: agreed by all, a step later, and what they give away."""

import pytest
import torch

from recognition.distributed import Ranks, sum_over_ranks
from recognition.errors import DistributedError
from recognition.guard import Guard, Verdict

WORLDS = (1, 2, 4)


def _verdicts(ranks: Ranks, late: bool) -> list[Verdict | None]:
    guard, last = Guard(ranks, late), ranks.world_size - 1
    found = []
    for step in (1, 2, 3):
        bad = torch.tensor(step == 2)
        # The last rank alone is asked to stop, rank 0 alone has the clock.
        found.append(guard.post(step, bad, stop=15 * (step == 3 and ranks.rank == last),
                                save=step == 2 and ranks.is_first))
    return [*found, guard.settle(), guard.settle()]


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_hear_of_what_one_wants(on_ranks, world):
    one, two, three = Verdict(1, 0, False, False), Verdict(2, 0, True, True), Verdict(3, 15, False, False)
    for found in on_ranks(world, _verdicts, False):
        assert found == [one, two, three, None, None]
    for found in on_ranks(world, _verdicts, True):
        assert found == [None, one, two, three, None]


def _ahead(ranks: Ranks, by: int) -> str:
    guard = Guard(ranks, late=True)
    guard.post(5 + by * (ranks.rank == 1), torch.tensor(False))
    try:
        guard.settle()
    except DistributedError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("by", [1, -1])
def test_a_rank_ahead_or_behind_is_found_by_all(on_ranks, by):
    for found in on_ranks(2, _ahead, by):
        assert "the ranks are out of step" in found


def _skips(ranks: Ranks) -> str:
    """Rank 1 leaves out one exchange; its guard then meets the others' sum, which has as many numbers."""
    guard, found = Guard(ranks, late=False), ""
    if ranks.rank == 0:
        sum_over_ranks(torch.arange(6), ranks)
    try:
        guard.post(1, torch.tensor(False))
    except DistributedError as error:
        found = str(error)
    if ranks.rank == 1:  # the exchange that rank 0's guard is in, so that the next test finds both in step
        sum_over_ranks(torch.zeros(6, dtype=torch.int64), ranks)
    return found


def test_a_skipped_collective_does_not_go_on_unnoticed(on_ranks):
    for found in on_ranks(2, _skips):
        assert "the ranks are out of step" in found


def _disagrees(ranks: Ranks) -> str:
    try:
        Guard(ranks, late=False).post(1, torch.tensor(ranks.rank == 1))
    except DistributedError as error:
        return str(error)
    return ""


def test_ranks_that_disagree_on_a_step_are_found(on_ranks):
    for found in on_ranks(2, _disagrees):
        assert "disagree on whether step 1 was finite" in found
