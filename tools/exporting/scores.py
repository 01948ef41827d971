"""Whose accuracy an exported file states, and on which sets it is measured.

`scores` in a file's metadata are the file's own where it was measured on --pairs at its export; else those of the
network that it was made of: of its training, in float32 or in the half precision of its products, or, where that kept
none, of the run's evaluation, if it is of exactly this model file. `scores_of` says which.
Proven by tests/tools/exporting/test_scores.py.
"""

import json
from pathlib import Path
from typing import Any

import onnx

from eval.ijb_cache import file_sha256
from eval.thresholds import THIS_FILE
from recognition.config import places_of
from recognition.data.dataset import split_roots
from tools.exporting.form import without_folders


def scores_of_run(model: Path) -> list[dict[str, Any]]:
    """The figures in the evaluation.json beside a model file if they are of this very file; else none."""
    try:
        evaluation = json.loads((model.parent / "evaluation.json").read_text())
        rows = evaluation["verification"] if file_sha256(model) in evaluation["sha256"].values() else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else []


def state_scores(model: onnx.ModelProto, scores: list[dict[str, Any]]) -> None:
    """Write a file's own figures into its metadata, in place of others."""
    kept = {entry.key: entry.value for entry in model.metadata_props}
    kept |= {"scores": json.dumps(without_folders(scores)), "scores_of": THIS_FILE}
    onnx.helper.set_model_props(model, kept)


def run_sets(run: Path) -> tuple[list[Path], list[str]]:
    """The verification sets that a run folder's config.json names: files that are there, names of those that are not.

    Each is a path, or NAME or NAME.bin beside the training set, as for the run itself.
    """
    try:
        settings = json.loads((run / "config.json").read_text())["settings"]
        names, roots = settings["evaluation.sets"], split_roots(settings["data.root"])
    except (OSError, ValueError, KeyError, TypeError):
        return [], []
    found, missing = [], []
    for name in names if isinstance(names, list) else []:
        place = next((path for path in places_of(name, roots) if path.is_file()), None)
        found += [] if place is None else [place]
        missing += [name] if place is None else []
    return found, missing
