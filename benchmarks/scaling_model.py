"""What a step moves, computes and keeps on one rank, as formulas of C, B and the number of ranks R.

Convention: b images a rank, B = R·b, d elements of an embedding, C classes, k = max(min(B, C/R), rate·C/R) of them used
on a rank, P parameters of the backbone and S elements of its running statistics; bytes and seconds are of one rank and
one step. `collectives` is exact. Seconds are floors of a device, of its products and its memory, over an efficiency:

    backbone    6·b·MAC / products  +  5·2·b·E / memory; a momentum forward is a third of both
    head        8·B·k·d / products  +  rows' bytes·k·d / memory        MAC: of one image; E: outputs of its
    update      4·P·(9, with a momentum backbone 19) / memory          normalisations and activations

5 passes over E in half precision account for what unfused normalisation adds to the convolutions of every IResNet, to
3 %. A forward in eval mode reads and writes a map once where it normalises or activates, 2 passes, or none where the
norm is folded away, which makes 1.05 of an IResNet: a third of the training's 5 lies between the two. Passes of the
update are those of recognition/optimizer.py and momentum.py on a GPU; casts of weights to half precision, and that
autograd adds its gradients to zeros, are left out. A collective takes its bytes over the ring's bandwidth and a latency
for every doubling of the ranks. Those of the head are waited for; the backbone's gradients, and with a momentum
backbone the embeddings, travel beside computation, of which the backward, two thirds of the backbone's time, counts.
Proven by tests/benchmarks/test_scaling.py, communication against counted steps on 2 and 4 ranks.
"""

import math
from dataclasses import dataclass
from typing import Any

GB = 1e9
NORM_PASSES = 5
UPDATE_PASSES = 1 + 2 + 5 + 1
"""Over the parameters: the norm reads the gradient, clipping reads and writes it, SGD reads weight, gradient and
momentum and writes weight and momentum, zeroing writes the gradient."""
FOLLOW_PASSES = (3 + 2 + 3) + 2
"""Of a momentum backbone besides: difference, its product with the rate, sum, each read and written anew; and then the
folded weights are made of the followed ones."""
TILES = 2 * (256 << 20)  # tiles and kept cosines on a GPU (recognition/heads/sharded.py)
DRAWN_BYTES = 96  # of a drawn row: its number and the twelve int64 and float64 vectors that find it (heads/sampling.py)


@dataclass(frozen=True)
class Hardware:
    """Constants of a GPU and its links, a second.

    Those of the GPU are what large products and copies reach on an H200, taken over and not measured by us; the links
    are assumed.

    flops: of half-precision products.  memory: bytes.  link, network: bytes out of a GPU to others of its machine, and
    out of a machine for each of its GPUs.  latency: seconds of a collective for every doubling of ranks.
    efficiency: share of the floors that a step reaches.
    """

    flops: float = 790e12
    memory: float = 4.3e12
    link: float = 350e9
    network: float = 45e9
    latency: float = 15e-6
    gpus_a_machine: int = 8
    efficiency: float = 0.7

    def ring(self, ranks: int) -> float:
        """Bytes a second around a ring: NCCL's rings leave a machine by all its adapters."""
        return self.link if ranks <= self.gpus_a_machine else min(self.link, self.network * self.gpus_a_machine)


