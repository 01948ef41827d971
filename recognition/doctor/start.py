"""Whether the run starts: what its folder holds, and what it starts from, by the checks of the run itself.

As on the ranks: a folder with a good save goes on if that is of the same settings and data, and else what `start` names
is loaded, here into tensors without memory. So text and exit status are those that the run would end with. Nothing is
written, and no rank but this process is asked. Proven by tests/recognition/test_doctor_start.py.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from recognition.backbones import build
from recognition.checkpoint import Saved, latest, saves
from recognition.config import Config
from recognition.data.dataset import split_roots
from recognition.distributed import ALONE
from recognition.doctor.files import open_if_quick
from recognition.doctor.needs import META
from recognition.doctor.report import Report
from recognition.errors import TrainerError
from recognition.state import require_same_run
from recognition.status import read_status
from recognition.stopping import require_unused
from recognition.train import class_names
from recognition.warm_start import warm_start


def look_at_start(runs: Sequence[tuple[Config, bool]], report: Report) -> None:
    """The section on where runs begin; of each its settings, and whether its training set is there and sound."""
    report.section("start")
    new, loaded, failures = list[Path](), dict[object, str](), dict[str, int]()
    for config, is_set_sound in runs:
        try:
            if _goes_on(config, is_set_sound, report):
                continue
            new.append(config.folder)
            each, momentum = config.head.margin.centers_per_class, config.head.inject.needs_momentum
            files = (config.start, config.backbone, each, momentum, config.data.root)
            if files not in loaded:
                loaded[files] = ""  # what fails is not tried again
                loaded[files] = _take_over(config, is_set_sound)
        except TrainerError as error:
            failures[str(error)] = error.status
    for text, status in failures.items():  # what many runs fail of is told once
        report.problem(status, "does not start", text)
    for told in dict.fromkeys(filter(None, loaded.values())):
        report.fact("weights", told)
    _tell_new(new, report)


def _goes_on(config: Config, is_set_sound: bool, report: Report) -> bool:
    """Whether the run's folder holds a save, from which it goes on."""
    require_unused(config.folder)
    saved = latest(config.folder / "checkpoints", ALONE)
    if saved is None:
        return False
    dataset = open_if_quick(config) if is_set_sound else None
    require_same_run(saved, config, None if dataset is None else dataset.fingerprint())
    _tell_save(config, saved, report)
    return True


def _tell_new(folders: Sequence[Path], report: Report) -> None:
    for folder in (folder for folder in folders if folder.is_dir()):
        report.fact("run's folder", f"{folder} holds no checkpoint: the run begins in it")
    absent = [str(folder) for folder in folders if not folder.is_dir()]
    if len(absent) == 1:
        report.fact("run's folder", f"{absent[0]} is not there yet: a new run")
    elif absent:
        report.fact("runs' folders", f"{absent[0]} and {len(absent) - 1} more are not there yet: new runs")


def _tell_save(config: Config, saved: Saved, report: Report) -> None:
    newest, state = saves(config.folder / "checkpoints")[-1], read_status(config.folder).get("state")
    if newest != saved.folder:
        report.warning("checkpoint", f"{newest} is damaged: the run goes on from {saved.folder.name}")
    does = "only exports and evaluates it" if state in ("trained", "finished") else "goes on from there"
    report.fact("run's folder", f"{config.folder} holds step {saved.step} of a run with these settings: the same "
                f"command {does}; --fresh puts it aside; needs and time below are of a whole run")


def _take_over(config: Config, is_set_sound: bool) -> str:
    """Load what `start` names as the ranks do, into nothing, and say what is kept; "" when it names nothing.

    Without the set, whose people are not known then, nothing but the files is looked at.
    """
    dataset = open_if_quick(config) if is_set_sound and config.start.checkpoint else None
    names: dict[int, str] | None = {} if len(split_roots(config.data.root)) == 1 else None
    if dataset is not None and config.start.match == "name":
        names = class_names(dataset, config.data.root, ALONE)
    classes = 0 if dataset is None else dataset.num_classes
    each, size = config.head.margin.centers_per_class, config.backbone.embedding_size
    with META:
        backbone = build(config.backbone).state_dict()
        weight = torch.empty(classes, size) if each == 1 else torch.empty(classes, each, size)
    kinds = ("backbone", "momentum") if config.head.inject.needs_momentum else ("backbone",)
    replicated = {f"{kind}.{name}": tensor for kind in kinds for name, tensor in backbone.items()}
    told = warm_start(config.start, config.backbone, replicated, {"weight": weight}, 0, names, classes, ALONE)
    if config.start.checkpoint and dataset is None:
        return f"starts from {config.start.checkpoint}, which fits; which classes are in the set is not known yet"
    return told
