"""The command: every section in turn, each in its own try, and the exit status of the first problem.

Proven by tests/recognition/test_doctor.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from recognition import machine
from recognition.assembly import choose_precision
from recognition.config import Config, load, read_file
from recognition.data.dataset import split_roots
from recognition.doctor.disk import look_at_disk
from recognition.doctor.files import SetFacts, look_at_evaluation, look_at_sets
from recognition.doctor.hardware import slow_on_cpu, tell_machine
from recognition.doctor.memory import look_at_memory
from recognition.doctor.needs import needs_of
from recognition.doctor.report import Report, plural
from recognition.doctor.start import look_at_start
from recognition.doctor.times import Launch, steps_per_epoch, tell_time
from recognition.errors import SettingsError


class Found(NamedTuple):
    """What is known of the training set. facts: of each of its parts, empty where one cannot be read.

    unusable: why no step can be taken on it, "" where one can.
    """

    facts: list[SetFacts]
    unusable: str


def examine(
    path: str, overrides: Sequence[str], launch: Launch, local_ranks: int, machines: int = 1,
    json_path: str | None = None,
) -> int:
    """Print what a run of a config would meet; its exit status. launch: for the short measurement."""
    report = Report()
    _go_through(report, path, overrides, launch, local_ranks, machines)
    print(report.text())
    if json_path is not None:
        try:
            Path(json_path).write_text(json.dumps(report.json(), indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise SettingsError(f"{json_path}: cannot be written: {error.strerror}") from None
    return report.status


def _go_through(
    report: Report, path: str, overrides: Sequence[str], launch: Launch, local_ranks: int, machines: int
) -> None:
    ranks = local_ranks * machines
    tell_machine(report, local_ranks)
    report.section("settings")
    try:
        config = load(path, overrides, ranks)
    except SettingsError as error:
        report.problem(error.status, Path(path).name, str(error))
        return
    _tell_settings(report, config, path, overrides, ranks)
    found = _look_at_data(report, config, path)
    look_at_start(config, not found.unusable, report)
    classes = sum(fact.classes or 0 for fact in found.facts)
    needs = needs_of(config, classes, steps_per_epoch(config, found.facts), ranks, torch.cuda.is_available())
    look_at_disk(config, needs, report)
    unknown = "" if classes else "as `property` states no number" if found.facts else f"as {found.unusable}"
    most_rows = look_at_memory(report, config, needs, ranks, local_ranks, unknown)
    if why := found.unusable or ("" if most_rows else "no step fits into memory"):
        report.section("time")
        report.fact("not measured", why)
        return
    print("measuring some steps, about a minute …", flush=True)
    tell_time(report, config, path, overrides, found.facts, launch, machines, most_rows)


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
        return Found([], "the training set is not there yet")
    facts = look_at_sets(config, report)
    damaged = any(fact.kind == "problem" for fact in report.sections["training set"])
    if any(fact.classes is None for fact in facts):
        report.warning("classes", "`property` states none, and only the first start's check tells how many: below they "
                       "are left out, or those of the records that were looked at")
    look_at_evaluation(config, report)
    images = [fact.images for fact in facts if fact.images is not None]
    if facts and len(images) == len(facts) and sum(images) < config.batch_size:
        report.problem(SettingsError.status, "batch_size", f"{config.batch_size} is larger than the set of "
                       f"{sum(images)} images")
        return Found(facts, "the batch is larger than the training set")
    if not facts:
        return Found([], "the training set cannot be read")
    return Found(facts, "the training set is damaged" if damaged else "")
