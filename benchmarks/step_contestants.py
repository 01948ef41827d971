"""The contestants of benchmarks/step.py: this project's step, the usual one, and the backbone alone.

Ours is the run that training builds and the step that training takes, from `assemble` and `train_step`, with only its
`phases` replaced by a clock. Centres, their momentum and the memory are one set of tensors for all contestants of a
process, so that they fit side by side. The memory is as a run leaves it that has gone on for Δt steps: of C classes
1 − exp(−B·Δt/C) are fresh.
Proven by tests/benchmarks/test_step.py.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baseline.loader import PREFETCH_FACTOR
from benchmarks.baseline.loader import batches as usual_batches
from benchmarks.baseline.step import UsualStep, prefetched
from benchmarks.head import quick_centers, random_centers, share
from benchmarks.measure import PhaseClock
from recognition.assembly import Run, assemble, choose_precision
from recognition.backbones import build as build_backbone
from recognition.config import Config, load
from recognition.data.dataset import open_dataset
from recognition.distributed import Ranks
from recognition.errors import SettingsError
from recognition.heads.sharded import HeadStep, ShardedHead
from recognition.memory import INJECTIONS
from recognition.speed import Garbage
from recognition.train import train_step

RATE = 1e-6  # learning rate: the networks stay what they are, however long it runs
FOREVER = 1 << 40
AHEAD = 2  # batches that our loaders have in work at most when none was asked for: the fallback's, and DALI's queue
CONFIG = Path(__file__).with_name("step_config.py")
ALONE, USUAL, OURS = "backbone alone", "baseline", "ours"
KINDS = (ALONE, USUAL, OURS)
OPTIONS = {
    "batch_size": "--batch", "backbone.name": "--backbone", "precision": "--precision", "head.margin": "--margin",
    "head.sample_rate": "--sample-rate", "head.inject": "--inject and --injection", "data.root": "--data",
    "data.threads": "--workers",
}
"""Settings that have an option of benchmarks/step.py: rows, floors, peaks and the baseline go by it."""


@dataclass(frozen=True)
class Problem:
    """What all contestants of one process share.

    data: folder of the set.  resident: one batch that lies on the device already, in every step.
    workers: threads or processes of a loader.  threads: of torch on the CPU.  overrides: settings, as a.b=value.
    all_fresh: every class is injected, however large the share would be in a run.
    """

    backbone: str
    batch: int
    classes: int
    sample_rate: float
    margin: str
    device: str
    precision: str
    data: str
    resident: bool
    workers: int
    threads: int | None
    overrides: tuple[str, ...] = ()
    all_fresh: bool = False


@dataclass(frozen=True)
class Variant:
    """One contestant. kind: of KINDS.  inject: what ours injects.  overrides: settings of this one, as a.b=value."""

    kind: str
    inject: str = "none"
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As tables and plots call it."""
        return ", ".join([self.kind, *([] if self.inject == "none" else [self.inject]), *self.overrides])


@dataclass(frozen=True)
class Contestant:
    """A variant ready to run. step: one whole step, its wait for data included.  state: bytes that it keeps.

    drain: throws away what its loader has ready.  around: a context for some steps in a row, as training has it.
    """

    step: Callable[[], object]
    clock: PhaseClock
    state: int
    drain: Callable[[], object] = lambda: None
    around: Callable[[], AbstractContextManager] = nullcontext


class Supply:
    """A loader's batches, endlessly; it begins when the first is asked for.

    begin: its batches.  ahead: how many it may have ready, or in work, before they are asked for.
    resident: the first batch, again and again; the loader rests.
    """

    def __init__(self, begin: Callable[[], Iterator[Any]], ahead: int, resident: bool) -> None:
        self.begin, self.ahead, self.resident = begin, ahead, resident
        self._batches: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._batches is None:
            batches = self.begin()
            self._batches = itertools.repeat(next(batches)) if self.resident else batches
        return next(self._batches)

    def drain(self) -> None:
        """Take, and use for nothing, as many batches as may be ready: the next one has to be waited for."""
        for _ in range(0 if self.resident else self.ahead):
            next(self)


class NoHead(ShardedHead):
    """In the head's place: a gradient that costs nothing."""

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        self.ranks = Ranks(device=device)
        gradient = torch.randn(batch, size, device=device).div_(batch)
        label = torch.zeros(batch, dtype=torch.int64, device=device)
        true = torch.ones((), dtype=torch.bool, device=device)
        self.result = HeadStep(torch.zeros((), device=device), gradient, true, gradient, label)

    def step(self, *_: Any, **__: Any) -> HeadStep:
        """See ShardedHead.step."""
        return self.result

    def remember(self, *_: Any, **__: Any) -> None:
        """See ShardedHead.remember."""

    def state(self) -> dict[str, Tensor]:
        """See ShardedHead.state."""
        return {}


def require_no_options(overrides: Iterable[str]) -> None:
    """Raise SettingsError where an override, a.b=value, is of a setting that has an option of its own."""
    for override in overrides:
        name = override.partition("=")[0].strip()
        if name in OPTIONS:
            raise SettingsError(f"{override}: {name} has an option of its own, which rows and floors go by: use "
                                f"{OPTIONS[name]}")


