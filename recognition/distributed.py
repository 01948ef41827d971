"""The only file that calls collectives: small functions, in pairs where one is the other's adjoint.

Convention: every function takes `Ranks`, says what it moves, and is the identity on one rank without a process group.
B = R·b rows of a global batch lie in rank order: rank r holds rows [r·b, (r+1)·b).

    gather_rows        [b, …] on each rank → [B, …] on all      adjoint: reduce_scatter_rows
    reduce_scatter_rows [B, …] on each rank → own [b, …] of the sum

Proven by tests/recognition/test_distributed.py on 1, 2 and 4 processes.
"""

import inspect
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recognition.errors import SettingsError

CPU = torch.device("cpu")

# torch 2.13 renamed these; older ones know the first names only.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
_ddp_parameters = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _ddp_parameters else "broadcast_buffers"


@dataclass(frozen=True)
class Ranks:
    """Where this process stands: its rank among `world_size`, its device, and the group it talks through.

    `group` None means a single process that never starts torch.distributed.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files and prints the lines."""
        return self.rank == 0


def start(timeout_seconds: float) -> Ranks:
    """Join the process group that torchrun's environment describes: NCCL with a GPU per local rank, else gloo."""
    if "RANK" not in os.environ:
        return Ranks(device=torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= local_world_size
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=timeout_seconds),
        device_id=device if on_gpu else None,
    )
    return Ranks(dist.get_rank(), dist.get_world_size(), device, dist.group.WORLD)


def stop(ranks: Ranks) -> None:
    """Leave the process group."""
    if ranks.group is not None:
        dist.destroy_process_group()


def gather_rows(x: Tensor, ranks: Ranks) -> Tensor:
    """Concatenate every rank's [b, …] to [R·b, …], the same on all ranks. All ranks hold the same b."""
    if ranks.group is None:
        return x
    x = x.contiguous()
    gathered = x.new_empty((ranks.world_size * x.shape[0], *x.shape[1:]))
    _all_gather(gathered, x, group=ranks.group)
    return gathered


def reduce_scatter_rows(x: Tensor, ranks: Ranks) -> Tensor:
    """Sum [R·b, …] over ranks and return this rank's rows [b, …]: the adjoint of `gather_rows`."""
    if ranks.group is None:
        return x
    if x.shape[0] % ranks.world_size:
        raise ValueError(f"{x.shape[0]} rows do not divide over {ranks.world_size} ranks")
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
        dist.all_reduce(x, dist.ReduceOp.SUM, group=ranks.group)
    return x


def max_over_ranks(x: Tensor, ranks: Ranks) -> Tensor:
    """Largest x over ranks, elementwise and in place, and return it: the same on all ranks."""
    if ranks.group is not None:
        dist.all_reduce(x, dist.ReduceOp.MAX, group=ranks.group)
    return x


def average_buffers(buffers: Iterable[Tensor], ranks: Ranks) -> None:
    """Replace floating-point buffers (BatchNorm's running statistics) by their mean over ranks, in one all-reduce.

    Integer buffers (`num_batches_tracked`) count the same on every rank and stay.
    """
    moving = [buffer for buffer in buffers if buffer.is_floating_point()]
    if ranks.world_size == 1 or not moving:
        return
    flat = torch.cat([buffer.flatten() for buffer in moving])
    flat = sum_over_ranks(flat, ranks).div_(ranks.world_size)
    for buffer, mean in zip(moving, flat.split([buffer.numel() for buffer in moving]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def replicate(module: nn.Module, ranks: Ranks) -> nn.Module:
    """Wrap a backbone so that its gradients are SUMMED over ranks while the backward runs.

    Each rank's gradient already carries 1/B of the global batch, so nothing is divided. Parameters and buffers start
    as rank 0's. Buffers are not broadcast each step: `average_buffers` does better.
    """
    if ranks.group is None or ranks.world_size == 1:
        return module
    without_sync: Any = {_SYNC_BUFFERS: False}
    replica = nn.parallel.DistributedDataParallel(
        module,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        process_group=ranks.group,
        gradient_as_bucket_view=True,
        **without_sync,
    )
    replica.register_comm_hook(ranks.group, _sum_hook)
    return replica


def _sum_hook(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def from_first(value: Any, ranks: Ranks) -> Any:
    """Rank 0's picklable value, on every rank."""
    if ranks.group is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=ranks.group)
    return box[0]


def all_values(value: Any, ranks: Ranks) -> list[Any]:
    """Every rank's picklable value, in rank order, on every rank."""
    if ranks.group is None:
        return [value]
    values: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(values, value, group=ranks.group)
    return values


def require_same(what: str, value: str, ranks: Ranks) -> None:
    """Raise SettingsError on every rank when `value` differs between ranks, naming the ranks that differ."""
    values = all_values(value, ranks)
    different = [rank for rank, other in enumerate(values) if other != values[0]]
    if different:
        other = values[different[0]]
        raise SettingsError(f"{what} of ranks {different} differ from rank 0's: {other} ≠ {values[0]}")


def wait_for_all(ranks: Ranks) -> None:
    """Return when every rank has come here."""
    if ranks.group is not None:
        dist.barrier(group=ranks.group)
