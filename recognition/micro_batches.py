"""A batch through the backbone in parts, so that one part's activations have to fit: gradient accumulation.

The head needs the embeddings of the whole batch at once. So a step goes over the parts twice:
  1. `embed`: each part without a graph; the head then runs once on all embeddings, as without parts;
  2. `back_propagate`: each part again with a graph, and at once back with its rows of the embedding gradient. The
     gradients add up; ranks exchange them in the last part's backward only.
The price is a second forward: about 4/3 of the backbone's compute, its backward being two forwards' worth. Parts of
images, embeddings and their gradient are held for the whole batch; they are small beside activations.

Without batch statistics a step is that of the whole batch up to rounding. BatchNorm normalises each part by itself, and
its running statistics move once a part: what the first pass does to them is undone. Dropout draws the same in both
passes: each part's forward begins with a seed of its own. One part is the plain step, with one forward.
Proven by tests/recognition/test_micro_batches.py.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from recognition.batch_statistics import BatchStatistics
from recognition.distributed import without_exchange


class MicroBatches:
    """One rank's images of one step in `count` parts, on their way through a backbone and back.

    image: [b, 3, h, w] in any float type, b a multiple of count.  replica: the backbone as `distributed.replicate`
    returned it.  dtype: of matrix products.  seed: seeds torch for a part, by its number; called only where there are
    several.
    """

    def __init__(
        self, image: Tensor, count: int, replica: nn.Module, dtype: torch.dtype, seed: Callable[[int], None]
    ) -> None:
        self.parts = image.chunk(count)
        self.replica, self.dtype, self.seed = replica, dtype, seed
        self.whole: Tensor | None = None

    def through(self, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Embeddings [b, d] of another network, which keeps no graph."""
        return _joined([self._forward(network, image).clone() for image in self.parts])

    def embed(self, statistics: BatchStatistics) -> Tensor:
        """The backbone's embeddings [b, d]; of several parts without a graph, and with `statistics` as before."""
        if len(self.parts) == 1:
            self.whole = self._forward(self.replica, self.parts[0])
            return self.whole
        before = statistics.remember()
        with torch.no_grad():
            # A CUDA graph returns the same memory each time.
            embedding = _joined([self._seeded(number).clone() for number in range(len(self.parts))])
        statistics.restore(before)
        return embedding

    def back_propagate(self, gradient: Tensor) -> None:
        """Add ∂loss/∂embedding [b, d], through the backbone, to the gradients of its parameters, summed over ranks."""
        if self.whole is not None:
            self.whole.backward(gradient.to(self.whole.dtype))
            return
        last = len(self.parts) - 1
        for number, rows in enumerate(gradient.chunk(len(self.parts))):
            with contextlib.nullcontext() if number == last else without_exchange(self.replica):
                embedding = self._seeded(number)
                embedding.backward(rows.to(embedding.dtype))

    def _seeded(self, number: int) -> Tensor:
        self.seed(number)
        return self._forward(self.replica, self.parts[number])

    def _forward(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        # A context for each forward: the casts of weights that it keeps would lack a graph in the second pass.
        with torch.autocast(image.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return network(image)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