def settings(problem: Problem, variant: Variant) -> Config:
    """The settings of a variant, on a CPU without torch.compile. Raises SettingsError as a run does."""
    require_no_options((*problem.overrides, *variant.overrides))
    chosen = [
        f"data.root={problem.data}", f"data.threads={problem.workers}", f"backbone.name={problem.backbone}",
        f"batch_size={problem.batch}", f"head.margin={problem.margin}", f"head.sample_rate={problem.sample_rate}",
        f"precision={problem.precision}", f"head.inject={variant.inject}",
    ]
    if problem.device == "cpu":  # auto goes by the length of a run, and this one has none
        chosen += ["speed.compile=off"]
    if variant.inject != "none":
        chosen += ["head.inject.start_epoch=0", f"head.inject.max_age={FOREVER}"]
    return load(CONFIG, [*chosen, *problem.overrides, *variant.overrides])


def build(problem: Problem, variant: Variant, shared: dict[str, Tensor] | None = None) -> Contestant:
    """A variant ready to run; `shared`: centres, momentum and memory that all use, filled by the first who needs it."""
    if problem.threads:
        torch.set_num_threads(problem.threads)
    torch.manual_seed(0)
    shared = {} if shared is None else shared
    return usual(problem, variant, shared) if variant.kind == USUAL else ours(problem, variant, shared)


def ours(problem: Problem, variant: Variant, shared: dict[str, Tensor]) -> Contestant:
    """This project's step, or the same without head and data."""
    config, device, alone = settings(problem, variant), device_of(problem), variant.kind == ALONE

    def centers(seed: int, start: int, stop: int, size: int, device: torch.device | None = None) -> Tensor:
        if alone:
            return torch.empty(stop - start, size, device=device)
        kept = shared.get("weight")
        fits = kept is not None and kept.shape == (stop - start, size)
        return kept if fits and kept is not None else random_centers(seed, start, stop, size, device)

    with quick_centers(centers):
        run = assemble(config, Ranks(device=device))
    if alone:
        run.head = NoHead(problem.batch, config.backbone.embedding_size, device)
    else:
        share(run.head.state(), shared)
        if run.head.memory is not None and not problem.all_fresh:
            written = fresh_share(problem.batch, problem.classes, INJECTIONS[variant.inject]().max_age)
            age(run.head.memory.stamp, written)
    clock = run.phases = PhaseClock(problem.device)
    batches = Supply(lambda: run.loader.batches(0, FOREVER), AHEAD, alone or problem.resident)

    def step() -> None:
        torch.backends.cudnn.benchmark = config.speed.tune  # else that of whoever was built last
        with clock("data wait"):
            batch = next(batches)
        figures = train_step(run, batch, RATE)
        run.guard.post(run.step, figures.bad)

    state = in_bytes(kept_tensors(run))
    return Contestant(step, clock, state, batches.drain, lambda: Garbage(config.speed.hold_garbage))


def kept_tensors(run: Run) -> Iterator[Tensor]:
    """What a run keeps between steps: centres, optimiser, memory, backbones, the momentum backbone's folded weights."""
    yield from run.head.state().values()
    yield from run.optimizer.state().values()
    yield from network_tensors(run.backbone)
    if run.momentum:
        yield from network_tensors(run.momentum.module)
        if run.momentum._folded:  # it runs, or a CUDA graph of it, and shares the other tensors with the module
            yield from network_tensors(run.momentum._folded.module)


def fresh_share(batch: int, classes: int, max_age: int) -> float:
    """Share of the classes that were in a batch within Δt steps, each image's class drawn at random."""
    return -math.expm1(-batch * max_age / classes)


def age(stamp: Tensor, fresh: float) -> None:
    """Leave that share of the memory's rows as written, spread at random; the others were never."""
    spread = torch.rand(len(stamp), generator=torch.Generator().manual_seed(0)).to(stamp.device)
    stamp.copy_(torch.where(spread < fresh, 0, -1))


def usual(problem: Problem, variant: Variant, shared: dict[str, Tensor]) -> Contestant:
    """The usual trainer's step, with the usual trainer's loader."""
    config, device = settings(problem, variant), device_of(problem)
    dataset, size = open_dataset(problem.data), config.backbone.embedding_size
    if "weight" not in shared:
        shared["weight"] = random_centers(0, 0, dataset.num_classes, size, device)
        shared["velocity"] = torch.zeros_like(shared["weight"])
    trained = UsualStep(
        build_backbone(config.backbone).to(device), shared["weight"], dataset.num_classes, problem.margin,
        Ranks(device=device), momentum=shared["velocity"], sample_rate=problem.sample_rate,
        product_dtype=choose_precision(config.precision, device),
    )
    clock = trained.phases = PhaseClock(problem.device)

    def begin() -> Iterator[Any]:
        images, _ = usual_batches(dataset.paths[0], problem.batch, problem.workers, "opencv",
                                  dataset.offsets_in_all_files().tolist(), pinned=problem.device == "cuda")
        return prefetched(images, device)

    ahead = PREFETCH_FACTOR * problem.workers + (problem.device == "cuda")  # and the one that `prefetched` has copied
    batches = Supply(begin, ahead, problem.resident)

    def step() -> None:
        with clock("data wait"):
            image, label = next(batches)
        trained.step(image, label, RATE)

    network = network_tensors(trained.backbone)
    moments = [torch.empty_like(p, device="meta") for p in trained.backbone.parameters()]
    state = in_bytes([*network, *moments, shared["weight"], shared["velocity"]])
    return Contestant(step, clock, state, batches.drain)


def device_of(problem: Problem) -> torch.device:
    """The CPU or the first GPU."""
    return torch.device("cuda", 0) if problem.device == "cuda" else torch.device("cpu")


def network_tensors(network: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*network.parameters(), *network.buffers()]


def in_bytes(tensors: Iterable[Tensor]) -> int:
    """How much tensors take together; one that comes several times counts once."""
    every = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in every.values())
