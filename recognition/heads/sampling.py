"""Which classes of its shard a rank uses in a step: those of the batch, and random others, in fixed shapes.

The host never learns how many classes the batch holds, nothing of the shard's size is sorted or drawn, and the same
number of rows is used in every step.

    positives   the batch's classes on this shard, n of them, n ≤ m = min(B, C_r), known to the device alone
    negatives   k − n of the C_r − n others, k = max(m, ⌊rate·C_r⌋): the others, numbered in order from a random start,
                are cut into k − n nearly equal pieces and one is drawn from each

Pieces do not overlap, so no row is drawn twice; the random start makes every row equally likely, whatever the pieces'
sizes. Neighbours in number are drawn together a little less often than independent draws would have it.
Proven by tests/recognition/heads/test_sampling.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The classes of the shard that a step uses.

    index: [k] int64 classes of the shard, those of the batch first; None means all of them.
    column: [B] int64, the place among the used classes of each sample's class; −1 where another rank owns it.
    count: k, how many are used.
    weight: [k] what each used class stands for in a sum over all classes: 1 for those of the batch, for the others
    (C_r − n) / (k − n), float64; None where all are used.
    """

    index: Tensor | None
    column: Tensor
    count: int
    weight: Tensor | None = None

    def tile(self, low: int, high: int) -> Tensor | slice:
        """What selects the used classes [low, high) from a tensor of the shard's classes."""
        return slice(low, high) if self.index is None else self.index[low:high]


def pick_rows(local_label: Tensor, num_rows: int, sample_rate: float, generator: torch.Generator) -> Rows:
    """All classes of the batch that this shard owns, and random others up to `sample_rate` of the shard.

    local_label: [B] int64, label − start; owned where in [0, num_rows).  generator: on the labels' device.
    """
    owned = (local_label >= 0) & (local_label < num_rows)
    most = min(len(local_label), num_rows)
    count = max(most, int(sample_rate * num_rows + 1e-9))
    if sample_rate >= 1 or count >= num_rows:
        return Rows(None, torch.where(owned, local_label, -1), num_rows)

    positive, n = _distinct(torch.where(owned, local_label, num_rows), num_rows, most)
    place = torch.arange(count, device=local_label.device)
    others, wanted = num_rows - n, (count - n).clamp_min(1)
    number = place - n  # of the negative, in the places after the positives
    low, high = number * others // wanted, (number + 1) * others // wanted
    u = torch.rand(2, count, generator=generator, device=place.device, dtype=torch.float64)
    shift = (u[1, 0] * others).long()
    drawn = (low + (u[0] * (high - low)).long() + shift) % others.clamp_min(1)
    # The i-th of the rows that are no positives: every positive at or before it pushes it one further.
    before = torch.searchsorted(positive - torch.arange(most, device=place.device), drawn, right=True)
    index = torch.where(number < 0, positive[place.clamp_max(most - 1)], drawn + before)
    weight = torch.where(number < 0, 1.0, others.double() / wanted)
    return Rows(index, torch.where(owned, torch.searchsorted(positive, local_label), -1), count, weight)


def _distinct(label: Tensor, nothing: int, most: int) -> tuple[Tensor, Tensor]:
    """The distinct labels below `nothing`, sorted in the first places of [most], and how many; the rest is large.

    The rest grows by one a place, as `searchsorted` over the labels less their places needs it.
    """
    order = label.sort().values
    is_first = torch.ones_like(order, dtype=torch.bool)
    is_first[1:] = order[1:] != order[:-1]
    is_first &= order < nothing
    filler = 2 * nothing + torch.arange(len(order), device=label.device)
    return torch.where(is_first, order, filler).sort().values[:most], is_first.sum()
