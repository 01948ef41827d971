"""Models at a moment: a run at each of its saves, or one model file.

Owns the reading of a run's checkpoints for evaluation: both backbones, the centres, the statistics of the norms and the
settings that say how the run used them. Runs need torch and an ONNX file does not, so it is imported where a run is
opened. The momentum backbone embeds in eval mode whatever `momentum_batch_norm` says: a figure must not depend on what
else is in a batch. Proven by tests/eval/test_quality.py.
"""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eval.embed import Embed, check_onnx_file, load_embedder
from eval.ijb_cache import file_sha256, model_identity, open_unchanged
from eval.pixels import Given, Pixels
from recognition.cpus import available_cpus
from recognition.errors import CheckpointError

CLASSES_AT_ONCE = 1 << 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A model at one moment.

    name: for messages.  step, epoch: of the save; None for a model file, epoch also where no metrics.jsonl tells it.
    embed: the backbone.  norm_of: whose norm is the quality proxy; embed_norm: embeds with that one.
    statistics: μ, σ that the run has kept, if it has.  tau: τ of the run; None where it has none.
    data: fingerprint of the training set.  centers: of (C), the classes [start, …) in order, as float32 blocks [n, d],
    [n, K, d] with sub-centres.  notes: what was found of a model file, for people.
    identity: whose embeddings those of `embed` are, for a cache (eval/ijb_cache.py); asked only where there is one.
    """

    name: str
    embed: Embed
    embed_norm: Embed
    norm_of: Literal["model", "online", "momentum"] = "model"
    step: int | None = None
    epoch: float | None = None
    statistics: tuple[float, float] | None = None
    tau: float | None = None
    data: str | None = None
    centers: Callable[[int], Iterator[tuple[int, np.ndarray]]] | None = None
    notes: tuple[str, ...] = ()
    identity: Callable[[], dict[str, Any]] | None = None


def require_model(model: str | Path) -> None:
    """CheckpointError unless there is something to open: saves, a model file, or a sound ONNX file."""
    path = Path(model)
    if path.suffix == ".onnx":
        check_onnx_file(path)
    elif not _saves(path):
        from recognition.backbones.model_file import resolve_model

        resolve_model(path)


def open_snapshots(
    model: str | Path, threads: int | None = None, device: str = "auto", given: Given | None = None
) -> Iterator[Snapshot]:
    """A run folder's saves from the oldest on; a single snapshot of anything else that `load_embedder` opens.

    given: what the user says of a model file; a run's saves take what they were trained with.
    Saves that do not verify are passed over with a warning. CheckpointError when none is left, or when a good one
    does not hold what a run saves.
    """
    path = Path(model)
    saves = _saves(path)
    if not saves:
        embedder, hashes = open_unchanged(path, partial(load_embedder, path, threads, device, given))
        identity = partial(model_identity, path, embedder.pixels, given, hashes)
        yield Snapshot(str(path), embedder.embed, embedder.embed, notes=tuple(embedder.notes), identity=identity)
        return
    from recognition import checkpoint

    epochs_a_step = _epochs_a_step(path / "metrics.jsonl")
    failures = []
    for folder in saves:
        try:
            saved = checkpoint.read(folder)
        except CheckpointError as error:
            failures.append(str(error))
            log.warning("not a good checkpoint, passed over: %s", error)
            continue
        yield _of_save(saved, epochs_a_step, threads or available_cpus(), device)
    if len(failures) == len(saves):
        raise CheckpointError("no checkpoint verifies: " + " | ".join(failures))


def _saves(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    from recognition import checkpoint

    return checkpoint.saves(path / "checkpoints")


def _of_save(saved: Any, epochs_a_step: float | None, threads: int, device: str) -> Snapshot:
    """The snapshot of a recognition.checkpoint.Saved."""
    from eval.embed import TorchEmbedder
    from recognition.backbones.model_file import module_with
    from recognition.checkpoint import REPLICATED

    settings, step, data = _state(saved)
    backbone = backbone_settings(saved.folder, settings)
    with _readable(saved.folder):
        tensors = saved.replicated()

    def embedder(part: str) -> Embed:
        weights = {key.removeprefix(part): value for key, value in tensors.items() if key.startswith(part)}
        module = module_with(saved.folder / REPLICATED, weights, backbone)
        return TorchEmbedder(module, str(saved.folder), threads, device).embed

    def centers(num_classes: int) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, num_classes, CLASSES_AT_ONCE):
            with _readable(saved.folder):
                stop = min(start + CLASSES_AT_ONCE, num_classes)
                rows = saved.rows(start, stop, ["weight"])["weight"].float().numpy()
            if not np.isfinite(rows).all():
                raise CheckpointError(f"{saved.folder}: centres that are not finite")
            yield start, rows

    def identity() -> dict[str, Any]:
        return model_identity(saved.folder, Pixels(), hashes=[file_sha256(saved.folder / REPLICATED)])

    # As the head chooses it; without injection there is no momentum backbone, whatever the settings say.
    source = settings.get("head.inject.norm_source", settings.get("head.inject.source"))
    has_momentum = any(key.startswith("momentum.") for key in tensors)
    norm_of: Literal["online", "momentum"] = "momentum" if source == "momentum" and has_momentum else "online"
    online = embedder("backbone.")
    return Snapshot(
        name=str(saved.folder),
        embed=online,
        embed_norm=embedder("momentum.") if norm_of == "momentum" else online,
        norm_of=norm_of,
        step=step,
        epoch=None if epochs_a_step is None else round(step * epochs_a_step, 6),
        statistics=_statistics(saved.folder, tensors),
        tau=_tau(saved.folder, settings),
        data=data,
        centers=centers,
        identity=identity,
    )


def _state(saved: Any) -> tuple[dict[str, Any], int, str | None]:
    """Settings, step and the training set's fingerprint."""
    try:
        return dict(saved.state["settings"]), int(saved.state["step"]), saved.state.get("data")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{saved.folder}: state.json is not a run's: {error}") from None


