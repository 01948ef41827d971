"""From a trial's figures to hours, and what limits a run. Proven by tests/recognition/test_doctor.py."""

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.safe_pickle import load_pairs
from recognition.config import Config, find_sets
from recognition.doctor.files import SetFacts
from recognition.doctor.report import Report, amount
from recognition.doctor.runs import Runs
from recognition.errors import DataError, SettingsError

Launch = Callable[[Sequence[str]], tuple[int, str]]
"""Runs `python COMMAND` on all ranks of this machine: exit status, and the reason where it is not 0."""


class Estimate(NamedTuple):
    """What a trial comes to. step, loader: seconds for one batch.  low, high: of the seconds a step, as trained.

    measured: whether the whole batch was; else it was read off a line.  least: seconds for a step, of `step` and
    `seconds`: on a busy machine steps may be faster beside the loader than alone, while others had the machine.
    """

    seconds: float
    low: float
    high: float
    step: float
    loader: float
    measured: bool

    @property
    def least(self) -> float:
        """Seconds that a step is known to take at the most."""
        return min(self.step, self.seconds)


class Span(NamedTuple):
    """Seconds, and between which they may lie."""

    middle: float
    low: float
    high: float


def tell_time(
    report: Report, runs: Runs, facts: list[SetFacts], launch: Launch, machines: int, most_rows: int
) -> None:
    """The section on time: measures some steps of the costliest run on this machine's ranks, about a minute.

    most_rows: of a rank's batch, that its memory has room for.
    """
    report.section("time")
    path, overrides, config = runs.costliest.path, runs.costliest.overrides, runs.costliest.config
    batch = config.batch_size // machines
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        out = Path(folder) / "trial.json"
        settings = [*overrides, *([f"batch_size={batch}"] if machines > 1 else []), f"output={folder}"]
        limits = ["--rows", str(most_rows)]
        if facts and all(fact.images for fact in facts):  # as a part of them is opened
            limits += ["--steps", str(round(config.epochs * steps_per_epoch(config, facts)))]
        command = ["-m", "recognition.doctor.trial", path, "--out", str(out), *limits, "--set", *settings]
        status, reason = launch(command)
        if status or not out.exists():
            report.problem(status or 1, "trial", f"the ranks did not get through a few steps: {reason}")
            return
        found: dict[str, Any] = json.loads(out.read_text())
    guess = estimate(found, batch)
    report.figures["trial"] = found | {"estimate": guess._asdict()}
    _tell_all(report, runs, _tell_trial(report, config, found, guess, facts))
    if machines > 1:
        report.fact("one machine", f"of {machines} was measured, with all classes on its ranks and no exchange between "
                    "machines")


def steps_per_epoch(config: Config, facts: list[SetFacts]) -> int:
    """Steps of an epoch, as far as the number of images is known."""
    weights = config.data.weights or (1.0,) * len(facts)
    used = sum(round((fact.images or 0) * weight) for fact, weight in zip(facts, weights, strict=False))
    return used // config.batch_size


