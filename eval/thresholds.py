"""From which similarity on two pictures count as one person: a threshold, the FAR that it stands for, and its proof.

Owns the order of belief: what the user gives, else what pairs given show now, else what the run's own verification has
found (`evaluation.json` in the model's folder, of that very file by its SHA-256), else the scores that the model's file
carries. Thresholds are of the similarity that eval.verification's protocol compares by: the cosine of the sums of image
and mirror. A FAR of which so few pairs of different people would not show one false accept is refused; unless one is
asked for, it is the strictest that they support. Proven by tests/eval/test_thresholds.py and
tests/eval/test_compare_faces.py.
"""

import dataclasses
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import metrics
from eval.embed import Embed
from eval.ijb_cache import file_sha256
from eval.norm_quality import UNIT
from eval.verification import embed_with_mirror, load_set, similarity, squared_distances
from recognition.errors import DataError, SettingsError

FLOAT32, HALF, THIS_FILE = "float32 network", "network in ", "this file"  # whose scores those in a file are
RUN_MODEL = "model_last.pt"  # of a run folder, the network that its evaluation.json is of


@dataclass(frozen=True)
class Threshold:
    """Similarities from `value` on are one person's. far: None where only the user knows.  source: in words."""

    value: float
    far: float | None
    source: str


class UnknownThresholdError(Exception):
    """No threshold can be had; the message is the reason."""


class _NoneOfTheModelError(UnknownThresholdError):
    """What was looked at says nothing of this model; something else may."""


def too_few(far: float, different: int, name: str) -> str:
    """Why a FAR is refused, and which is not."""
    enough = [target for target in metrics.FAR_TARGETS if target * different >= 1]
    return (f"too few pairs for FAR {far:g}: it needs {math.ceil(1 / far)} of different people at least, "
            f"{name} has {different}" + (f", enough for --far {min(enough):g}" if enough else ""))


@dataclass(frozen=True)
class _Kept:
    """What is kept of a set: thresholds by FAR, None where its pairs of different people are too few."""

    name: str
    different: int
    thresholds: dict[float, float | None]


def from_pairs(embed: Embed, path: str | Path, far: float | None = None, flip: bool = True) -> Threshold:
    """The threshold at a FAR on the pairs of a verification set (.bin, or folder with pairs.txt).

    far: None is the strictest of `metrics.FAR_TARGETS` that the pairs support.

    Raises:
        SettingsError: too few pairs of different people for that FAR. DataError: as `load_set`.
    """
    pairs = load_set(path)
    different = int((~pairs.issame).sum())
    if far is None:
        far = min((one for one in metrics.FAR_TARGETS if different * one >= 1), default=max(metrics.FAR_TARGETS))
    if different * far < 1:
        raise SettingsError(too_few(far, different, str(path)))
    sums, _ = embed_with_mirror(embed, pairs.images, flip=flip)
    found = metrics.threshold_at_far(similarity(squared_distances(sums)), pairs.issame, (far,))[str(far)]
    assert found is not None
    return Threshold(found, far, _proof(pairs.name, different))


def from_model(
    model: str | Path, info: Mapping[str, Any], far: float | None = None, name: str | None = None
) -> Threshold:
    """The threshold at a FAR in what is known of a model: its run's evaluation, else its file's own scores.

    model, far, name: as for `from_evaluation`.  info: what the file says of itself (`Embedder.info`).

    Raises:
        UnknownThresholdError, DataError, SettingsError: as `from_evaluation`.
    """
    try:
        return from_evaluation(model, far, name)
    except _NoneOfTheModelError as error:
        reason = str(error)
    try:
        found = _choose(_own_scores(info), far, name, f"{model}'s own scores")
    except _NoneOfTheModelError as error:
        raise UnknownThresholdError(f"{reason}; {error}") from None
    return dataclasses.replace(found, source=f"{found.source}, by the scores in the model's file")


