"""The backbones as CUDA graphs: the kernels of a forward or a backward are started by one call of the host's.

A graph reads and writes fixed memory: inputs are copied in, and what it returns holds until it runs again. Weights,
statistics and folded weights change in place and are read anew each time; random numbers follow torch's generator.
The head, whose work depends on data, is outside; so are the optimiser and, after the replay of a backward, autograd's
adding of each gradient to its parameter's and the exchange of them, which hence does not travel beside the backward.
Written from torch's documentation: this has not run on a GPU yet. Its test, tests/recognition/test_graphs.py, is marked
`gpu`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Forwards and backwards ahead of the capture, on a side stream, as torch's documentation asks: libraries set up."""


def capture_training(backbone: nn.Module, example: Tensor, dtype: torch.dtype) -> None:
    """Have `backbone` run from graphs in training mode, in place; in eval mode it runs as written.

    example: a batch of the only size there will be.  dtype: of matrix products.  Statistics move: put them back.
    Before DistributedDataParallel wraps it, as torch asks.
    """
    backbone.train()
    with products_in(dtype):
        torch.cuda.make_graphed_callables(backbone, (example.clone(),), num_warmup_iters=WARM_UP)
    for parameter in backbone.parameters():
        if parameter.requires_grad:  # else the first backward would take the graph's own memory as the gradient
            parameter.grad = torch.zeros_like(parameter)


class CapturedForward:
    """A forward without gradient as a graph; `network` must keep its tensors and change them in place."""

    @torch.no_grad()
    def __init__(self, network: Callable[[Tensor], Tensor], example: Tensor, dtype: torch.dtype) -> None:
        self._input = example.clone()
        side = torch.cuda.Stream(example.device)
        side.wait_stream(torch.cuda.current_stream(example.device))
        with torch.cuda.stream(side), products_in(dtype):
            for _ in range(WARM_UP):
                network(self._input)
        torch.cuda.current_stream(example.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), products_in(dtype):
            self._output = network(self._input)

    def __call__(self, image: Tensor) -> Tensor:
        """The network's output for images of the example's size; it holds until the next call."""
        self._input.copy_(image)
        self._graph.replay()
        return self._output


def products_in(dtype: torch.dtype) -> torch.autocast:
    """The context of a capture, and of what is to be compiled ahead of it.

    Without autocast's cache, which would keep casts of weights made in the capture that later steps must make anew.
    """
    return torch.autocast("cuda", dtype, enabled=dtype != torch.float32, cache_enabled=False)