def _tell_trial(
    report: Report, config: Config, found: dict[str, Any], guess: Estimate, facts: list[SetFacts]
) -> Span:
    """Say what was measured and what it comes to; the seconds of a run, with scoring while it trains."""
    batch, ranks = found["batch"], found["ranks"]
    loader = f"{found['name']}: {rate(batch / guess.loader)}"
    if not found["whole_set"]:
        loader += " (a part of the set, read just before: the disk is not in it)"
    waits = guess.loader > 0.9 * guess.least
    report.judge(not waits, "loader alone", loader + (
        ": training waits for it: more cores, data.decode on a GPU, less augmentation helps" if waits else ""))
    sizes = ", ".join(f"{int(rows * ranks)} rows {seconds:.3g} s" for rows, seconds in found["points"])
    report.fact("step alone", f"{rate(batch / guess.step)} ({sizes})" + (
        ": while that was measured this machine was slower than below" if guess.least < guess.step else ""))
    if guess.measured:
        report.fact("both together", f"{rate(batch / guess.seconds)}, the median of "
                    f"{len(found['together'])} steps; a rank held {amount(found['peak_bytes'])}")
    else:
        report.warning("extrapolated", f"a batch of {config.batch_size} takes too long to measure here: read off a "
                       "line through the two largest sizes, ± 30 %")
    if found["left_out"] != "off":
        report.judge(found["gains"], "compiled", "the run compiles its backbone (speed.compile="
                     f"{found['left_out']}): some minutes at the start, then " + (
                         "faster than these steps, which did not" if found["gains"] else "slower than these steps, as "
                         "transformers were measured on a CPU (docs/performance.md); speed.compile=off does not"))
    an_epoch = steps_per_epoch(config, facts)
    steps = round(config.epochs * an_epoch)
    report.fact("training", f"{steps:,} steps, {an_epoch:,} an epoch: {span(steps * guess.seconds)} "
                f"({span(steps * guess.low)} to {span(steps * guess.high)}) on a machine as busy as now, without saves "
                "that are waited for, export and the last evaluation")
    if seconds := _evaluation_seconds(config, guess.least / batch):
        report.fact("evaluation", f"{span(seconds)} while it trains, if an image's embedding takes a third of its step")
    return Span(*(steps * step + seconds for step in (guess.seconds, guess.low, guess.high)))


def _tell_all(report: Report, runs: Runs, one: Span) -> None:
    """Of a comparison, say what its runs take together, which is no more than as many of the costliest."""
    count, name = len(runs.waiting), runs.costliest.config.name
    if count == 1:
        return
    middle, low, high = (span(count * seconds) for seconds in one)
    most = "" if runs.alike else f"at the most, were each as long as {name}: "
    report.fact("all runs", f"{count} one after the other: {most}{middle} ({low} to {high}), with scoring while they "
                "train")
    report.figures["all_runs"] = {"count": count, "seconds": count * one.middle}


def _evaluation_seconds(config: Config, seconds_an_image: float) -> float:
    """What scoring while training takes: forwards of every image and its mirror, a third of a step each."""
    every = config.evaluation.every_epochs
    if not every:
        return 0.0
    try:
        images = sum(len(load_pairs(path)[0]) for path in find_sets(config))
    except (SettingsError, DataError):
        return 0.0
    times = max(1, round(config.epochs / every)) * (1 + len(config.evaluation.degrade))
    return times * images * 2 * seconds_an_image / 3


def estimate(found: dict[str, Any], batch: int) -> Estimate:
    """What a trial's figures say of the real batch of `batch` rows over its ranks.

    Uncertainty: of measured steps their quarter to three quarters, and never less than 3 %; of a line through two
    sizes 30 %, which is what a batch's own costs (caches, memory) may differ by.
    """
    share = batch / found["ranks"]
    points = found["points"]
    step = read_line(points, share)
    loader = found["loader"]["seconds"] / found["loader"]["batches"] * batch / found["batch"]
    together = found["together"]
    if together and found["batch"] == batch:
        middle = statistics.median(together)
        quarters = statistics.quantiles(together, n=4) if len(together) > 1 else [middle] * 3
        return Estimate(middle, min(quarters[0], 0.97 * middle), max(quarters[2], 1.03 * middle), step, loader, True)
    middle = max(step, loader)
    return Estimate(middle, 0.7 * middle, 1.3 * middle, step, loader, False)


def read_line(points: Sequence[Sequence[float]], rows: float) -> float:
    """Seconds for `rows`: those measured, or the line through the last two sizes (through 0 where there is one)."""
    last = points[-1]
    if last[0] == rows or len(points) == 1:
        return last[1] * rows / last[0]
    before = points[-2]
    slope = max(0.0, (last[1] - before[1]) / (last[0] - before[0]))
    return last[1] + slope * (rows - last[0])


def rate(images: float) -> str:
    """A rate in words."""
    return f"{images:,.0f} images a second" if images >= 10 else f"{images:.2g} images a second"


def span(seconds: float) -> str:
    """A duration in words: 40 s, 12 min, 3.4 h, 5.2 days."""
    for unit, size, most in (("s", 1.0, 90), ("min", 60.0, 90), ("h", 3600.0, 72)):
        if seconds < most * size:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"

