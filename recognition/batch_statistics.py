"""BatchNorm's running statistics over ranks: averaged after each step, put back after one that was not finite.

Each rank's BatchNorm sees its own images. After a step the statistics become their mean over ranks, so that the
backbone, and any copy made of it, is the same everywhere. A forward whose embeddings are not finite has spoilt them
before anybody knows: they then return to what they were.
Proven by tests/recognition/test_batch_statistics.py.
"""

import torch
from torch import Tensor, nn

from recognition.distributed import Ranks, sum_over_ranks


class BatchStatistics:
    """The buffers of a module, in two flat copies: running statistics and counters. A module without any is fine."""

    def __init__(self, module: nn.Module, ranks: Ranks) -> None:
        self.ranks = ranks
        self._moving = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        self._counters = [buffer for buffer in module.buffers() if not buffer.is_floating_point()]

    def remember(self) -> tuple[Tensor, Tensor]:
        """The buffers as they are before a forward in training mode."""
        return _flat(self._moving, self.ranks.device), _flat(self._counters, self.ranks.device)

    @torch.no_grad()
    def restore(self, before: tuple[Tensor, Tensor]) -> None:
        """Make the buffers what `remember` returned: for a forward that is not to count."""
        _spread(before[0], self._moving)
        _spread(before[1], self._counters)

    @torch.no_grad()
    def settle(self, before: tuple[Tensor, Tensor], finite: Tensor) -> None:
        """Average over ranks (one all-reduce) if `finite`, a boolean scalar the same on all ranks; else undo."""
        if not self._moving:
            return
        mean = sum_over_ranks(_flat(self._moving, self.ranks.device), self.ranks) / self.ranks.world_size
        _spread(torch.where(finite, mean, before[0]), self._moving)
        _spread(torch.where(finite, _flat(self._counters, self.ranks.device), before[1]), self._counters)


def _flat(tensors: list[Tensor], device: torch.device) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]) if tensors else torch.zeros(0, device=device)


def _spread(flat: Tensor, tensors: list[Tensor]) -> None:
    if tensors:
        parts = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])
