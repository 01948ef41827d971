"""What a report is made of: run folders and JSON files of the evaluation's commands, read and checked.

Owns the telling apart of inputs and their joining by model. An input is PATH or NAME=PATH; inputs of one name are one
model, so that the figures of several commands stand together. Files are untrusted: whatever is not what the commands
write is a DataError that names the file. What is absent stays empty. Proven by tests/eval/test_report.py.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recognition.errors import DataError

Key = tuple[str, int | None]  # a verification set and the side that it is reduced to

ROW_NUMBERS = ("accuracy", "accuracy_std", "val", "far", "eer", "mean_norm")
FILE_NAMES = ("evaluation.json", "model.onnx", "model_last.pt")  # of a run; the folder's name says more


@dataclass
class Model:
    """All that is known of one model.

    steps: logged steps of training.  during: (epoch, rows) of verification while training.  broken: lines of
    metrics.jsonl that are none.  quality: {set: (source, set's facts, model's figures)}.
    """

    name: str
    sources: list[str] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    during: list[tuple[float, list[dict[str, Any]]]] = field(default_factory=list)
    broken: int = 0
    verification: dict[Key, dict[str, Any]] = field(default_factory=dict)
    curves: dict[Key, dict[str, Any]] = field(default_factory=dict)
    ijb: dict[str, dict[str, Any]] = field(default_factory=dict)
    quality: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    identification: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Content:
    """The models in the order given, comparisons of runs by file, and what could not be used, for the reader."""

    models: list[Model] = field(default_factory=list)
    comparisons: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def model(self, name: str) -> Model:
        """The model of that name; a new one when there is none."""
        for model in self.models:
            if model.name == name:
                return model
        self.models.append(Model(name))
        return self.models[-1]


def read_all(inputs: Sequence[str]) -> Content:
    """Read PATH and NAME=PATH inputs in order; DataError for what is not there or not what the commands write."""
    content = Content()
    named = [_name_and_path(text) for text in inputs]
    for name, path in named:
        # Two runs of one name, in different folders, are two models.
        same = [other for other_name, other in named if other_name is None and _title(other) == _title(path)]
        title = name or (f"{path.resolve().parent.name}/{_title(path)}" if len(same) > 1 else _title(path))
        if path.is_dir():
            _read_run(content, title, path)
        else:
            _read_file(content, title, path)
    return content


def _name_and_path(text: str) -> tuple[str | None, Path]:
    """The two parts of NAME=PATH; names and paths may have a `=` of their own, so what exists decides."""
    if Path(text).exists():
        return None, Path(text)
    splits = [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == "=" and at]
    for name, path in splits:
        if Path(path).exists():
            return name, Path(path)
    return (splits[0][0], Path(splits[0][1])) if splits else (None, Path(text))


def _title(path: Path | str) -> str:
    path = Path(path)
    if path.name in FILE_NAMES and path.resolve().parent.name:
        return path.resolve().parent.name
    return path.name if path.is_dir() else path.stem


def _load(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {str(error).splitlines()[0][:200]}") from None


def _read_run(content: Content, name: str, folder: Path) -> None:
    files = [folder / file for file in ("config.json", "metrics.jsonl", "evaluation.json")]
    present = [file for file in files if file.is_file()]
    if not present:
        raise DataError(f"{folder}: no run: expected config.json, metrics.jsonl or evaluation.json there")
    model = content.model(name)
    model.sources.append(str(folder))
    for file in files:
        if file not in present:
            content.notes.append(f"{name}: {file.name} is absent")
        elif file.name == "metrics.jsonl":
            _read_metrics(content, model, file)
        elif file.name == "config.json":
            model.run = _mapping(_load(file), file)
            model.settings = _mapping(model.run.get("settings", {}), file)
        else:
            _read_file(content, name, file, is_source=False)


def _mapping(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an object, got {type(value).__name__}")
    return value


def _read_metrics(content: Content, model: Model, path: Path) -> None:
    """Lines of steps and of verification; a run that is being written may have a line cut short."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    for line in lines:
        try:
            entry = json.loads(line)
            epoch = number(entry["epoch"])
            if "verification" in entry:
                model.during.append((epoch, [_row(row) for row in entry["verification"]]))
            else:
                figures = {key: value for key, value in entry.items() if _is_number(value)}
                model.steps.append({**figures, "epoch": epoch})
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            model.broken += 1
    if lines and model.broken == len(lines):
        raise DataError(f"{path}: none of its {len(lines)} lines is one of a run's metrics")
    if model.broken:
        content.notes.append(f"{model.name}: {model.broken} of {len(lines)} lines of metrics.jsonl cannot be read")


def _read_file(content: Content, name: str, path: Path, is_source: bool = True) -> None:
    """Add one JSON file, of whichever command."""
    value = _load(path)
    try:
        if isinstance(value, dict) and "differences" in value:
            content.comparisons[name] = _comparison(value)
            return
        if isinstance(value, dict) and "models" in value:
            _add_quality(content, str(path), value)
            return
        model = content.model(name)
        if is_source:
            model.sources.append(str(path))
        if not _add_scores(content, model, path, value):
            raise ValueError("not a result of this project's commands")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: {reason.splitlines()[0][:200] if reason else type(error).__name__}") from None


