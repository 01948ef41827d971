"""The two passes by the CUDA kernels of fused.py, in the place of `TiledPasses` where those know all that is asked.

Proven by tests/recognition/heads/test_triton_kernels.py, which holds the kernels against the tiled passes.
"""

import torch
from torch import Tensor

from recognition.heads import fused
from recognition.heads.passes import Step, Terms, TiledPasses
from recognition.heads.row_optimizers import RowSGD


class FusedPasses(TiledPasses):
    """For margins whose negatives are s·cosine, rows in float32 under `RowSGD`, half-precision products."""

    def sums(self, at: Step, over_all: bool = False) -> tuple[Tensor, Tensor]:
        """See `TiledPasses.sums`; the peak is always 0."""
        sums = fused.negative_sums(self._used(at), at.factor, self.margin.s, self.tile_bytes)
        return sums[:, :1], torch.zeros_like(sums[:, 0])

    def gradients(
        self, at: Step, terms: Terms, counted: Tensor | None, batch: int, lr: float, finite: Tensor
    ) -> Tensor:
        """See `TiledPasses.gradients`; all samples count."""
        assert terms.log_z is not None
        assert isinstance(self.shard.optimizer, RowSGD)
        return fused.apply_gradients(
            self._used(at), self.shard.states["velocity"], at.factor, self.margin.s, terms.log_z, terms.of_target,
            self.shard.optimizer, lr, finite, self.tile_bytes,
        )

    def _used(self, at: Step) -> fused.UsedRows:
        rows, memory = at.rows, self.shard.memory
        if memory is None:
            return fused.UsedRows(self.shard.weight, rows.column, rows.index)
        where = slice(None) if rows.index is None else rows.index
        fresh = memory.fresh(where, at.number)
        return fused.UsedRows(self.shard.weight, rows.column, rows.index, memory.rows, fresh, memory.injection)
