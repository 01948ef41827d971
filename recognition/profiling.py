"""`--profile N`: some steps of a run under torch.profiler, a trace of them, and a page that says where the time went.

    warm-up: WARM_UP steps as ever, the last SETTLE of them with the profiler on but thrown away
    → N steps whose phases are annotated → RUN/profile/trace_rank0.json.gz (Chrome's format, as Perfetto reads it),
    summary.txt and summary.json beside it → the run goes on to its end as if nothing had been

It is rank 0 that is profiled; the others wait for it where they exchange, as ever. What is trained stays the same to
the bit. Without --profile a run contains none of this. recognition/profile_summary.py reads the trace.
Proven by tests/recognition/test_profiling.py.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from recognition.assembly import Run
from recognition.data.batch import Batch
from recognition.errors import SettingsError
from recognition.log import logger
from recognition.phases import Phases
from recognition.profile_summary import DATA_WAIT, page, read_trace, summarise

WARM_UP, SETTLE = 10, 2
MOST_STEPS = 1000  # a step leaves some thousand events: more would fill the memory


class TracedPhases(Phases):
    """Phases as ranges in a trace."""

    def __call__(self, name: str) -> contextlib.AbstractContextManager:
        """See `Phases`."""
        return record_function(name)


class Profile:
    """What `--profile` asks for: `steps` to profile, once; 0: none."""

    def __init__(self, steps: int) -> None:
        """Raise SettingsError when that cannot be."""
        if not 0 <= steps <= MOST_STEPS:
            raise SettingsError(f"--profile {steps}: expected 1 to {MOST_STEPS} steps")
        self.steps = steps

    def require(self, run: Run) -> None:
        """Raise SettingsError on all ranks where the run has fewer steps left than are to be profiled."""
        left = len(run.rates) - run.step
        if self.steps and left < WARM_UP + self.steps:
            raise SettingsError(f"--profile {self.steps}: needs {WARM_UP + self.steps} steps with the {WARM_UP} that "
                                f"warm up, and the run has {left} left")

    def watch(self, run: Run, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, each asked for when the step before it is over; some of these steps are profiled on rank 0."""
        if not self.steps or not run.ranks.is_first:
            return batches
        return self._watched(run, batches)

    def _watched(self, run: Run, batches: Iterator[Batch]) -> Iterator[Batch]:
        for _ in range(WARM_UP - SETTLE):
            yield next(batches)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell the terminal of its start and its end
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (run.ranks.device.type == "cuda")
        plan = schedule(wait=0, warmup=SETTLE, active=self.steps, repeat=1)
        plain, run.phases = run.phases, TracedPhases()
        try:
            with profile(activities=activities, schedule=plan) as profiler:
                for number in range(SETTLE + self.steps):
                    with record_function(DATA_WAIT):
                        batch = next(batches)
                    yield batch
                    if number == SETTLE + self.steps - 1:
                        self._finish(run.ranks.device)
                    profiler.step()
        finally:
            run.phases = plain
        folder = run.config.folder / "profile"
        write_profile(profiler, folder, self.steps)
        logger.info("profiled %d steps, to step %d: %s", self.steps, run.step, folder / "summary.txt")
        self.steps = 0  # a run that goes back to a checkpoint is not profiled twice
        yield from batches

    @staticmethod
    def _finish(device: torch.device) -> None:
        """The last step ends when the device has done it."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def write_profile(profiler: profile, folder: Path, steps: int) -> None:
    """Leave the trace and its summary in a folder, in the place of older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / "trace_rank0.json.gz"
    for old in (trace, folder / "summary.json", folder / "summary.txt"):
        old.unlink(missing_ok=True)
    profiler.export_chrome_trace(str(trace))
    summary = summarise(read_trace(trace))
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (folder / "summary.txt").write_text(page(summary))
