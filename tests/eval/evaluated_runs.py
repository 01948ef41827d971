"""Run folders with an evaluation, as far as thresholds are read from it."""

import hashlib
import json


def evaluation(folder, rows, model="runs/a/model.onnx"):
    """A run folder with an evaluation of the two model files in it."""
    folder.mkdir(exist_ok=True)
    for name in ("model.onnx", "model_last.pt"):
        if not (folder / name).exists():
            (folder / name).write_bytes(name.encode())
    return note(folder, model=model, verification=rows)


def note(folder, **entries):
    """Write evaluation.json, with the digests that the model files beside it have now."""
    files = [folder / name for name in ("model.onnx", "model_last.pt")]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "evaluation.json").write_text(json.dumps({"sha256": digests, **entries}))
    return folder


def row(name, different, degrade=None, **thresholds):
    named = {"0.01": thresholds.get("one"), "0.001": thresholds.get("two")}
    return {"set": name, "degrade": degrade, "different": different, "threshold@far": named}
