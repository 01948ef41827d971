"""What of a run is saved, and how it comes back: the state behind exact resume.

Tensors that are the same on all ranks (backbone, momentum backbone, optimiser, norm statistics, margin state), the rows
of the head's classes, and plain numbers: step, best score, bad steps, the settings and the data that they belong to.
There is no random state: every stream is a function of (seed, step, rank). Metrics up to the step stay in
metrics.jsonl. Proven by tests/recognition/test_train.py and test_faults.py.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recognition import checkpoint
from recognition.assembly import Run
from recognition.backbones.model_file import save_model, save_weights
from recognition.checkpoint import Keep, Published, Saved, Saver
from recognition.config import Config, changes, settings_of
from recognition.errors import CheckpointError, SettingsError
from recognition.memory import QAFace
from recognition.replicas import require_equal
from recognition.status import write_status


def make_saver(run: Run, names: Mapping[int, str] | None = None) -> Saver:
    """What writes the run's checkpoints, with the names of the classes (rank 0's) in them. A collective."""
    settings = run.config.checkpoint
    labels = None if names is None else [names.get(label, "") for label in range(run.dataset.num_classes)]
    keep = Keep(settings.keep, settings.keep_best, settings.keep_every_steps)
    return Saver(run.config.folder / "checkpoints", run.ranks, keep, settings.asynchronous, labels)


def replicated_state(run: Run) -> dict[str, Tensor]:
    """The tensors that are the same on all ranks, by name; loading copies into them."""
    parts = {"backbone": run.backbone.state_dict(), "optimizer": run.optimizer.state()}
    if run.momentum:
        parts["momentum"] = run.momentum.module.state_dict()
    if run.head.memory:
        parts["memory"] = {"statistics": run.head.memory.statistics}
    parts["head"] = run.head.replicated()
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def save(run: Run, saver: Saver) -> None:
    """Save the whole state, and once it is on disk the model file; the ranks' copies are compared first."""
    replicated = replicated_state(run)
    require_equal(replicated, run.step, run.ranks)
    state = {
        "best": run.best,
        "scores": run.scores,
        "scored": run.scored,
        "bad_steps": run.bad_steps.state(),
        "data": run.dataset.fingerprint(),
        "settings": settings_of(run.config),
    }
    accuracy = mean_accuracy(run.scores) if run.scored == run.step else None
    path, info = run.config.folder / "model_last.pt", model_info(run)
    where = {"step": run.step, "steps": len(run.rates), "epoch": run.epoch}

    def write_model(published: Published) -> None:
        tensors = published.replicated
        write_status(run.config.folder, "running", **where)
        weights = {name.removeprefix("backbone."): tensors[name] for name in tensors if name.startswith("backbone.")}
        save_weights(path, weights, run.config.backbone, info)

    saver.save(run.step, replicated, run.head.state(), run.head.start, state, score=accuracy, after=write_model)
    run.saved = run.step


def model_info(run: Run) -> dict[str, Any]:
    """What a model file says of where it comes from, and by which norms its run knows quality (eqs. 8 and 9).

    Scores of an earlier step are another network's, and left out. scores_in: the type of matrix products they are of.
    """
    scores = run.scores if run.scored == run.step else []
    products = str(run.product_dtype).removeprefix("torch.")
    info = {"run": run.config.name, "step": run.step, "epoch": run.epoch, "scores": scores, "scores_in": products}
    memory = run.head.memory
    if memory is None or not isinstance(memory.injection, QAFace):
        return info
    mean, deviation, known = memory.statistics.tolist()
    norms = {"mean": mean, "deviation": deviation, "tau": memory.injection.tau, "of": memory.injection.norm_source}
    return info | {"norms": norms} if known else info


def keep_best(run: Run) -> None:
    """Keep the model with the highest mean accuracy over the verification sets as model_best.pt."""
    accuracy = mean_accuracy(run.scores)
    if accuracy is not None and accuracy > run.best:
        run.best = accuracy
        if run.ranks.is_first:
            save_model(run.config.folder / "model_best.pt", run.backbone, run.config.backbone, model_info(run))


def mean_accuracy(scores: list[dict[str, Any]]) -> float | None:
    """Mean over the sets as they are; None without any."""
    accuracies = [score["accuracy"] for score in scores if not score["degrade"]]
    return float(np.mean(accuracies)) if accuracies else None


def resume(run: Run) -> bool:
    """Go on from the newest good checkpoint; False when there is none. A collective: all ranks call it.

    SettingsError when it was made with other settings or data, CheckpointError when it is none of this program's.
    """
    saved = checkpoint.latest(run.config.folder / "checkpoints", run.ranks)
    if saved is None:
        return False
    require_same_run(saved, run.config, run.dataset.fingerprint())
    if saved.state["step"] > len(run.rates):
        raise CheckpointError(f"{saved.folder}: step {saved.state['step']} of a run of {len(run.rates)} steps")
    restore(replicated_state(run), saved.replicated(), saved.folder)
    restore(run.head.state(), saved.rows(run.head.start, run.head.stop), saved.folder)
    run.step = run.saved = saved.state["step"]
    run.best, run.scores, run.scored = saved.state["best"], saved.state["scores"], saved.state["scored"]
    run.bad_steps.load(saved.state["bad_steps"])
    return True


def require_same_run(saved: Saved, config: Config, data: str | None) -> None:
    """SettingsError when a save was made with other settings or data than these, CheckpointError when it is foreign.

    data: fingerprint of the training set; None where it is not known: then the settings alone are compared.
    """
    require_state(saved.state, saved.folder)
    different = changes(saved.state["settings"], settings_of(config))
    if data is not None and saved.state["data"] != data:
        different.append(f"data: {saved.state['data']} → {data}")
    if different:
        raise SettingsError(
            f"{config.folder} holds a run with other settings; give another --set name=…, or --fresh to put it "
            "aside:\n  " + "\n  ".join(different)
        )


def require_state(state: Mapping[str, Any], folder: Path) -> None:
    """CheckpointError unless the plain values of a save are of the kinds that `save` writes."""
    kinds = {"step": int, "best": float, "scores": list, "scored": int, "bad_steps": dict, "settings": dict,
             "data": str}
    wrong = [name for name, kind in kinds.items() if type(state.get(name)) is not kind]
    if not wrong:
        bad = state["bad_steps"]
        numbers = bad.get("steps")
        good = isinstance(numbers, list) and all(type(number) is int for number in numbers)
        wrong += [] if good and type(bad.get("gone_back")) is bool else ["bad_steps"]
        wrong += [] if 0 <= state["scored"] <= state["step"] else ["scored"]
    if wrong:
        raise CheckpointError(f"{folder}: state.json: {', '.join(wrong)} missing or not what this program writes")


@torch.no_grad()
def restore(tensors: dict[str, Tensor], stored: dict[str, Tensor], folder: Path) -> None:
    """Copy stored tensors into those of the same names. CheckpointError when names or shapes are others."""
    strange = sorted(
        name for name in tensors.keys() | stored.keys()
        if name not in stored or name not in tensors or stored[name].shape != tensors[name].shape
    )
    if strange:
        raise CheckpointError(f"{folder}: does not fit this run: {', '.join(strange[:3])} ({len(strange)} in all)")
    for name, tensor in tensors.items():
        tensor.copy_(stored[name])


class SaveClock:
    """Rank 0's clock: whether so many minutes have gone by since the last save; 0: never."""

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._since = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the time is up."""
        return self.seconds > 0 and time.monotonic() - self._since >= self.seconds
