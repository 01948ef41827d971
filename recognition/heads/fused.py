"""The head's two passes on CUDA: Triton kernels for all that the torch path spends several kernels on.

For margins that act on the target's cosine alone: then negatives are s·cosine, and the margin itself stays outside, on
[B] numbers. The rows used are taken in tiles of T rows, as many as `tile_bytes` allow. A tile of
  pass 1 (`negative_sums`)    W̃ of the tile; cosines and, without leaving the chip, Σ exp(s·cosine) and target cosines;
  pass 2 (`apply_gradients`)  W̃ of the tile; cosines again and, without leaving the chip, coefficients ∂L/∂cosine in the
                              products' type; the embedding gradient; the centre gradient; the rows' step of SGD.
Neither [B, k] nor [k, d] numbers exist, only those of one tile: 2·B + 6·d bytes a row in half precision. W̃ and the
coefficients are written once a tile because that is cheaper than forming them again for every block that reads them: a
kernel that keeps coefficients on the chip computes 10·C·d flops an image in place of 8·C·d, and at d = 512 its
accumulators fill all registers. W̃ rounds once, from float32. No host synchronisation, no atomics: the same numbers in
every run.

Shapes: B rows of the global batch, d embedding size, C_r rows of the shard, k of them used.
Compiled for sm_90 and run in Triton's interpreter; not timed on any GPU yet, and the block sizes are no measurement's.
Proven by tests/recognition/heads/test_triton_kernels.py.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from recognition.heads.margins import SAFE_LOGIT, Margin
from recognition.heads.row_optimizers import RowSGD
from recognition.memory import VPL, Injection

BLOCK = 128
"""Samples, rows and columns of one program's share of a product; scratch tensors are padded to it."""

PROGRAMS = 132
"""Programs that keep a device busy: the multiprocessors of an H100 or H200. A constant, so that sums keep their order
on any device."""


def usable(
    margin: Margin, optimizer: Any, device: torch.device, product_dtype: torch.dtype, state_dtype: torch.dtype
) -> bool:
    """Whether these kernels serve a head whose centres and momentum, of type `state_dtype`, live on `device`.

    Half-precision products only: a float32 product without tensor cores is better left to the vendor's library. A head
    that filters negatives does not ask.
    """
    return (
        device.type == "cuda"
        and importlib.util.find_spec("triton") is not None
        and margin.plain_negatives
        and type(margin).scale is Margin.scale
        and not margin.binary
        and not hasattr(margin, "queue")  # past embeddings take passes of their own
        and margin.centers_per_class == 1
        and margin.largest_negative() <= SAFE_LOGIT
        and type(optimizer) is RowSGD
        and product_dtype in (torch.bfloat16, torch.float16)
        and state_dtype == torch.float32
    )


@dataclass(frozen=True)
class UsedRows:
    """The rows of a shard that a step uses, and what is injected into them.

    weight: [C_r, d] float32, contiguous.  column: [B] int64, each sample's class among the used rows, −1 elsewhere.
    index: [k] int64, different rows of the shard; None means all of them.
    memory: [C_r, d] float32 and fresh: [k] boolean, of the used rows; None where nothing is injected.
    """

    weight: Tensor
    column: Tensor
    index: Tensor | None = None
    memory: Tensor | None = None
    fresh: Tensor | None = None
    injection: Injection = field(default_factory=Injection)

    @property
    def count(self) -> int:
        """k, how many rows are used."""
        return len(self.weight) if self.index is None else len(self.index)


