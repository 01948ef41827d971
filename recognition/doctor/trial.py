"""A few steps of the real run on all ranks, measured, and what they come to in hours.

Run by the launcher as the ranks of a run are, with the same processes, threads and exchanges, in the middle of the
schedule (where injection is on) and with a learning rate of nothing. Three measurements: the loader alone; the step
alone, of one batch over and over, from few rows up to the whole batch as far as the time allows; and both together. Of
a batch that would take too long some rows are measured, and a line through the last two sizes is read at the whole
batch: then the result is marked as extrapolated. On a CPU the backbone is not compiled, which would take a minute for
each size, and the result says so where the run compiles; where the settings ask for it two small layers are, to see
that a compiler works. Nothing is saved and no folder of the run is made.
Proven by tests/recognition/test_doctor.py.
"""

import argparse
import dataclasses
import itertools
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recognition import distributed, machine
from recognition.assembly import Run, assemble, how_compiled
from recognition.cause import note_path
from recognition.config import Config, load
from recognition.data.batch import Batch
from recognition.data.dataset import RecordDataset
from recognition.distributed import Ranks, max_over_ranks, sum_over_ranks
from recognition.doctor.files import open_for_trial
from recognition.progress import Progress
from recognition.speed import WORTH_COMPILING, Compile, pays_on_cpu, try_compiled
from recognition.stopping import end_with_parent
from recognition.train import run_rank, train_step

LOADER_SECONDS, STEP_SECONDS, TOGETHER_SECONDS = 5.0, 22.0, 15.0
MOST_STEPS = 30
_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_NO_RATE = 1e-12  # a learning rate: nothing is to be learnt, and nothing may diverge


def main(arguments: Sequence[str]) -> int:
    """Measure on this rank; rank 0 writes what was found."""
    parser = argparse.ArgumentParser(prog="python -m recognition.doctor.trial", description=main.__doc__)
    parser.add_argument("config")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1 << 62, help="of a rank's batch at most so many, for its memory")
    parser.add_argument("--steps", type=int, help="of the run's schedule, where the set is not opened whole")
    parser.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="a.b=VALUE")
    options = parser.parse_args(list(arguments))
    end_with_parent()
    config = load(options.config, options.overrides)
    ranks = distributed.start(config.timeout_seconds, Progress(note_path("progress")))
    if ranks.device.type == "cpu" and config.speed.compile != "auto":
        require_compiler(config.speed.compile, ranks)
    dataset, whole = open_for_trial(config)
    found = measure(config, ranks, dataset, options.rows, steps=options.steps) | {"whole_set": whole}
    if ranks.is_first:
        options.out.write_text(json.dumps(found))
    distributed.stop(ranks)
    return 0


class _Layers(nn.Module):
    """What is compiled to see that it can be; of torch's own modules alone nothing would be."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, values: Tensor) -> Tensor:
        return torch.relu(self.linear(values))


def require_compiler(way: Compile, ranks: Ranks) -> None:
    """SettingsError as of the run, where this machine cannot compile what its settings ask for.

    The first rank tries it, on two layers and in an empty cache, as what was compiled before needs no compiler.
    """
    layers = _Layers()

    def passes() -> None:
        if ranks.is_first:
            layers(torch.ones(4, 8)).sum().backward()

    kept = os.environ.get(_CACHE)
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        os.environ[_CACHE] = folder
        try:
            try_compiled(way, [layers], passes, ranks, asked=True)
        finally:
            os.environ.pop(_CACHE)
            if kept is not None:
                os.environ[_CACHE] = kept


def measure(
    config: Config, ranks: Ranks, dataset: RecordDataset, most_rows: int = 1 << 62, patience: float = 1.0,
    steps: int | None = None,
) -> dict[str, Any]:
    """Seconds and bytes, the same on all ranks. patience: a factor of the seconds that measuring may take.

    most_rows: of a rank's batch, that its memory has room for.  steps: of the run; None for those on `dataset`.

    {"ranks", "batch", "loader": {"batches", "seconds"}, "points": [[rows of a rank, seconds], …], "together": [seconds
    of a step, …], "peak_bytes", "name": of the loader, "left_out": the run's way of compiling, if it was not taken,
    "gains": whether that would make steps faster}
    """
    largest = dataset.num_images // ranks.world_size * ranks.world_size
    speed, on_cpu = config.speed, ranks.device.type == "cpu"
    tried = dataclasses.replace(speed, compile="off") if on_cpu else speed
    run = assemble(
        dataclasses.replace(config, batch_size=min(config.batch_size, largest), speed=tried), ranks, dataset)
    run.step = len(run.rates) // 2
    way = how_compiled(config, run.backbone, ranks, steps or len(run.rates))  # of several machines: a rank's rows count
    batches, seconds, batch = _loader(run, LOADER_SECONDS * patience)
    points = _points(run, batch, max(run.config.micro_batches, most_rows), STEP_SECONDS * patience)
    is_whole = points[-1][0] == len(batch.image)
    together = _together(run, points[-1][1], TOGETHER_SECONDS * patience) if is_whole else []
    peak = torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else machine.resident_bytes()
    return {
        "ranks": ranks.world_size, "batch": run.config.batch_size, "name": run.loader.name,
        "left_out": way if on_cpu else "off", "gains": pays_on_cpu(run.backbone, WORTH_COMPILING),
        "loader": {"batches": batches, "seconds": seconds}, "points": points, "together": together,
        "peak_bytes": int(_slowest(float(peak), ranks)),
    }


def _loader(run: Run, patience: float) -> tuple[int, float, Batch]:
    """How many batches the slowest rank's loader made, all at work, in how many seconds; and one of them."""
    made = run.loader.batches(run.step, run.step + 10_000)
    batch = next(made)  # the first one waits for the start of threads
    _wait(run)
    begin, count = time.perf_counter(), 0
    while not count or time.perf_counter() - begin < patience:
        batch = next(made)
        count += 1
    _wait(run)
    took = time.perf_counter() - begin
    made.close()  # type: ignore[attr-defined]
    mean = float(sum_over_ranks(torch.tensor([took / count], dtype=torch.float64, device=run.ranks.device), run.ranks))
    return count, mean / run.ranks.world_size * count, batch


