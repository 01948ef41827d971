"""The only file that calls collectives: small functions, in pairs where one is the other's adjoint.

Convention: every function takes `Ranks`, says what it moves, and is the identity on one rank without a process group.
B = R·b rows of a global batch lie in rank order: rank r holds rows [r·b, (r+1)·b).

    gather_rows        [b, …] on each rank → [B, …] on all      adjoint: reduce_scatter_rows; also ..._later
    reduce_scatter_rows [B, …] on each rank → own [b, …] of the sum

Proven by tests/recognition/test_distributed.py on 1, 2 and 4 processes.
"""

import contextlib
import inspect
import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recognition.errors import SettingsError, TrainerError
from recognition.progress import Progress

CPU = torch.device("cpu")

# torch 2.13 renamed these; older ones know the first names only.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
_ddp_parameters = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _ddp_parameters else "broadcast_buffers"


@dataclass(frozen=True)
class Ranks:
    """Where this process stands: its rank among `world_size`, its device, and the group it talks through.

    `group` None means a single process that never starts torch.distributed. `progress` notes each collective begun.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    group: dist.ProcessGroup | None = None
    progress: Progress = field(default_factory=Progress, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files and prints the lines."""
        return self.rank == 0


ALONE = Ranks()
"""A single process."""


def start(timeout_seconds: float, progress: Progress | None = None) -> Ranks:
    """Join the process group that torchrun's environment describes: NCCL with a GPU per local rank, else gloo."""
    progress = progress or Progress()
    if "RANK" not in os.environ:
        device = torch.device("cuda", 0) if torch.cuda.is_available() else CPU
        return Ranks(device=device, progress=progress)
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    on_gpu = torch.cuda.is_available()
    if on_gpu and torch.cuda.device_count() < local_world_size:
        raise SettingsError(
            f"{local_world_size} ranks on this machine but {torch.cuda.device_count()} GPUs: set NPROC to at most that "
            'many, or CUDA_VISIBLE_DEVICES="" to train on the CPU'
        )
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    progress.exchange("joining the others")
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=timeout_seconds),
        device_id=device if on_gpu else None,
    )
    return Ranks(dist.get_rank(), dist.get_world_size(), device, dist.group.WORLD, progress)


def stop(ranks: Ranks) -> None:
    """Leave the process group."""
    if ranks.group is not None:
        dist.destroy_process_group()


def side_channel(ranks: Ranks) -> Ranks:
    """The same ranks with a group of their own, on the CPU: for a thread that exchanges while training goes on.

    Collectives of one group must come in one order on all ranks, so two threads may not share one. Its timeout is that
    of `ranks`; what it begins does not show in their `progress`. A collective: all ranks call it.
    """
    if ranks.group is None:
        return ranks
    timeout = ranks.group._get_backend(ranks.device).options._timeout
    return Ranks(ranks.rank, ranks.world_size, CPU, dist.new_group(backend="gloo", timeout=timeout))


def gather_rows(x: Tensor, ranks: Ranks) -> Tensor:
    """Concatenate every rank's [b, …] to [R·b, …], the same on all ranks. All ranks hold the same b."""
    if ranks.group is None:
        return x
    x = x.contiguous()
    gathered = x.new_empty((ranks.world_size * x.shape[0], *x.shape[1:]))
    ranks.progress.exchange("gather_rows", gathered.nbytes)
    _all_gather(gathered, x, group=ranks.group)
    return gathered


class Arriving:
    """What `gather_rows_later` began; `rows` waits for it, on CUDA the stream and not the host."""

    def __init__(self, rows: Tensor, work: dist.Work | None = None) -> None:
        self._rows, self._work = rows, work

    @property
    def rows(self) -> Tensor:
        """The gathered rows [R·b, …]."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._rows


def gather_rows_later(x: Tensor, ranks: Ranks) -> Arriving:
    """Begin `gather_rows`: what comes until its rows are asked for runs while they travel. x must stay as it is."""
    if ranks.group is None:
        return Arriving(x)
    x = x.contiguous()
    gathered = x.new_empty((ranks.world_size * x.shape[0], *x.shape[1:]))
    ranks.progress.exchange("gather_rows_later", gathered.nbytes)
    return Arriving(gathered, _all_gather(gathered, x, group=ranks.group, async_op=True))


def reduce_scatter_rows(x: Tensor, ranks: Ranks) -> Tensor:
    """Sum [R·b, …] over ranks and return this rank's rows [b, …]: the adjoint of `gather_rows`."""
    if ranks.group is None:
        return x
    if x.shape[0] % ranks.world_size:
        raise ValueError(f"{x.shape[0]} rows do not divide over {ranks.world_size} ranks")
    ranks.progress.exchange("reduce_scatter_rows", x.nbytes)
    own = x.new_empty((x.shape[0] // ranks.world_size, *x.shape[1:]))
    _reduce_scatter(own, x.contiguous(), group=ranks.group)
    return own


def gather_uneven_rows(x: Tensor, ranks: Ranks) -> Tensor:
    """Concatenate [n_r, …] with a different n_r on each rank, in rank order; padded underneath."""
    if ranks.group is None:
        return x
    counts = gather_rows(torch.tensor([x.shape[0]], device=x.device), ranks).tolist()
    padded = x.new_zeros((max(counts), *x.shape[1:]))
    padded[: x.shape[0]] = x
    parts = gather_rows(padded, ranks).split(max(counts)) if max(counts) else []
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]) if parts else x