def backbone_settings(folder: Path, settings: dict[str, Any]) -> Any:
    """The BackboneSettings of a run's settings, as its save in `folder` has them; CheckpointError when it has none."""
    from recognition.backbones import BackboneSettings, mistakes

    try:
        backbone = BackboneSettings(**{
            name: settings[f"backbone.{name}"] for name in ("name", "embedding_size", "dropout", "norm")
        })
    except KeyError as error:
        raise CheckpointError(f"{folder}: state.json lacks the setting {error}") from None
    if found := mistakes(backbone):
        raise CheckpointError(f"{folder}: {'; '.join(found)}")
    return backbone


def _statistics(folder: Path, tensors: dict[str, Any]) -> tuple[float, float] | None:
    """μ, σ; None when the run keeps none, or has seen no batch yet."""
    if "memory.statistics" not in tensors:
        return None
    mean, deviation, seen = tensors["memory.statistics"].double().tolist()
    if not (math.isfinite(mean) and math.isfinite(deviation)) or (seen > 0 and deviation <= 0):
        raise CheckpointError(f"{folder}: memory.statistics: μ {mean}, σ {deviation}")
    return (mean, deviation) if seen > 0 else None


def _tau(folder: Path, settings: dict[str, Any]) -> float | None:
    tau = settings.get("head.inject.tau")
    if tau is not None and (not isinstance(tau, int | float) or not abs(tau) <= 100):
        raise CheckpointError(f"{folder}: head.inject.tau: {tau!r}; expected −100 to 100")
    return tau


def _epochs_a_step(path: Path) -> float | None:
    """From the first line of a run's metrics that tells step and epoch."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, ZeroDivisionError):
            entry = json.loads(line)
            return float(entry["epoch"]) / int(entry["step"])
    return None


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """A run that goes on removes its oldest saves; one may go while it is read."""
    try:
        yield
    except (CheckpointError, KeyError) as error:
        raise CheckpointError(f"{folder}: cannot be read (any more): {error}") from None
