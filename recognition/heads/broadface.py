"""BroadFace's queue: past embeddings that the centres go on learning from.

Kim et al., "BroadFace: Looking at Tens of Thousands of People at Once for Face Recognition", ECCV 2020. The batch's
loss trains the backbone; the loss over the queue and the batch together trains the centres. A past embedding e follows
the drift of its centre since then, scaled to its own length: e + ‖e‖/‖w_then‖·(w_now − w_then).

One first-in-first-out queue for all ranks: every shard sees all of it, so the centres of its classes, [Q, d], are
summed over ranks in every step. That is its price; it does not go together with sampled classes.
Proven by tests/recognition/heads/test_head_parity.py.
"""

import torch
from torch import Tensor

from recognition.distributed import Ranks, sum_over_ranks
from recognition.heads.shard import Shard


class PastEmbeddings:
    """The newest Q embeddings, the same on all ranks; the oldest is first, places not yet filled come before it.

    embedding, then: [Q, d], then being the class's weight when the embedding was made.  label: [Q], −1 for empty.
    """

    def __init__(self, length: int, size: int, ranks: Ranks, dtype: torch.dtype) -> None:
        self.embedding = torch.zeros(length, size, device=ranks.device, dtype=dtype)
        self.then = torch.zeros_like(self.embedding)
        self.label = torch.full((length,), -1, device=ranks.device)
        self._now = self.then[:0]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"past_embedding": self.embedding, "past_weight": self.then, "past_label": self.label}

    def join(self, x: Tensor, label: Tensor, shard: Shard, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
        """The queue, moved with its centres, and the batch behind it: samples [Q + B, d], labels, which are filled.

        Empty places have label −1 (nobody's class) and 0 for filled. A collective.
        """
        labels = torch.cat([self.label, label])
        now = sum_over_ranks(_weights(labels, shard), ranks)
        self._now = now[len(self.label) :]
        length = torch.linalg.vector_norm(self.then, dim=1, keepdim=True)
        ratio = torch.linalg.vector_norm(self.embedding, dim=1, keepdim=True) / length.clamp_min(1e-12)
        moved = self.embedding + ratio * (now[: len(self.label)] - self.then)
        return torch.cat([moved, x]), labels, (labels >= 0).to(x.dtype)

    def push(self, x: Tensor, label: Tensor, finite: Tensor) -> None:
        """Put the batch [B, d] last, with its centres as they were in `join`; `finite` False changes nothing."""
        for held, new in ((self.embedding, x), (self.then, self._now), (self.label, label)):
            torch.where(finite, torch.cat([held, new])[-len(held) :], held, out=held)


def _weights(label: Tensor, shard: Shard) -> Tensor:
    """Rows of the labels [n] that this shard owns, [n, d], zero elsewhere."""
    if not shard.classes:
        return torch.zeros(len(label), shard.size, device=label.device, dtype=shard.computed)
    row, owned = shard.locate(label)
    return torch.where(owned[:, None], shard.weight[row].to(shard.computed), 0)
