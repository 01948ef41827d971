"""The command: section by section, and the exit status of the first problem.

Mistakes that the run's own checks raise become problems of the section; what rests on data that cannot be read is left
out, and said so. Proven by tests/recognition/test_doctor.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from recognition import machine
from recognition.assembly import choose_precision
from recognition.config import Config, read_file
from recognition.data.dataset import split_roots
from recognition.doctor.disk import look_at_disk
from recognition.doctor.files import SetFacts, look_at_evaluation, look_at_sets
from recognition.doctor.hardware import slow_on_cpu, tell_machine
from recognition.doctor.memory import look_at_memory
from recognition.doctor.needs import Needs, needs_of
from recognition.doctor.report import Report, plural
from recognition.doctor.runs import Runs, find_runs, tell_runs
from recognition.doctor.start import look_at_start
from recognition.doctor.times import Launch, steps_per_epoch, tell_time
from recognition.errors import SettingsError

NOT_THERE = "the training set is not there yet"


class Found(NamedTuple):
    """What is known of the training set. facts: of each of its parts, empty where one cannot be read.

    unusable: why no step can be taken on it, "" where one can.
    """

    facts: list[SetFacts]
    unusable: str

    @property
    def classes(self) -> int:
        """Identities, as far as they are known."""
        return sum(fact.classes or 0 for fact in self.facts)


def examine(
    path: str, overrides: Sequence[str], launch: Launch, local_ranks: int, machines: int = 1,
    json_path: str | None = None, seeds: Sequence[int] = (), single: bool = False,
    shares: Sequence[int] = (),
) -> int:
    """Print what the run or runs of a config would meet; the exit status. launch: for the short measurement.

    shares: ranks of each of the runs that a comparison has side by side, the fewest of them `local_ranks`; empty where
    each run has all ranks.
    """
    report = Report()
    tell_machine(report, sum(shares) or local_ranks)
    report.section("settings")
    try:
        runs = find_runs(path, overrides, seeds, single, local_ranks * machines, machines, shares)
    except SettingsError as error:
        report.problem(error.status, Path(path).name, str(error))
    else:
        _tell_settings(report, runs.costliest.config, path, overrides, local_ranks * machines)
        tell_runs(runs, report)
        _go_through(report, runs, launch, local_ranks, machines, sum(shares) or local_ranks)
    print(report.text())
    if json_path is not None:
        try:
            Path(json_path).write_text(json.dumps(report.json(), indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise SettingsError(f"{json_path}: cannot be written: {error.strerror}") from None
    return report.status


def _go_through(
    report: Report, runs: Runs, launch: Launch, local_ranks: int, machines: int, at_once: int
) -> None:
    """All sections after the settings. at_once: ranks that share this machine, of all runs that are side by side."""
    ranks, config = local_ranks * machines, runs.costliest.config
    looked_at: dict[object, Found] = {}
    needs: dict[str, Needs] = {}
    scored, too_large = set[object](), set[str]()
    for member in runs.every:
        one, data = member.config, _of_data(member.config)
        looked_at[data] = found = looked_at.get(data) or _look_at_data(report, one, member.path)
        sets = (one.data.root, one.evaluation.sets, one.evaluation.ijb)
        if found.unusable != NOT_THERE and sets not in scored:
            scored.add(sets)
            look_at_evaluation(one, report)
        if member.label not in needs:  # seeds need the same
            if _is_too_large(report, one, found, runs.compared):
                too_large.add(member.label)
            needs[member.label] = needs_of(one, found.classes, steps_per_epoch(one, found.facts), ranks,
                                           torch.cuda.is_available())
    if not runs.waiting:
        report.section("time")
        report.fact("not measured", "all runs are finished: the command prints their table")
        return
    look_at_start([(member.config, not looked_at[_of_data(member.config)].unusable) for member in runs.waiting], report)
    look_at_disk([(member.config, needs[member.label]) for member in runs.waiting], report)
    found = looked_at[_of_data(config)]
    unknown = "" if found.classes else "as `property` states no number" if found.facts else f"as {found.unusable}"
    distinct = {member.label: (member.config, needs[member.label]) for member in [*runs.waiting, runs.costliest]}
    most_rows = look_at_memory(report, [*distinct.values()], config, ranks, at_once, unknown)
    batch = "the batch is larger than the training set" if runs.costliest.label in too_large else ""
    if why := found.unusable or batch or ("" if most_rows else "no step fits into memory"):
        report.section("time")
        report.fact("not measured", why)
        return
    print("measuring some steps, about a minute …", flush=True)
    tell_time(report, runs, found.facts, launch, machines, most_rows)


def _of_data(config: Config) -> object:
    """What `_look_at_data` depends on: runs of a comparison mostly share it."""
    return config.data.root, config.data.weights, config.data.bad_share


def _is_too_large(report: Report, config: Config, found: Found, compared: bool) -> bool:
    """Whether a run's batch is larger than its sound training set, which is a problem of its settings."""
    images = [fact.images for fact in found.facts if fact.images is not None]
    if found.unusable or len(images) < len(found.facts) or sum(images) >= config.batch_size:
        return False
    report.section("settings")
    report.problem(SettingsError.status, "batch_size", (f"{config.name}: " if compared else "")
                   + f"{config.batch_size} is larger than the set of {sum(images)} images")
    return True


def _tell_settings(report: Report, config: Config, path: str, overrides: Sequence[str], ranks: int) -> None:
    told = f"{config.name}: {config.backbone.name}, {type(config.head.margin).__name__}"
    if config.head.inject.is_on:
        told += f" with {type(config.head.inject).__name__}"
    told += f", batch {config.batch_size} over {plural(ranks, 'rank')}, {config.epochs:g} epochs"
    report.fact(Path(path).name, told + (f"; --set {' '.join(overrides)}" if overrides else ""))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = str(choose_precision(config.precision, device)).removeprefix("torch.")
    slow = slow_on_cpu(precision, machine.matrix_instructions()) if device.type == "cpu" else ""
    report.judge(not slow, "precision", f"{config.precision}: {precision}" + (f", {slow}" if slow else ""))


def _look_at_data(report: Report, config: Config, path: str) -> Found:
    roots = split_roots(config.data.root)
    report.section("training set")
    if not all(root.exists() for root in roots) and hasattr(read_file(path), "prepare"):
        report.fact("data", f"{config.data.root} is not there yet: the first run makes it, before anything else")
        return Found([], NOT_THERE)
    before = len(report.sections["training set"])
    facts = look_at_sets(config, report)
    damaged = any(fact.kind == "problem" for fact in report.sections["training set"][before:])
    if any(fact.classes is None for fact in facts):
        report.warning("classes", "`property` states none, and only the first start's check tells how many: below they "
                       "are left out, or those of the records that were looked at")
    if not facts:
        return Found([], "the training set cannot be read")
    return Found(facts, "the training set is damaged" if damaged else "")
