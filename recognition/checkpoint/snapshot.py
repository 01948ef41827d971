"""What is to be saved, and its copy in host memory, so that training can go on while it is written.

The copy's memory is taken once and used again by every save: as much as this rank's files take. That of CUDA tensors
is pinned; the copies are queued on training's stream, which goes on when they are through, and the host does not wait.
Proven by tests/recognition/checkpoint/test_saver.py and, on CUDA, test_snapshot.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recognition.checkpoint.tensor_file import Blocks

BLOCK_BYTES = 1 << 28
"""Of a row tensor's parts: torch takes pinned memory in powers of two."""


@dataclass(frozen=True)
class Content:
    """One rank's part of a save.

    replicated: on rank 0.  row_files: for each file that this rank writes (first class, one past the last, its
    tensors by name).  ready: returns when all of it may be read.
    """

    step: int
    state: Mapping[str, Any]
    replicated: Mapping[str, Tensor]
    row_files: Sequence[tuple[int, int, Mapping[str, Blocks]]]
    ready: Callable[[], None] = lambda: None


def content(
    step: int, state: Mapping[str, Any], replicated: Mapping[str, Tensor], rows: Mapping[str, Tensor], start: int
) -> Content:
    """The tensors themselves, as they are now and until they change. rows: the first is that of class `start`."""
    count = len(next(iter(rows.values())))
    in_blocks = {name: Blocks(x.dtype, tuple(x.shape), _split(x)) for name, x in rows.items()}
    return Content(step, state, dict(replicated), [(start, start + count, in_blocks)] if count else [])


class HostCopies:
    """Memory for copies of the tensors of one rank, kept from save to save."""

    def __init__(self) -> None:
        self._buffers: dict[str, list[Tensor]] = {}

    def of(self, source: Content) -> Content:
        """A copy on the host; valid until the next one is asked for."""
        on_gpu = any(tensor.is_cuda for tensor in source.replicated.values())
        replicated = {
            name: self._copy(f"replicated {name}", [tensor])[0] for name, tensor in source.replicated.items()
        }
        row_files: list[tuple[int, int, Mapping[str, Blocks]]] = []
        for first, last, tensors in source.row_files:
            copies = {}
            for name, blocks in tensors.items():
                parts = list(blocks.parts)
                on_gpu |= any(part.is_cuda for part in parts)
                copies[name] = Blocks(blocks.dtype, blocks.shape, self._copy(f"rows {name}", parts))
            row_files.append((first, last, copies))
        ready = source.ready
        if on_gpu:
            copied = torch.cuda.Event()
            copied.record()
            ready = copied.synchronize
        return Content(source.step, source.state, replicated, row_files, ready)

    def _copy(self, name: str, parts: list[Tensor]) -> list[Tensor]:
        buffers = self._buffers.get(name, [])
        if [(x.shape, x.dtype) for x in buffers] != [(x.shape, x.dtype) for x in parts]:
            buffers = self._buffers[name] = [
                torch.empty(part.shape, dtype=part.dtype, pin_memory=part.is_cuda) for part in parts
            ]
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.detach(), non_blocking=True)
        return buffers


def _split(tensor: Tensor) -> list[Tensor]:
    """Rows in parts of BLOCK_BYTES."""
    bytes_a_row = max(1, tensor[:1].nbytes)
    return list(tensor.detach().split(max(1, BLOCK_BYTES // bytes_a_row)))