@dataclass(frozen=True)
class Backbone:
    """What counts of a backbone; all but the first two of one image. parameters, statistics: numbers, not bytes.

    kept: bytes of activations for the backward, in half precision.  gradients: bytes of each of DDP's buckets.
    """

    name: str
    parameters: int
    statistics: int
    macs: float
    normalised: float
    kept: float
    gradients: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """The step of a run. batch: the global one, B.  memory: injection is on.  momentum: a momentum backbone runs.

    stored: bytes of an element of the centres' rows.
    """

    classes: int
    batch: int
    ranks: int
    rate: float = 1.0
    memory: bool = False
    momentum: bool = False
    size: int = 512
    stored: int = 4

    @property
    def shard(self) -> int:
        """Classes of the first rank, which has the most."""
        return -(-self.classes // self.ranks)

    @property
    def used(self) -> int:
        """k, classes that a rank uses."""
        return max(min(self.batch, self.shard), int(self.rate * self.shard + 1e-9)) if self.rate < 1 else self.shard


@dataclass(frozen=True)
class Collective:
    """Calls of one kind in a step. num_bytes: of their whole tensors together.  waited: nothing runs meanwhile."""

    name: str
    calls: int
    num_bytes: int
    waited: bool = True

    def moved(self, ranks: int) -> float:
        """Bytes that a ring lets each rank send: a gather or a scatter (R − 1)/R of the tensor, a reduction twice."""
        once = (ranks - 1) / ranks * self.num_bytes
        return once if self.name in ("gather_rows_later", "reduce_scatter_rows") else 2 * once


def collectives(step: Step, backbone: Backbone) -> list[Collective]:
    """All that a step exchanges where the margin needs no more than the target's shard (ArcFace and its like)."""
    rows = 4 * step.batch * step.size
    found = [
        # Embeddings and labels, then the momentum backbone's; with one, they travel while it or the head computes.
        Collective("gather_rows_later", 2 + step.momentum, rows * (1 + step.momentum) + 8 * step.batch,
                   waited=not step.momentum),
        # Sums and target cosines; running statistics.
        Collective("sum_over_ranks", 1 + (backbone.statistics > 0), 8 * step.batch + 4 * backbone.statistics),
        Collective("reduce_scatter_rows", 1, rows),
        Collective("sum of gradients", len(backbone.gradients), sum(backbone.gradients), waited=False),
        Collective("max_over_ranks_later", 1, 48, waited=False),  # the guard's six numbers
    ]
    return found if step.ranks > 1 else []


def head_flops(step: Step) -> float:
    """Of the four products of two passes: cosines twice, the embeddings' and the centres' gradient."""
    return 8 * step.batch * step.used * step.size


def head_traffic(step: Step) -> float:
    """Bytes of rows: the weight read twice and written once, the momentum both, the memory read twice."""
    return (5 + 2 * step.memory) * step.stored * step.used * step.size


def seconds(step: Step, backbone: Backbone, hardware: Hardware) -> dict[str, float]:
    """Modelled seconds of the parts of a step; what is exposed of the exchange is a part of its own."""
    images = step.batch / step.ranks
    trained = images * (6 * backbone.macs / hardware.flops + NORM_PASSES * 2 * backbone.normalised / hardware.memory)
    update = 4 * backbone.parameters * (UPDATE_PASSES + FOLLOW_PASSES * step.momentum)
    work = {
        "backbone": trained,
        "momentum forward": trained / 3 * step.momentum,
        "head": head_flops(step) / hardware.flops + head_traffic(step) / hardware.memory,
        "update": update / hardware.memory,
    }
    work = {name: value / hardware.efficiency for name, value in work.items()}
    each = [(kind.waited, kind.moved(step.ranks) / hardware.ring(step.ranks)
             + kind.calls * hardware.latency * math.log2(step.ranks)) for kind in collectives(step, backbone)]
    beside = sum(value for waited, value in each if not waited)
    exposed = sum(value for waited, value in each if waited) + max(0.0, beside - 2 / 3 * work["backbone"])
    return work | {"exchange": exposed}


def state_bytes(step: Step) -> int:
    """Of a rank's classes: weight, momentum, and with injection the memory and its stamps."""
    return step.shard * ((2 + step.memory) * step.stored * step.size + 8 * step.memory)


def memory(step: Step, backbone: Backbone) -> dict[str, float]:
    """Bytes on one GPU: what the classes keep, what a step of the head takes, the backbone's state and activations.

    A momentum backbone is there twice, the second time with its norms folded in. What it takes for a moment to follow,
    a copy of the parameters, comes when the activations are gone.
    """
    images = step.batch / step.ranks
    drawn = DRAWN_BYTES * step.used if step.used < step.shard else 0
    return {
        "classes": state_bytes(step),
        "head": TILES + drawn + 8 * 4 * step.batch * step.size,
        "backbone": 4 * backbone.parameters * (3 + 2 * step.momentum) + 2 * backbone.parameters,  # and a half copy
        "activations": max(images * backbone.kept, 4 * backbone.parameters * step.momentum),
    }


def modelled(step: Step, backbone: Backbone, hardware: Hardware) -> dict[str, Any]:
    """A row of the table: all of the above for one step."""
    parts, room = seconds(step, backbone, hardware), memory(step, backbone)
    total = sum(parts.values())
    moved = sum(kind.moved(step.ranks) for kind in collectives(step, backbone))
    return {
        "classes": step.classes, "ranks": step.ranks, "batch": step.batch, "rate": step.rate, "backbone": backbone.name,
        "inject": "qaface" if step.memory else "none", "stored": step.stored, "memory": room,
        "bytes": sum(room.values()), "moved": moved, "seconds": parts, "step": total,
        "head_share": parts["head"] / total, "images_per_second": step.batch / total, "is": "modelled",
    }
