"""The report's sections on runs: their settings, and their curves of training.

Owns how metrics.jsonl and config.json are shown; HTML of eval/report_page.py, plots of eval/plots.py. A section without
content is an empty string. Proven by tests/eval/test_report.py.
"""

import json
from collections.abc import Sequence
from typing import Any

from eval.plots import Series, plot, thin
from eval.report_page import Cell, color, details, heading, paragraph, plot_grid, table
from eval.report_read import Key, Model, set_title

MOST_POINTS = 400

# Of metrics.jsonl: key → title, what its axis says. Others come after these, under their own names.
TRAINING = {
    "loss": ("Loss", "loss"),
    "lr": ("Learning rate", "learning rate"),
    "gradient_norm": ("Gradient of the backbone", "length"),
    "images_per_second": ("Speed", "images a second"),
    "embedding_norm_mean": ("Length of embeddings, mean ± deviation", "length"),
    "momentum_norm_mean": ("Length of the momentum backbone's", "length"),
    "data_wait": ("Waiting for images", "share of the time"),
    "memory_gb": ("Memory of a process", "GB"),
    "gpu_memory_gb": ("Memory of a GPU, at most", "GB"),
    "gpu_utilization": ("GPU at work", "share of the time"),
}
INJECTION = {
    "norm_mean": ("Norm of embeddings, μ ± σ", "norm"),
    "mean_weight": ("Weight f(z), mean of those stored", "weight"),
    "unrecognizable": ("Unrecognisable: z < −τ", "share of the batch"),
    "unusable": ("Unusable: no direction", "share of the batch"),
    "fresh": ("Fresh memory", "share of classes"),
    "injected_positives": ("Positives with injection", "share of the batch"),
    "memory_ratio": ("Injected over centre", "ratio of lengths"),
    "center_angle": ("Centre turned by injection", "degrees"),
}
WITHIN_A_BAND = {"norm_deviation": "norm_mean", "embedding_norm_std": "embedding_norm_mean",
                 "momentum_norm_std": "momentum_norm_mean"}
ENDS = {f"{whose}_norm_{end}" for whose in ("embedding", "momentum") for end in ("min", "max")}
ZERO_IS_UNKNOWN = {"norm_mean"}  # what injects without looking at norms logs 0
NOT_DRAWN = {"step", "epoch", *WITHIN_A_BAND, *ENDS}


def runs(models: Sequence[Model]) -> str:
    """What ran: commit, data, versions."""
    shown = [(number, model) for number, model in enumerate(models) if model.run]
    if not shown:
        return ""
    rows = []
    for number, model in shown:
        versions = model.run.get("versions")
        listed = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""
        facts = [str(model.run.get(key) or "–")[:20] for key in ("commit", "data")]
        steps = str(int(model.steps[-1]["step"])) if model.steps and "step" in model.steps[-1] else "–"
        rows.append([
            Cell(model.name, row=True, pin=True, model=number),
            Cell(steps),
            *(Cell(fact, text_left=True) for fact in facts),
            Cell(listed, text_left=True, wrap=True),
        ])
    heads: list[Cell | str] = [Cell("run", text_left=True, pin=True), "steps", Cell("commit", text_left=True),
             Cell("data's fingerprint", text_left=True), Cell("versions", text_left=True)]
    return table(heads, [rows])


def settings(models: Sequence[Model]) -> str:
    """Settings: first those in which the models differ, then all of them, folded up by section."""
    shown = [(number, model) for number, model in enumerate(models) if model.settings]
    if not shown:
        return ""
    keys = list(dict.fromkeys(key for _, model in shown for key in model.settings))
    parts = [runs(models)]
    if len(shown) > 1:
        differing = [key for key in keys if len({_value(model, key) for _, model in shown}) > 1]
        parts.append(heading("Where they differ"))
        parts.append(_settings_table(shown, differing) if differing else paragraph("In no setting."))
    parts.append(heading("All settings"))
    for section in dict.fromkeys(_section(key) for key in keys):
        inside = [key for key in keys if _section(key) == section]
        count = f"{len(inside)} setting{'s' if len(inside) > 1 else ''}"
        parts.append(details(f"{section} · {count}", _settings_table(shown, inside)))
    return "".join(parts)