@torch.no_grad()
def negative_sums(rows: UsedRows, x_hat: Tensor, s: float, tile_bytes: int = 1 << 28) -> Tensor:
    """Σ_j≠y exp(s·x̂·W̃_j) over this shard's used rows and the target's cosine, 0 where not here: [B, 2] float32.

    x_hat: [B, d], unit rows in the products' type.  s: at most SAFE_LOGIT.  tile_bytes: scratch memory.
    """
    from recognition.heads import triton_kernels as kernels

    work = _Scratch(rows, x_hat, tile_bytes)
    result = torch.zeros(2, len(work.x), device=x_hat.device)
    for tile in work.tiles():
        blocks = tile.padded // BLOCK
        sums = torch.empty(blocks, len(work.x), device=x_hat.device)
        kernels.sums_kernel[(len(work.x) // BLOCK, blocks)](
            work.x, work.centers, work.column, sums, result[1], tile.low, tile.count, work.width, len(work.x), float(s),
            **work.sums_blocks,
        )
        result[0] += sums.sum(dim=0)
    return result[:, : len(x_hat)].T.contiguous()


@torch.no_grad()
def apply_gradients(
    rows: UsedRows,
    velocity: Tensor,
    x_hat: Tensor,
    s: float,
    log_z: Tensor,
    of_target: Tensor,
    optimizer: RowSGD,
    lr: float,
    finite: Tensor,
    tile_bytes: int = 1 << 28,
) -> Tensor:
    """Update the used rows' weight and velocity [C_r, d] in place; return this shard's B·∂loss/∂x̂, [B, d] float32.

    log_z, of_target: [B] float32, log Σ exp over all logits, and B·∂loss/∂cosine of each sample's own class.
    finite: boolean scalar on the device; False changes no row, to the bit, without the host having to look.
    """
    from recognition.heads import triton_kernels as kernels

    work = _Scratch(rows, x_hat, tile_bytes)
    batch = len(work.x)
    normalizer = _padded(log_z.float(), batch, 0)  # the padding's x̂ is zero: any number of it adds nothing
    of_target = _padded(of_target.float(), batch, 0)
    finite = finite.view(torch.uint8)
    coefficients = x_hat.new_empty(batch, work.capacity)
    center_gradient = torch.empty(1, work.capacity, work.width, device=x_hat.device)
    shares = min(max(1, PROGRAMS * BLOCK * BLOCK // (batch * work.width)), work.capacity // BLOCK)
    x_gradient = torch.zeros(shares, batch, work.width, device=x_hat.device)
    for tile in work.tiles():
        kernels.coefficients_kernel[(batch // BLOCK, tile.padded // BLOCK)](
            work.x, work.centers, work.column, normalizer, of_target, coefficients,
            tile.low, tile.count, work.capacity, work.width, float(s), **work.cosine_blocks,
        )
        work.product(coefficients, work.centers[: tile.padded], x_gradient, add=True)
        work.product(coefficients.T[: tile.padded], work.x, center_gradient, add=False)
        kernels.update_kernel[work.row_grid(tile)](
            center_gradient, tile.weight, velocity if rows.index is not None else velocity[tile.low :],
            tile.memory, tile.index, tile.fresh, work.factors, finite,
            tile.count, work.capacity, x_hat.shape[1], work.width, *work.shares_of_mix, 1 / len(x_hat), float(lr),
            float(optimizer.momentum), float(optimizer.weight_decay), **work.row_blocks,
        )
    return x_gradient.sum(dim=0)[: len(x_hat), : x_hat.shape[1]]


@dataclass(frozen=True)
class _Tile:
    """Used rows [low, low + count), `padded` to whole blocks; the tensors begin at the tile's first row."""

    low: int
    count: int
    padded: int
    weight: Tensor
    index: Tensor | None
    memory: Tensor | None
    fresh: Tensor | None


class _Scratch:
    """What one tile needs, allocated once a pass.

    x: [padded B, width].  centers: [capacity, width], W̃ in the products' type.  factors: [3, capacity] float32.
    """

    def __init__(self, rows: UsedRows, x_hat: Tensor, tile_bytes: int) -> None:
        self.rows = rows
        d = x_hat.shape[1]
        self.width = _up(d)
        self.x = torch.nn.functional.pad(x_hat, (0, self.width - d, 0, _up(len(x_hat)) - len(x_hat))).contiguous()
        self.column = _padded(rows.column, len(self.x), -1)
        half = x_hat.element_size()
        a_row = half * len(self.x) + (half + 4) * self.width
        fitting = min(tile_bytes, 1 << 31) // a_row // BLOCK * BLOCK  # offsets in the scratch stay below 2^31
        self.capacity = max(BLOCK, min(fitting, _up(rows.count)))
        self.centers = x_hat.new_empty(self.capacity, self.width)
        self.factors = torch.empty(3, self.capacity, device=x_hat.device)
        inner = 64 if half == 2 else 32
        self.cosine_blocks = {"BLOCK_B": BLOCK, "BLOCK_C": BLOCK, "BLOCK_K": inner, "num_warps": 8, "num_stages": 3}
        # Left alone it takes 191 registers, and one program at once fits where 128 let two.
        self.sums_blocks = self.cosine_blocks | {"maxnreg": 128}
        self.product_blocks = {"BLOCK_M": BLOCK, "BLOCK_N": BLOCK, "BLOCK_K": inner, "num_warps": 8, "num_stages": 3}
        columns = 1 << (self.width - 1).bit_length()
        self.row_blocks = {
            "HAS_INDEX": rows.index is not None, "HAS_MEMORY": rows.memory is not None,
            "BLOCK_R": max(1, 2048 // columns), "BLOCK_D": columns, "num_warps": 4,
        }
        share = 1 - rows.injection.strength if isinstance(rows.injection, VPL) else 1.0
        self.shares_of_mix = (float(share), float(rows.injection.strength))

    def row_grid(self, tile: _Tile) -> tuple[int]:
        """One program for BLOCK_R rows."""
        return (-(-tile.padded // self.row_blocks["BLOCK_R"]),)

    def tiles(self) -> Iterator[_Tile]:
        """The tiles in order, each with its W̃ in `centers` and its rows' lengths in `factors`."""
        from recognition.heads import triton_kernels as kernels

        rows = self.rows
        fresh = None if rows.fresh is None else rows.fresh.view(torch.uint8)
        for low in range(0, rows.count, self.capacity):
            count = min(self.capacity, rows.count - low)
            first = low if rows.index is None else 0  # an index counts from the shard's first row
            tile = _Tile(
                low, count, _up(count), rows.weight[first:], None if rows.index is None else rows.index[low:],
                None if rows.memory is None else rows.memory[first:], None if fresh is None else fresh[low:],
            )
            kernels.effective_centers_kernel[self.row_grid(tile)](
                tile.weight, tile.memory, tile.index, tile.fresh, self.centers, self.factors, count, self.capacity,
                rows.weight.shape[1], self.width, *self.shares_of_mix, **self.row_blocks,
            )
            yield tile

    def product(self, a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
        """Into out [shares, m, width], (+)= a [m, n] · b [n, width], the n cut into shares of whole blocks."""
        from recognition.heads import triton_kernels as kernels

        each = _up(-(-len(b) // len(out)))
        rows = out.shape[1]
        kernels.product_kernel[(self.width // BLOCK, len(a) // BLOCK, len(out))](
            a, b, out, *a.stride(), self.width, len(b), each, rows, ADD=add, **self.product_blocks,
        )


def _up(number: int) -> int:
    return -(-number // BLOCK) * BLOCK


def _padded(x: Tensor, length: int, value: float) -> Tensor:
    return torch.nn.functional.pad(x, (0, length - len(x)), value=value)
