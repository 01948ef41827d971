"""What benchmarks/scaling.py counts: a backbone's operations and bytes, and the exchanges of real steps on gloo ranks.

Proven by tests/benchmarks/test_scaling.py.
"""

import contextlib
import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.head import quick_centers
from benchmarks.scaling_model import Backbone, Step
from recognition.assembly import Run, assemble
from recognition.backbones import BackboneSettings, build
from recognition.config import load
from recognition.data.plan import IMAGE_SIDE
from recognition.data.shard_writer import ShardWriter
from recognition.distributed import Ranks
from recognition.phases import Phases
from recognition.progress import Progress
from recognition.train import train_step

CONFIG = Path(__file__).with_name("step_config.py")
IMAGES = 256  # of a set that is only counted on
STEPS = 6  # of which the last one's exchanges count: DDP lays its buckets in the first
RATE = 1e-6
FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20  # bytes at which DDP closes its buckets, by default


class Counter(Progress):
    """Counts calls and bytes of each kind of collective."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def exchange(self, name: str, num_bytes: int = 0) -> None:
        """See `Progress`."""
        super().exchange(name, num_bytes)
        self.counted[name][0] += 1
        self.counted[name][1] += num_bytes


class CpuClock(Phases):
    """CPU seconds of this process by part of each step: other work on the machine does not count."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._open: list[tuple[str, float]] = []

    def __call__(self, name: str) -> "CpuClock":
        """See `Phases`."""
        self._open.append((name, 0.0))
        return self

    def __enter__(self) -> None:
        self._open[-1] = (self._open[-1][0], time.process_time())

    def __exit__(self, *_: object) -> None:
        name, begin = self._open.pop()
        self.seconds[name].append(time.process_time() - begin)


def count_backbone(name: str, size: int = 512) -> Backbone:
    """Numbers of a backbone from its graph: nothing is computed but two small batches for what autograd keeps."""
    with torch.device("meta"):
        network, passed = build(BackboneSettings(name, size)), list[int]()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.PReLU):
                module.register_forward_hook(lambda _module, _input, output: passed.append(output.numel()))
        with FlopCounterMode(display=False) as flops:
            network(torch.zeros(2, 3, IMAGE_SIDE, IMAGE_SIDE))
    trained = [p.numel() for p in network.parameters() if p.requires_grad]
    statistics = sum(b.numel() for b in network.buffers() if b.is_floating_point())
    return Backbone(name, sum(trained), statistics, flops.get_total_flops() / 2 / 2, sum(passed) / 2,
                    kept_bytes(name, size), buckets([4 * number for number in trained]))


def kept_bytes(name: str, size: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """Bytes of activations that autograd keeps of one more image, in mixed precision."""
    network = build(BackboneSettings(name, size)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    own = {parameter.data_ptr() for parameter in network.parameters()}

    def kept(images: int) -> int:
        held: list[torch.Tensor] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            held.append(tensor)
            return tensor

        image = torch.randn(images, 3, IMAGE_SIDE, IMAGE_SIDE).to(memory_format=torch.channels_last)
        mixed = torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), mixed:
            network(image)
        stores = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held if t.data_ptr() not in own}
        return sum(stores.values())

    return (kept(4) - kept(2)) / 2


def buckets(sizes: list[int]) -> tuple[int, ...]:
    """Bytes of the buckets in which DDP exchanges gradients: filled from the last parameter on until one is full."""
    found, filled, limit = [], 0, FIRST_BUCKET
    for size in reversed(sizes):
        filled += size
        if filled >= limit:
            found.append(filled)
            filled, limit = 0, BUCKET
    return tuple([*found, filled] if filled else found)


def write_set(folder: Path, classes: int) -> Path:
    """A set that states so many classes, with a few images of some of them."""
    folder.mkdir(parents=True)
    image = cv2.imencode(".jpg", np.full((IMAGE_SIDE, IMAGE_SIDE, 3), 128, np.uint8))[1].tobytes()
    with ShardWriter(folder / "train.rec") as shard:
        for number in range(IMAGES):
            shard.add(number * classes // IMAGES, image, str(number))
    (folder / "property").write_text(f"{classes},{IMAGE_SIDE},{IMAGE_SIDE}\n")
    return folder


def build_run(ranks: Ranks, root: Path, step: Step, backbone: str, overrides: tuple[str, ...] = ()) -> Run:
    """A run as training builds it, with quickly made centres. step.memory: QAFace, fresh from the first write on."""
    chosen = [f"data.root={root}", "data.reader=fallback", "data.threads=1", f"batch_size={step.batch}",
              f"backbone.name={backbone}", f"backbone.embedding_size={step.size}", f"head.sample_rate={step.rate}",
              "epochs=1000", "speed.compile=off", f"head.inject={'qaface' if step.memory else 'none'}"]
    chosen += ["head.inject.start_epoch=0"] if step.memory else []
    with quick_centers():
        return assemble(load(CONFIG, [*chosen, *overrides]), ranks)


def count_all(ranks: Ranks, folder: Path, steps: Sequence[Step], backbone: str) -> list[dict[str, Any]]:
    """`count_steps` of several runs in the same processes, on sets in folders named by their classes."""
    torch.set_num_threads(1)
    return [count_steps(ranks, folder / str(step.classes), step, backbone) for step in steps]


def count_steps(ranks: Ranks, root: Path, step: Step, backbone: str) -> dict[str, Any]:
    """Calls and bytes by kind of the collectives of a whole step on this rank, and its parts' CPU seconds."""
    counter, clock = Counter(), CpuClock()
    run = build_run(dataclasses.replace(ranks, progress=counter), root, step, backbone)
    run.phases = clock
    if run.head.memory is not None:  # pages that were never written cost nothing to read
        run.head.memory.rows.normal_(0, step.size**-0.5)
        run.head.memory.stamp.zero_()
    for batch in run.loader.batches(0, STEPS):
        counter.counted.clear()
        figures = train_step(run, batch, RATE)
        run.guard.post(run.step, figures.bad)
    counted = {name: tuple(pair) for name, pair in counter.counted.items()}
    median = {name: statistics.median(seconds[1:]) for name, seconds in clock.seconds.items()}
    return {"counted": counted, "cpu_seconds": median}