def _points(run: Run, batch: Batch, most_rows: int, patience: float) -> list[list[float]]:
    """[rows, seconds] of steps from few rows up to the whole batch, as far as time and memory allow.

    A GPU takes the whole batch at once: it is there for that, and what is compiled is compiled for it. Fewer rows go in
    two micro-batches where the settings have more: what counts is that each passes the backbone twice.
    """
    config, rows = run.config, min(len(batch.image), most_rows)
    rows -= rows % config.micro_batches
    parts = min(2, config.micro_batches)
    size = rows if run.ranks.device.type == "cuda" else min(rows, 2 * parts)
    points: list[list[float]] = []
    begin = time.perf_counter()
    while True:
        run.config = config if size == rows else dataclasses.replace(config, micro_batches=parts)
        seconds = _timed_step(run, _first_rows(batch, size))
        if not points or seconds < patience / 10:  # the first of a size allocates, and chooses algorithms
            seconds = _timed_step(run, _first_rows(batch, size))
        points.append([size, seconds])
        left = patience - _slowest(time.perf_counter() - begin, run.ranks)
        if size == rows:
            break
        following = min(rows, 4 * size)
        following -= 0 if following == rows else following % parts
        if 2.2 * seconds * following / size > left:  # a second size there must be, for the line
            if len(points) > 1:
                break
            following = min(following, 2 * size)
        size = following
    run.config = config
    return points


def _together(run: Run, expected: float, patience: float) -> list[float]:
    """Seconds of steps with the loader at work, the slowest rank's each."""
    steps = max(3, min(MOST_STEPS, int(patience / max(expected, 1e-6))))
    seconds = []
    made = run.loader.batches(run.step, run.step + steps + 2)
    _wait(run)
    begin = time.perf_counter()
    for batch in itertools.islice(made, steps + 1):
        train_step(run, batch, _NO_RATE)
        _wait(run)
        now = time.perf_counter()
        seconds.append(_slowest(now - begin, run.ranks))
        begin = time.perf_counter()
    made.close()  # type: ignore[attr-defined]
    return seconds[1:]  # the first one waited for the loader's start


def _timed_step(run: Run, batch: Batch) -> float:
    _wait(run)
    begin = time.perf_counter()
    train_step(run, batch, _NO_RATE)
    _wait(run)
    return _slowest(time.perf_counter() - begin, run.ranks)


def _first_rows(batch: Batch, rows: int) -> Batch:
    return Batch(batch.image[:rows], batch.label[:rows], batch.sample[:rows])


def _wait(run: Run) -> None:
    if run.ranks.device.type == "cuda":
        torch.cuda.synchronize(run.ranks.device)


def _slowest(value: float, ranks: Ranks) -> float:
    return float(max_over_ranks(torch.tensor([value], dtype=torch.float64, device=ranks.device), ranks))


if __name__ == "__main__":
    import sys

    run_rank(sys.argv[1:], main)
