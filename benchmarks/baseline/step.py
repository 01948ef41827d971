"""The training step that this project's is measured against, written the way the field's usual trainer does it.

From the head and the loader beside it: batches of float32 images, embeddings and labels gathered into lists, logits in
full, a gradient for every centre, one torch SGD over the backbone and the whole centre matrix, `clip_grad_norm_`, DDP
that averages, and the loss read on the host in every step, as a trainer that logs each step does. Where the usual
trainer's parts are slower than they need be (arccos over all logits, a one-hot matrix), the head beside it is not.
Half precision is autocast, with a GradScaler for fp16. Data goes to a GPU from pinned memory on a stream of its own.

The backward is cut in two at the embeddings, head and then backbone: the order in which autograd goes anyway.
Proven by tests/benchmarks/test_step.py: the same losses and gradients as the project's own step.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.baseline.head import PartialFC
from recognition.distributed import Ranks
from recognition.phases import Phases

_ddp_parameters = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _ddp_parameters else "broadcast_buffers"


class _ListGather(torch.autograd.Function):
    """[b, …] of every rank in a list, then one tensor; backward, each rank reduces its rows and scales by R for DDP."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        parts = [torch.zeros_like(x) for _ in range(ranks.world_size)]
        if ranks.group is None:
            parts[0].copy_(x)
        else:
            dist.all_gather(parts, x.contiguous(), group=ranks.group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ranks = ctx.ranks
        parts = [part.contiguous() for part in gradients[0].chunk(ranks.world_size)]
        if ranks.group is not None:
            works = [dist.reduce(part, rank, group=ranks.group, async_op=True) for rank, part in enumerate(parts)]
            for work in works:
                work.wait()
        return parts[ranks.rank] * ranks.world_size, None


class ListPartialFC(PartialFC):
    """Partial FC that gathers into lists, and whose centres another optimiser updates, all of them in each step."""

    def gather(self, x: Tensor) -> Tensor:
        """See `PartialFC.gather`; the gradient comes back times the number of ranks, by which DDP divides."""
        return _ListGather.apply(x, self.ranks)


class UsualStep:
    """Backbone, head and optimiser of one rank, and the step that trains them.

    backbone: on the ranks' device.  weight: [C_r, d] float32, trained in place, and momentum likewise (None: zeros).
    product_dtype: of autocast.  clip_norm: largest norm of the backbone's gradient.
    """

    def __init__(
        self, backbone: nn.Module, weight: Tensor, num_classes: int, margin: str = "arcface",
        ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
        *,
        momentum: Tensor | None = None,
        sample_rate: float = 1.0,
        sgd_momentum: float = 0.9,
        weight_decay: float = 5e-4,
        clip_norm: float = 5.0,
        product_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.ranks, self.clip_norm, self.product_dtype = ranks, clip_norm, product_dtype
        self.backbone = backbone.train()
        self.replica: nn.Module = backbone
        if ranks.group is not None:
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            without_sync: Any = {SYNC_BUFFERS: False}
            self.replica = nn.parallel.DistributedDataParallel(
                backbone, device_ids=devices, process_group=ranks.group, bucket_cap_mb=16, **without_sync)
        self.head = ListPartialFC(weight, num_classes, margin, ranks, momentum=momentum, sample_rate=sample_rate,
                                  sampled_update="dense", product_dtype=product_dtype)
        groups = [{"params": list(backbone.parameters())}, {"params": [self.head.weight]}]
        self.sgd = torch.optim.SGD(groups, lr=0.0, momentum=sgd_momentum, weight_decay=weight_decay)
        self.sgd.state[self.head.weight]["momentum_buffer"] = self.head.momentum
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=product_dtype == torch.float16)
        self.phases = Phases()

    def step(self, image: Tensor, label: Tensor, lr: float) -> float:
        """Train on a batch; the loss over the global batch.

        image: [b, 3, 112, 112] float32.  label: [b] int64.  lr: learning rate of backbone and centres.
        """
        for group in self.sgd.param_groups:
            group["lr"] = lr
        half = self.product_dtype != torch.float32
        tf32 = torch.backends.cudnn.allow_tf32  # as it is for ours: the context's own default would allow it
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
            with self.phases("backbone forward"):
                with torch.autocast(image.device.type, self.product_dtype if half else None, enabled=half):
                    embedding = self.replica(image)
            with self.phases("head"):
                seen = embedding.detach().float().requires_grad_()
                loss, _, _ = self.head.loss(seen, label)
                self.scaler.scale(loss).backward()
            with self.phases("backward"):
                assert seen.grad is not None
                embedding.backward(seen.grad.to(embedding.dtype))
        with self.phases("optimizer"):
            self.scaler.unscale_(self.sgd)
            torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), self.clip_norm)
            self.scaler.step(self.sgd)
            self.scaler.update()
            self.sgd.zero_grad()
            return loss.item()


def prefetched(batches: Iterator[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on the device; on a GPU the next one is copied on a stream of its own while one is used."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def copied() -> tuple[Tensor, Tensor]:
        image, label = next(batches)
        with torch.cuda.stream(stream):
            return image.to(device, non_blocking=True), label.to(device, non_blocking=True)

    ahead = copied()
    while True:
        torch.cuda.current_stream().wait_stream(stream)
        for tensor in ahead:
            tensor.record_stream(torch.cuda.current_stream())
        used, ahead = ahead, copied()
        yield used