def sum_over_ranks(x: Tensor, ranks: Ranks) -> Tensor:
    """Sum x over ranks, in place, and return it: the same on all ranks."""
    if ranks.group is not None:
        ranks.progress.exchange("sum_over_ranks", x.nbytes)
        dist.all_reduce(x, dist.ReduceOp.SUM, group=ranks.group)
    return x


def max_over_ranks(x: Tensor, ranks: Ranks) -> Tensor:
    """Largest x over ranks, elementwise and in place, and return it: the same on all ranks."""
    if ranks.group is not None:
        ranks.progress.exchange("max_over_ranks", x.nbytes)
        dist.all_reduce(x, dist.ReduceOp.MAX, group=ranks.group)
    return x


def max_over_ranks_later(x: Tensor, ranks: Ranks) -> dist.Work | None:
    """Begin `max_over_ranks`; x holds the result after `.wait()` of what is returned (None: it does already)."""
    if ranks.group is None:
        return None
    ranks.progress.exchange("max_over_ranks_later", x.nbytes)
    return dist.all_reduce(x, dist.ReduceOp.MAX, group=ranks.group, async_op=True)


def replicate(
    module: nn.Module, ranks: Ranks, example: Tensor, compress: bool = False, whole: bool = True
) -> nn.Module:
    """Wrap a backbone so that its gradients are SUMMED over ranks while the backward runs.

    Each rank's gradient already carries 1/B of the global batch, so nothing is divided. Parameters and buffers start
    as rank 0's. Buffers are not exchanged each step: recognition.batch_statistics does better.

    example: an input. DDP lays its buckets anew after the first backward, and another layout sums in another order:
    a run that went on from a checkpoint would differ in the last bits from one that was not stopped. One backward
    ahead of training, without effect, makes both begin with the final layout.
    compress: gradients travel, and are summed, in bf16.  whole: each backward belongs to one forward of all that is
    learnt and exchanges its gradients, so that DDP may take the graph for static; no `without_exchange` then.
    """
    if ranks.group is None or ranks.world_size == 1:
        return module
    without_sync: Any = {_SYNC_BUFFERS: False}
    replica = nn.parallel.DistributedDataParallel(
        module,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        process_group=ranks.group,
        gradient_as_bucket_view=True,
        static_graph=whole,
        **without_sync,
    )
    replica.register_comm_hook(ranks, _sum_hook_in_bf16 if compress else _sum_hook)
    buffers = [buffer.clone() for buffer in module.buffers()]
    for _ in range(2 if whole else 1):  # a static graph is looked at for one backward, and cut at the next
        replica(example).sum().mul(0).backward()
        replica.zero_grad(set_to_none=False)
    for buffer, before in zip(module.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return replica


def without_exchange(replica: nn.Module) -> contextlib.AbstractContextManager:
    """Where a forward and its backward of what `replicate` returned leave this rank's gradients to itself.

    They add up; the next backward outside exchanges the sum.
    """
    if isinstance(replica, nn.parallel.DistributedDataParallel):
        return replica.no_sync()
    return contextlib.nullcontext()


def _sum_hook(ranks: Ranks, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    ranks.progress.exchange("sum of gradients", bucket.buffer().nbytes)
    work = dist.all_reduce(bucket.buffer(), group=ranks.group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def _sum_hook_in_bf16(ranks: Ranks, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    short = bucket.buffer().to(torch.bfloat16)
    ranks.progress.exchange("sum of gradients", short.nbytes)
    work = dist.all_reduce(short, group=ranks.group, async_op=True)
    return work.get_future().then(lambda future: bucket.buffer().copy_(future.value()[0]))


def from_first(value: Any, ranks: Ranks) -> Any:
    """Rank 0's picklable value, on every rank."""
    if ranks.group is None:
        return value
    ranks.progress.exchange("from_first")
    box = [value]
    dist.broadcast_object_list(box, src=0, group=ranks.group)
    return box[0]


def all_values(value: Any, ranks: Ranks) -> list[Any]:
    """Every rank's picklable value, in rank order, on every rank."""
    if ranks.group is None:
        return [value]
    ranks.progress.exchange("all_values")
    values: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(values, value, group=ranks.group)
    return values


def require_same(what: str, values: dict[str, Any], ranks: Ranks) -> None:
    """Raise SettingsError on every rank when `values` differ between ranks, naming what differs and where."""
    everywhere = all_values(values, ranks)
    different = [
        f"{name}: {other.get(name)} on rank {rank}, {everywhere[0].get(name)} on rank 0"
        for rank, other in enumerate(everywhere)
        for name in sorted(other.keys() | everywhere[0].keys())
        if other.get(name) != everywhere[0].get(name)
    ]
    if different:
        raise SettingsError(f"{what} of the ranks differ: {'; '.join(different)}")


def fail_together(failure: TrainerError | None, ranks: Ranks) -> None:
    """Raise on all ranks the failure that any of them brings (None: it has none), the lowest rank's first.

    So a rank that cannot go on does not leave the others waiting for it.
    """
    for found in all_values(failure, ranks):
        if found is not None:
            raise found
