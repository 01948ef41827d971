"""Where a new run starts instead of at random weights: another run's checkpoint, or a backbone.

Taken over: the backbone, as both backbones where only one is at hand; of a checkpoint also the momentum backbone and
the centres of the classes that both sets have, by the names of their identities. What has a history starts afresh, for
its steps are another run's: optimiser, memory and stamps (a row's age would be counted from a step that never was),
norm statistics, state of the margin. A kept centre is the stored one to the bit where both runs store rows alike; a
class that only the new set has keeps its random start. No rank holds more of the old centres than a block.
Proven by tests/recognition/test_warm_start.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from recognition.backbones import BackboneSettings, same_weights
from recognition.backbones.model_file import load_model, module_with
from recognition.checkpoint import REPLICATED, Saved, open_save
from recognition.checkpoint.tensor_file import read_tensors
from recognition.config import StartSettings
from recognition.distributed import Ranks, fail_together, from_first
from recognition.errors import CheckpointError, SettingsError, TrainerError

CLASSES_AT_ONCE = 1 << 16

Result = TypeVar("Result")


def warm_start(
    start: StartSettings,
    backbone: BackboneSettings,
    replicated: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    first: int,
    names: Mapping[int, str] | None,
    num_classes: int,
    ranks: Ranks,
) -> str:
    """Copy what `start` names into a fresh run's tensors, and say what was kept; "" when it names nothing.

    replicated: "backbone.…", perhaps "momentum.…", and others, which stay.  rows: "weight" and others, which stay; the
    first is that of class `first`.  names: of the new set's identities by class, as rank 0 knows them.
    A collective: all ranks call it. Raises CheckpointError or SettingsError on all of them.
    """
    if start.backbone:
        weights = _together(lambda: read_backbone(Path(start.backbone), backbone).state_dict(), ranks)
        load_backbones(weights, weights, replicated)
        return f"starts from the backbone {start.backbone}; all else is new"
    if not start.checkpoint:
        return ""
    saved = open_save(Path(start.checkpoint), ranks)
    online, momentum = _together(lambda: backbones_of(saved, backbone), ranks)
    load_backbones(online, momentum, replicated)
    mapped = _together(lambda: kept_classes(saved, names, num_classes, start.match) if ranks.is_first else None, ranks)
    kept: np.ndarray = from_first(mapped, ranks)
    weight, count = rows["weight"], int((kept >= 0).sum())
    _together(lambda: load_centers(saved, weight, kept[first : first + len(weight)]), ranks)
    return (
        f"starts from {saved.folder}: backbone and {count} of {num_classes} centres, by {start.match} "
        f"({saved.num_classes - count} of its classes are not in this set); all else is new"
    )


def read_backbone(path: Path, backbone: BackboneSettings) -> nn.Module:
    """The backbone of a model file, of a published state dict, or of a .safetensors file of weights.

    CheckpointError when it is damaged or another backbone than the settings say; what has no weights, dropout for
    one, may differ.
    """
    if path.suffix == ".safetensors":
        return module_with(path, read_tensors(path), backbone)
    module, found, _ = load_model(path, backbone.name)
    if not same_weights(found, backbone):
        raise CheckpointError(f"{path}: holds {found}; this run trains {backbone}")
    return module


def backbones_of(saved: Saved, backbone: BackboneSettings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts of a save's backbone and of its momentum backbone, of the former again where it has none."""
    tensors = saved.replicated()

    def part(prefix: str) -> dict[str, Tensor]:
        weights = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        return module_with(saved.folder / REPLICATED, weights, backbone).state_dict() if weights else {}

    online = part("backbone.")
    if not online:
        raise CheckpointError(f"{saved.folder}: holds no backbone")
    return online, part("momentum.") or online


@torch.no_grad()
def load_backbones(
    online: Mapping[str, Tensor], momentum: Mapping[str, Tensor], replicated: Mapping[str, Tensor]
) -> None:
    """Copy state dicts into a run's tensors "backbone.…" and, where it has them, "momentum.…"."""
    for name, tensor in online.items():
        replicated[f"backbone.{name}"].copy_(tensor)
    for name, tensor in momentum.items():
        if (target := replicated.get(f"momentum.{name}")) is not None:
            target.copy_(tensor)


def kept_classes(
    saved: Saved, names: Mapping[int, str] | None, num_classes: int, match: Literal["name", "number"]
) -> np.ndarray:
    """For each class of the new set the one of the save that it is, −1 for none; int64 [num_classes].

    names: of the new set, by class.  SettingsError when classes go by name and one side has none.
    """
    if match == "number":
        same = np.arange(num_classes)
        return np.where(same < saved.num_classes, same, -1)
    old = saved.labels()
    for side, missing in ((f"the set of {saved.folder}", old is None), ("the set to train on", names is None)):
        if missing:
            raise SettingsError(
                f"start.checkpoint: {side} has no names of identities, so it cannot be told which centres to keep; "
                "give start.match=number if class k is the same person in both, or start.backbone for the backbone "
                "alone"
            )
    assert old is not None
    assert names is not None
    class_of = {name: number for number, name in enumerate(old) if name}
    if len(class_of) != sum(map(bool, old)):
        raise CheckpointError(f"{saved.folder}: two classes of one name")
    kept = np.full(num_classes, -1, np.int64)
    for number, name in names.items():
        if number < num_classes:
            kept[number] = class_of.get(name, -1)
    return kept


@torch.no_grad()
def load_centers(saved: Saved, weight: Tensor, kept: np.ndarray) -> None:
    """Copy the centres `kept` [n] (classes of the save, −1: none) into rows [n, …], a block of classes at a time."""
    stored = saved.row_headers().get("weight")
    if stored is None or stored.shape[1:] != weight.shape[1:]:
        expected, found = list(weight.shape[1:]), None if stored is None else list(stored.shape[1:])
        raise CheckpointError(f"{saved.folder}: centres of shape {found} a class; this run's are {expected}")
    order = np.argsort(kept, kind="stable")  # this rank's rows in the order of the save's classes
    order = order[kept[order] >= 0]
    classes, begin = kept[order], 0
    while begin < len(order):
        low = int(classes[begin])
        end = int(np.searchsorted(classes, low + CLASSES_AT_ONCE))
        old = torch.from_numpy(classes[begin:end]) - low
        block = saved.rows(low, low + int(old[-1]) + 1, ["weight"])["weight"][old]
        if not torch.isfinite(block).all():
            raise CheckpointError(f"{saved.folder}: centres that are not finite")
        weight[torch.from_numpy(order[begin:end]).to(weight.device)] = block.to(weight)
        begin = end


def _together(action: Callable[[], Result], ranks: Ranks) -> Result:
    """Do something on each rank; what fails on any is raised on all."""
    result: Any = None
    failure: TrainerError | None = None
    try:
        result = action()
    except TrainerError as error:
        failure = error
    fail_together(failure, ranks)
    return result
