"""Activation checkpointing: a block's activations are thrown away and computed anew in the backward.

Held are the inputs of blocks alone; the price is a second forward, a third more of the backbone's compute. Nothing
random happens inside a block (what is drawn comes in as an input), and the second forward normalises by the same batch
statistics but leaves the running ones and their counters as they are: a step gives the same bits as without.
Proven by tests/recognition/backbones/test_recomputed.py.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Blocks(nn.Sequential):
    """Blocks one after the other, computed anew in the backward where `checkpointing` is set."""

    def __init__(self, *blocks: nn.Module, checkpointing: bool = False) -> None:
        super().__init__(*blocks)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """The last block's output."""
        again = self.checkpointing and keeps_a_graph(self)
        for block in self:
            x = recomputed(block, x, within=block) if again else block(x)
        return x


def keeps_a_graph(module: nn.Module) -> bool:
    """Whether a forward of the module is one of training, which a backward follows."""
    return module.training and torch.is_grad_enabled()


def recomputed(function: Callable[..., Tensor], *inputs: Any, within: nn.Module) -> Tensor:
    """function(*inputs), of which only the inputs are kept for the backward. It must not draw random numbers.

    within: the module whose BatchNorms the function passes through.
    """
    held: dict[str, Any] = {"context_fn": lambda: (contextlib.nullcontext(), _statistics_held(within))}
    if torch.compiler.is_compiling():  # which moves statistics once by itself, and takes no contexts
        held = {}
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **held)
    return result


@contextlib.contextmanager
def _statistics_held(module: nn.Module) -> Iterator[None]:
    """Where BatchNorm normalises as ever, but moves scratch tensors in the place of its buffers.

    Without any buffers it would save other tensors than the first time, which torch refuses.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    held = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, held, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, torch.empty_like(buffer))
    try:
        yield
    finally:
        for norm, buffers in zip(norms, held, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