def _section(key: str) -> str:
    return key.split(".")[0] if "." in key else "run"


def _value(model: Model, key: str) -> str:
    if key not in model.settings:
        return "–"
    value = model.settings[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _settings_table(shown: Sequence[tuple[int, Model]], keys: Sequence[str]) -> str:
    alone = len(shown) == 1
    heads = [Cell("setting", text_left=True, pin=True),
             *(Cell("value" if alone else model.name, text_left=True, model=None if alone else number)
               for number, model in shown)]
    values = {key: [Cell(_value(model, key), text_left=True, wrap=True) for _, model in shown] for key in keys}
    return table(heads, [[[Cell(key, row=True, pin=True), *cells] for key, cells in values.items()]])


def training(models: Sequence[Model]) -> str:
    """Curves over epochs: training, injection, anything else that was logged, verification."""
    keys = list(dict.fromkeys(key for model in models for step in model.steps for key in step if key not in NOT_DRAWN))
    other = {key: (key, key) for key in keys if key not in TRAINING and key not in INJECTION}
    parts = []
    for title, titles in (("", TRAINING), ("Injection", INJECTION), ("Also logged", other)):
        drawn = [_curve(models, key, *texts) for key, texts in titles.items() if key in keys]
        if drawn:
            parts += [heading(title) if title else "", plot_grid(drawn)]
    if parts and (most := max(_points_each(model) for model in models)) > 1:
        parts.insert(0, paragraph(f"Long runs are thinned: a point is the mean of up to {most} logged steps.", True))
    if verified := _during(models):
        parts += [heading("Verification while training"), plot_grid(verified)]
    return "".join(parts)


def _points_each(model: Model) -> int:
    return -(-len(model.steps) // MOST_POINTS)


def _curve(models: Sequence[Model], key: str, title: str, y_label: str) -> str:
    deviation = next((name for name, within in WITHIN_A_BAND.items() if within == key), None)
    series = []
    for number, model in enumerate(models):
        values = [step.get(key) for step in model.steps]
        if not any(values) and (key in ZERO_IS_UNKNOWN or values.count(None) == len(values)):
            continue
        epochs = [step["epoch"] for step in model.steps]
        x, y, _ = thin(epochs, values, MOST_POINTS)
        low = high = None
        if deviation:
            _, spread, _ = thin(epochs, [step.get(deviation) for step in model.steps], MOST_POINTS)
            low, high = ([None if a is None or b is None else a + sign * b for a, b in zip(y, spread, strict=True)]
                         for sign in (-1, 1))
        series.append(by_model(number, model.name, x, y, low=low, high=high))
    return plot(series, title, "epoch", y_label, legend=len(models) > 1)


def by_model(number: int, name: str, x: Sequence[Any], y: Sequence[Any], **more: Any) -> Series:
    """A series in its model's colour; from the ninth model on, where colours come again, dashed."""
    return Series(name, x, y, color=color(number), **{"dashed": number // 8 % 2 == 1, **more})


def _during(models: Sequence[Model]) -> list[str]:
    points: dict[Key, dict[int, list[tuple[float, float | None]]]] = {}
    for number, model in enumerate(models):
        for epoch, rows in model.during:
            for row in rows:
                of_set = points.setdefault((row["set"], row["degrade"]), {})
                of_set.setdefault(number, []).append((epoch, row["accuracy"]))
    drawn = []
    for key, of_set in points.items():
        series = [by_model(number, models[number].name, *zip(*found, strict=True)) for number, found in of_set.items()]
        drawn.append(plot(series, set_title(*key), "epoch", "accuracy", legend=len(models) > 1))
    return drawn
