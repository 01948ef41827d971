"""The command: every section in turn, each in its own try, and the exit status of the first problem.

Proven by tests/recognition/test_doctor.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from recognition import machine
from recognition.assembly import choose_precision
from recognition.config import Config, load, read_file
from recognition.data.dataset import split_roots
from recognition.doctor.files import SetFacts, look_at_disk, look_at_evaluation, look_at_sets
from recognition.doctor.hardware import tell_machine
from recognition.doctor.needs import activation_bytes, needs_of, part_of_a_rank
from recognition.doctor.report import Report, amount, plural
from recognition.doctor.start import look_at_start
from recognition.doctor.times import Launch, steps_per_epoch, tell_time
from recognition.errors import SettingsError


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
    facts = _look_at_data(report, config, path)
    damaged = any(fact.kind == "problem" for fact in report.sections.get("training set", []))
    look_at_start(config, bool(facts) and not damaged, report)
    most_rows = _look_at_needs(report, config, facts, ranks, local_ranks)
    if not facts or not most_rows or damaged:
        report.section("time")
        report.fact("not measured", "without the training set" if not facts else "see the problems above")
        return
    print("measuring some steps, about a minute …", flush=True)
    tell_time(report, config, path, overrides, facts, launch, machines, most_rows)


def _tell_settings(report: Report, config: Config, path: str, overrides: Sequence[str], ranks: int) -> None:
    told = f"{config.name}: {config.backbone.name}, {type(config.head.margin).__name__}"
    if config.head.inject.is_on:
        told += f" with {type(config.head.inject).__name__}"
    told += f", batch {config.batch_size} over {plural(ranks, 'rank')}, {config.epochs:g} epochs"
    report.fact(Path(path).name, told + (f"; --set {' '.join(overrides)}" if overrides else ""))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = str(choose_precision(config.precision, device)).removeprefix("torch.")
    slow = device.type == "cpu" and precision != "float32" and not any(
        "bf16" in flag for flag in machine.matrix_instructions())
    report.judge(not slow, "precision", f"{config.precision}: {precision}" + (
        ", which this CPU has no instructions for" if slow else ""))


def _look_at_data(report: Report, config: Config, path: str) -> list[SetFacts]:
    roots = split_roots(config.data.root)
    if not all(root.exists() for root in roots) and hasattr(read_file(path), "prepare"):
        report.section("training set")
        report.fact("data", f"{config.data.root} is not there yet: the first run makes it, before anything else")
        return []
    facts = look_at_sets(config, report)
    if any(fact.classes is None for fact in facts):
        report.warning("classes", "`property` states none, and only the first start's check tells how many: below they "
                       "are left out, or those of the records that were looked at")
    look_at_evaluation(config, report)
    images = sum(fact.images or 0 for fact in facts)
    if facts and images < config.batch_size:
        report.problem(SettingsError.status, "batch_size", f"{config.batch_size} is larger than the set of {images} "
                       "images")
        return []
    return facts


def _look_at_needs(
    report: Report, config: Config, facts: list[SetFacts], ranks: int, local_ranks: int
) -> int:
    """The sections on disk and memory; how many images of a rank fit, 0 where nothing does."""
    classes = sum(fact.classes or 0 for fact in facts)
    on_gpu = torch.cuda.is_available()
    needs = needs_of(config, classes, steps_per_epoch(config, facts), ranks, on_gpu)
    look_at_disk(config, needs, report)
    report.section("memory of a rank")
    if not classes:
        report.fact("classes", "unknown without the data: this is the backbone alone")
    parts = needs.in_memory if on_gpu else needs.in_memory | {"Python and its libraries": machine.resident_bytes()}
    held = sum(parts.values())
    report.fact("held", f"{needs.parameters / 1e6:.1f} M parameters; " + ", ".join(
        f"{name} {amount(size)}" for name, size in parts.items()) + f": {amount(held)}")
    device = torch.device("cuda" if on_gpu else "cpu")
    free, of = _room(device, local_ranks)
    if held > free:
        report.problem(SettingsError.status, "too little", f"{amount(held)} before any activation, {of}: more GPUs or "
                       "machines share the classes; head.storage=bf16, head.optimizer=adagrad take fewer bytes")
        return 0
    each = activation_bytes(config, choose_precision(config.precision, device), device)
    part = part_of_a_rank(config, ranks)
    whole = held + each * part
    told = f"{amount(each)} an image, {part} at once: {amount(each * part)}; {amount(whole)} in all and some more that "
    told += f"passes through, {of}"
    report.figures["memory"] = {"tensors": held, "activations": each * part, "free": free}
    if whole > free:
        cut = _parts(config, ranks, each, free - held)
        report.problem(SettingsError.status, "activations", f"{told}: too little; micro_batches={cut} would fit, "
                       "backbone.checkpointing=true takes fewer bytes, or a smaller batch_size")
    else:
        report.judge(whole < 0.85 * free, "activations", told)
    return int(0.7 * (free - held) / each) * config.micro_batches


def _parts(config: Config, ranks: int, each: float, room: float) -> int:
    """The fewest micro-batches whose activations fit, a divisor of the rank's images."""
    share = max(1, config.batch_size // ranks)
    fitting = [parts for parts in range(1, share + 1) if share % parts == 0 and each * share / parts < 0.85 * room]
    return fitting[0] if fitting else share


def _room(device: torch.device, local_ranks: int) -> tuple[int, str]:
    """Bytes that a rank of this machine may take, and that in words."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(0)[0]
        return free, f"of {amount(free)} free on the GPU"
    left = machine.available_memory()
    if left is None:
        return 1 << 62, "of an unknown amount"
    return left // local_ranks, f"of {amount(left // local_ranks)} for each of {local_ranks} ranks here"
