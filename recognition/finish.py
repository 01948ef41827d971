"""How every run ends: the last model as one ONNX file, that file scored on all sets configured, one table.

    RUN/model.onnx         exported from model_last.pt, checked against torch
    RUN/evaluation.json    {"model", "sha256": {"model.onnx", "model_last.pt"}, "run": {"settings", "data", "sets"},
                            "parity", "verification": [...], "curves": [...], "ijb": {folder: {...}}}
    RUN/report.html        all of it in one page (eval/report.py)
    RUN/ijb_cache/         the embeddings of IJB, so that a killed evaluation goes on

The last model is exported, not the best one: choosing by the score on a test set would flatter that score.
Proven by tests/recognition/test_launch.py.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from prettytable import PrettyTable

from eval import report, report_read
from eval.embed import load_embedder
from eval.ijb import evaluate_ijb
from eval.ijb_cache import file_sha256, model_identity, open_unchanged
from eval.verification import evaluate_with_curve, load_bin, write_json
from recognition.config import Config, find_sets, settings_of
from recognition.data.dataset import open_dataset, split_roots
from tools.export_onnx import CHECK, export
from tools.exporting.images import read_images


def finish(config: Config) -> dict[str, Any]:
    """Export the run's last model, evaluate the exported file, write evaluation.json and print the closing table."""
    last, model = config.folder / "model_last.pt", config.folder / "model.onnx"
    images = read_images(split_roots(config.data.root)[0], CHECK)
    print(f"exporting {model} and evaluating it", flush=True)
    sha256 = {last.name: file_sha256(last)}
    parity = export(last, model, images)
    embedder, hashes = open_unchanged(model, partial(load_embedder, model))
    verification, curves = [], []
    for path in find_sets(config):
        pairs = load_bin(path)
        for side in (None, *config.evaluation.degrade):
            row, curve = evaluate_with_curve(embedder.embed, pairs, side, path.resolve(), progress=True)
            verification.append(row)
            curves += [curve] if curve else []
    cache = (config.folder / "ijb_cache", model_identity(model, embedder.pixels, hashes=hashes))
    ijb = {folder: evaluate_ijb(embedder.embed, folder, progress=True, cache=cache, curve=True)
           for folder in config.evaluation.ijb}
    results = {
        "model": str(model),
        "sha256": {model.name: hashes[0], **sha256},
        "run": evaluated_run(config),
        "parity": {"max_abs_error": parity.max_abs_error, "min_cosine": parity.min_cosine},
        "verification": verification,
        "curves": curves,
        "ijb": ijb,
    }
    write_json(config.folder / "evaluation.json", results)
    print(closing_table(config, results))
    page = config.folder / "report.html"
    page.write_text(report.build(report_read.read_all([str(config.folder)])), encoding="utf-8")
    print(f"the same with curves and pictures: {page}")
    return results


def evaluated_run(config: Config) -> dict[str, Any]:
    """What the figures belong to: the settings, the training data, and the files that were scored, with their sizes."""
    sets = [{"path": str(path.resolve()), "bytes": path.stat().st_size} for path in find_sets(config)]
    data = open_dataset(config.data.root).fingerprint()
    return {"settings": settings_of(config), "data": data, "sets": sets}


def closing_table(config: Config, results: dict[str, Any]) -> PrettyTable:
    """What the run reached, of the exported file."""
    table = PrettyTable(["evaluated", "figure", "value"], align="l", title=f"{results['model']}")
    parity = results["parity"]
    table.add_row(["export", "cosine to torch, lowest", f"{parity['min_cosine']:.7f}"])
    for row in results["verification"]:
        name = row["set"] + (f" at {row['degrade']}×{row['degrade']}" if row["degrade"] else "")
        table.add_row([name, f"accuracy, {row['pairs']} pairs", f"{row['accuracy']:.4f} ± {row['accuracy_std']:.4f}"])
    for folder, result in results["ijb"].items():
        for figure, value in ijb_figures(result).items():
            table.add_row([folder, figure, f"{value:.4f}"])
    figures = last_figures(config.folder / "metrics.jsonl")
    if figures:
        table.add_row(["training", "steps", figures["step"]])
        table.add_row(["training", "loss at the end", f"{figures['loss']:.3f}"])
        table.add_row(["training", "images a second", f"{figures['images_per_second']:.0f}"])
    return table


def ijb_figures(result: dict[str, Any]) -> dict[str, float]:
    """The figures of an IJB folder that people ask for first, as far as its lists allow them."""
    found = {}
    if "1:1" in result:
        rates, pairs = result["1:1"]["nearest"], result["1:1"]["pairs"]
        found = {f"TAR@FAR={far}, {pairs} pairs": rates[far] for far in ("0.0001", "0.001", "0.01") if far in rates}
    if "1:N" in result:
        mean = result["1:N"]["mean"]
        named = {"1:N rank 1": "rank1", "1:N TPIR@FPIR=0.01": "tpir@0.01", "1:N TPIR@FPIR=0.1": "tpir@0.1"}
        found |= {name: mean[key] for name, key in named.items()}
    return {name: value for name, value in found.items() if value is not None}


def last_figures(path: Path) -> dict[str, Any]:
    """The last logged step of a run; empty when there is none."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    steps = [line for line in lines if "loss" in line]
    return steps[-1] if steps else {}