def _add_scores(content: Content, model: Model, path: Path, value: Any) -> bool:
    if isinstance(value, list):
        value = {"verification": value}
    if "1:1" in value or "1:N" in value:
        value = {"ijb": {str(value.get("folder") or _benchmark(value)): {"folder": None, **value}}}
    known = False
    for row in value.get("verification", ()):
        row, known = _row(row), True
        _put(content, model, model.verification, (row["set"], row["degrade"]), row, "verification")
    for curve in value.get("curves", ()):
        curve, known = _curve(curve), True
        _put(content, model, model.curves, (curve["set"], curve["degrade"]), curve, "a curve")
    for folder, result in value.get("ijb", {}).items():
        known = True
        _put(content, model, model.ijb, str(folder), _ijb({"folder": folder, **result}), "IJB")
    if "probes" in value:
        known = True
        _put(content, model, model.identification, str(value["set"]), _identification(value), "identification")
    # An evaluation without a single set is one, too.
    return known or "verification" in value or "ijb" in value


def _benchmark(result: Mapping[str, Any]) -> str:
    """Which benchmark a result without a folder is of, so that several models' results stand side by side."""
    galleries = result.get("1:N", {})
    return "IJB-C" if "G1" in galleries else "IJB-B" if "S1" in galleries else "IJB"


def _put(content: Content, model: Model, place: dict[Any, Any], key: Any, value: Any, what: str) -> None:
    if key in place and place[key] != value:
        shown = key if isinstance(key, str) else set_title(*key)
        content.notes.append(f"{model.name}: {what} of {shown} is given twice; the later one is shown")
    place[key] = value


def set_title(name: str, degrade: int | None) -> str:
    """How a set is named to the reader."""
    return f"{name}, {degrade}×{degrade}" if degrade else name


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def number(value: Any) -> float:
    """The value as a number; ValueError when it is none, or not finite."""
    if not _is_number(value):
        raise ValueError(f"expected a number, got {str(value)[:40]!r}")
    return value


def numbers(values: Any, length: int | None = None) -> list[float]:
    """The values as numbers; ValueError when they are none, or not as many."""
    if not isinstance(values, list):
        raise ValueError(f"expected a list of numbers, got {str(values)[:40]!r}")
    if length is not None and len(values) != length:
        raise ValueError(f"expected {length} numbers, got {len(values)}")
    return [number(value) for value in values]


def _maybe(value: Any) -> float | None:
    return None if value is None else number(value)


def _key(row: Mapping[str, Any]) -> dict[str, Any]:
    name, side = row["set"], row["degrade"]
    if not isinstance(name, str) or not (side is None or isinstance(side, int)):
        raise ValueError(f"expected a set's name and a side, got {str(name)[:40]!r} and {str(side)[:40]!r}")
    return {"set": name, "degrade": side}


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**_key(row), "pairs": int(number(row["pairs"])), **{key: _maybe(row[key]) for key in ROW_NUMBERS}}


def _curve(curve: Mapping[str, Any]) -> dict[str, Any]:
    path = curve.get("path")
    return {**_key(curve), "path": None if path is None else str(path), **_roc_and_hardest(curve)}


def _roc_and_hardest(curve: Mapping[str, Any]) -> dict[str, Any]:
    far = numbers(curve["roc"]["far"])
    roc = {"far": far, **{key: numbers(curve["roc"][key], len(far)) for key in ("tar", "low", "high")}}
    hardest = {kind: [numbers(one) for one in found] for kind, found in curve.get("hardest", {}).items()}
    return {"roc": roc, "hardest": hardest}


def _ijb(result: Mapping[str, Any]) -> dict[str, Any]:
    checked: dict[str, Any] = {"folder": result["folder"]}
    if rates := result.get("1:1"):
        checked["1:1"] = {"pairs": int(number(rates["pairs"]))}
        for reading in ("nearest", "strict"):
            checked["1:1"][reading] = {str(float(far)): number(rate) for far, rate in rates[reading].items()}
    if galleries := result.get("1:N"):
        checked["1:N"] = {name: {key: _maybe(value) for key, value in one.items()} for name, one in galleries.items()}
    if curve := result.get("curve"):
        checked["curve"] = _roc_and_hardest(curve)
    return checked


def _identification(result: Mapping[str, Any]) -> dict[str, Any]:
    norms = {f"mean norm, {part}": _maybe(norm) for part, norm in result["mean_norm"].items()}
    return {key: _maybe(value) for key, value in result.items() if key not in ("set", "mean_norm")} | norms


def _comparison(value: Mapping[str, Any]) -> dict[str, Any]:
    for part, names in (("figures", ("mean", "deviation")), ("differences", ("mean", "error"))):
        for figures in value[part].values():
            for one in figures.values():
                for name in names:
                    _maybe(one[name])
                _maybe(one.get("seeds"))
    return {key: value[key] for key in ("figures", "differences")} | {"failed": dict(value.get("failed") or {})}


def _add_quality(content: Content, source: str, value: Mapping[str, Any]) -> None:
    facts = {key: value[key] for key in ("set", "total", "images")}
    for one in value["models"]:
        path = Path(str(one["model"]))
        model = content.model(path.parent.name if path.name in FILE_NAMES and path.parent.name else path.stem)
        model.sources.append(source)
        model.quality[str(facts["set"])] = (source, facts, one)
        if isinstance(one.get("verification"), list):
            _add_scores(content, model, Path(source), {"verification": one["verification"]})