def _own_scores(info: Mapping[str, Any]) -> list[_Kept]:
    """The scores in a model's file, where they are of what is in the file."""
    scores, precision, whose = info.get("scores"), info.get("precision", "fp32"), info.get("scores_of", FLOAT32)
    if not scores:
        raise _NoneOfTheModelError("its file carries no scores")
    if info.get("scores_in", "float32") != "float32":  # of a model file, which training scored
        whose = f"{HALF}{info['scores_in']}"
    if whose != THIS_FILE and (precision != "fp32" or whose != FLOAT32):
        raise _NoneOfTheModelError(f"the scores in its file are not of this {precision} network but of the {whose}")
    if whose != THIS_FILE and info.get("embedding") == UNIT:
        raise _NoneOfTheModelError("the scores in its file are of embeddings that were not of unit length")
    try:
        return _read(json.loads(scores) if isinstance(scores, str) else scores)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _NoneOfTheModelError("its file carries no scores of this project's") from None


def from_evaluation(model: str | Path, far: float | None = None, name: str | None = None) -> Threshold:
    """The threshold at a FAR in the evaluation.json of a model's run.

    model: a run folder, or a model file in it that the evaluation is of, by the SHA-256 noted there. far: None is the
    strictest kept that the pairs support. Of several sets the one with the highest threshold counts, so that the FAR
    holds on all of them, or the one called `name`. Only images as they are.

    Raises:
        UnknownThresholdError: there is none, or it has none for this. DataError: it is damaged. SettingsError: it has
            no such set or FAR.
    """
    path = Path(model)
    file = (path if path.is_dir() else path.parent) / "evaluation.json"
    if not file.is_file():
        raise _NoneOfTheModelError(f"no {file.name} beside the model")
    try:
        evaluation = json.loads(file.read_text())
        evaluated = Path(evaluation["model"]).name
        digests = dict(evaluation.get("sha256", {})).values()
        kept = _read(evaluation["verification"])
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a run's evaluation: {type(error).__name__} {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise _NoneOfTheModelError(f"{file.name} beside the model is not a run's evaluation") from None
    _require_evaluated(path, file, evaluated, digests)
    return _choose(kept, far, name, str(file))


def _read(rows: Iterable[Mapping[str, Any]]) -> list[_Kept]:
    """Rows of eval.verification, of images as they are; ValueError, KeyError, TypeError, AttributeError for others."""
    return [
        _Kept(str(row["set"]), int(row.get("different", 0)),
              {float(far): None if value is None else float(value)
               for far, value in row.get("threshold@far", {}).items()})
        for row in rows if row["degrade"] is None
    ]


def _choose(kept: Sequence[_Kept], far: float | None, name: str | None, where: str) -> Threshold:
    """The threshold among what is kept; the errors of `from_evaluation`. where: what has it, for messages."""
    sets = [one for one in kept if name in (None, one.name)]
    if name is not None and not sets:
        raise SettingsError(f"{where}: no set {name!r}")
    fars = sorted({known for one in sets for known in one.thresholds})
    if not fars:
        raise _NoneOfTheModelError(f"no thresholds in {Path(where).name}")
    if far is None:
        far = next((one for one in fars if any(row.thresholds.get(one) is not None for row in sets)), fars[-1])
    if far not in fars:
        raise SettingsError(f"{where}: no thresholds at FAR {far:g}; it has {', '.join(f'{one:g}' for one in fars)}, "
                            "--pairs any")
    return _highest([(row.thresholds.get(far), row.name, row.different) for row in sets if row.thresholds], far)


def _require_evaluated(path: Path, file: Path, evaluated: str, digests: Collection[str]) -> None:
    """Raise UnknownThresholdError unless an evaluation is of this model's file, byte for byte."""
    model = path / RUN_MODEL if path.is_dir() else path
    if not digests:
        raise _NoneOfTheModelError(f"{file.name} does not note its model's SHA-256 (older runs' do not), so it may be "
                                   "of another network; the run's command, given again, writes it anew")
    if file_sha256(model) not in digests:
        raise _NoneOfTheModelError(f"{file.name} is of {evaluated} as it was then: {model.name} has another SHA-256, "
                                   "and another network has other thresholds")


def _highest(found: Sequence[tuple[float | None, str, int]], far: float) -> Threshold:
    usable = [(value, name, different) for value, name, different in found if value is not None]
    if not usable:
        name, different = max(((name, different) for _, name, different in found), key=lambda one: one[1])
        raise UnknownThresholdError(too_few(far, different, name))
    value, name, different = max(usable)
    return Threshold(value, far, _proof(name, different) + (
        f", the highest of {len(usable)} sets" if len(usable) > 1 else ""
    ))


def _proof(name: str, different: int) -> str:
    return f"{name}, {different} pairs of different people"
