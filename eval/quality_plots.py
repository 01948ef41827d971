"""The paper's Figs. 4, 5, 8 and 9, its Table 1, and error versus discard, from the JSON of eval.quality.

Owns what these figures show ("A Quality Aware Sample-to-Sample Comparison for Face Recognition", WACV 2023), as lists
of panels of eval/plots.py that reports set side by side; `write_figures` makes files of them. `result` is one model's
part of the JSON (docs/evaluation.md). Versions of a set have the colours v0 (as it is), v1, …; models c0, c1, ….
Proven by tests/eval/test_quality_plots.py.
"""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from eval.plots import SERIES_COLORS, VERSION_COLORS, WIDTH, Series, plot, sheet
from eval.report_pictures import Pictures, data_uri
from recognition.errors import DataError

# The paper averages the histograms of epochs 1–4, 10–15 and 20–24 of 24.
STAGES = {"early": (0.0, 4 / 24), "middle": (10 / 24, 15 / 24), "final": (20 / 24, 1.0)}
KINDS = {
    "ignored": ("Ignored", "f(z) = 0, lowest z first"),
    "emphasised": ("Emphasised", "largest f(z) first"),
    "high_norm": ("High norm", "highest norm first"),
}
PICTURE, GAP = 84.0, 10.0
Named = tuple[int, str, dict[str, Any]]  # a model's number, which is its colour; its name; its result


def version_name(degrade: int | None) -> str:
    """How a version of a set is named."""
    return f"{degrade}×{degrade}" if degrade else "as they are"


def version_color(number: int) -> str:
    """Of a set's version, by its place."""
    return f"v{number % VERSION_COLORS}"


def figure_4(result: dict[str, Any]) -> list[str]:
    """Histograms of the norm, and of z below them, at the early, middle and final stage of training.

    Stages are shares of the training up to the last save, as the paper's epochs are of its 24; one that has no save is
    left out, and a model file has only the last. A curve is the mean over the histograms of its stage's saves.
    """
    snapshots = result["snapshots"]
    stages = {name: found for name, span in STAGES.items() if (found := _within(snapshots, *span))}
    panels = []
    for figure, x_label in (("norm", "norm ‖u‖"), ("z", "z = (‖u‖ − μ)/σ")):
        edges = np.array(result["histogram_edges"][figure])
        drawn = {name: [_mean_share(found, version, figure) for version in range(len(found[0]["versions"]))]
                 for name, found in stages.items()}
        ranges = _common(edges, drawn)
        for name, shares in drawn.items():
            series = [
                Series(version_name(stages[name][0]["versions"][number]["degrade"]), edges.tolist(), share.tolist(),
                       version_color(number), kind="steps", filled=True)
                for number, share in enumerate(shares)
            ]
            what = "Norm" if figure == "norm" else "z"
            title = f"{what}, {_epochs(stages[name], name)}"
            marks = sorted({-one["tau"] for one in stages[name]}) if figure == "z" else []
            panels.append(plot(series, title, x_label, "share of images", x_range=ranges[0], y_range=ranges[1],
                               marks=marks, legend=True))
    return panels


def _within(snapshots: Sequence[dict[str, Any]], low: float, high: float) -> list[dict[str, Any]]:
    """Snapshots at a share of the training; without steps there is but one, the final."""
    last = snapshots[-1]["step"]
    if not last:
        return list(snapshots[-1:]) if high == 1 else []
    return [one for one in snapshots if low - 1e-9 <= one["step"] / last <= high + 1e-9]


def _epochs(found: Sequence[dict[str, Any]], stage: str) -> str:
    epochs = [one["epoch"] for one in found]
    if None in epochs:
        return f"{stage} stage" if found[0]["step"] is not None else "of the model"
    first, last = (f"{epoch:.4g}" for epoch in (epochs[0], epochs[-1]))
    return f"{stage}: epoch {first}" if first == last else f"{stage}: epochs {first}–{last}"


def _mean_share(found: Sequence[dict[str, Any]], version: int, figure: str) -> np.ndarray:
    histograms = [np.array(one["versions"][version][figure]["histogram"], float) for one in found]
    return np.mean([histogram / histogram.sum() for histogram in histograms], axis=0)


def _common(
    edges: np.ndarray, drawn: dict[str, list[np.ndarray]]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Axes that all stages share, so that they can be compared: the bins in use, and the highest."""
    every = np.stack([share for shares in drawn.values() for share in shares])
    used = np.flatnonzero(every.sum(axis=0) > 1e-3)
    return (float(edges[used[0]]), float(edges[used[-1] + 1])), (0.0, 1.05 * float(every.max()))


def figure_8(result: dict[str, Any]) -> list[str]:
    """Cosine to the own centre over the norm, for a few people: each image as it is and reduced."""
    panels = []
    for subject in result.get("subjects", ()):
        series = [Series(version_name(one["degrade"]), one["norm"], one["cosine"], version_color(number), kind="dots")
                  for number, one in enumerate(subject["versions"])]
        title = f"Person {subject['label']}, {subject['images']} images"
        centers = "class centre" if subject["centers"] == "learned" else "mean of the others"
        panels.append(plot(series, title, "norm ‖u‖", f"cosine to the {centers}", legend=True))
    return panels


def figure_9(results: Sequence[Named]) -> list[str]:
    """Distributions of the pairs' scores, a panel a set. results: model's number (its colour), name, result."""
    panels = []
    for key in _keys(results):
        series, found = [], _of_key(results, key)
        for number, name, one in found:
            for kind, words in (("same", "same person"), ("different", "different people")):
                if one[kind] is not None:
                    share = np.array(one[kind]["histogram"]) / one[kind]["count"]
                    label = f"{name}, {words}" if len(results) > 1 else words
                    series.append(Series(label, one["edges"], share.tolist(), f"c{number % SERIES_COLORS}",
                                         kind="steps", dashed=kind == "different", filled=kind == "same"))
        title = f"Pair scores, {set_title(found[0][2])}"
        panels.append(plot(series, title, "cosine", "share of pairs", x_range=_score_range(series), legend=True))
    return panels


def _score_range(series: Sequence[Series]) -> tuple[float, float]:
    edges = np.array(series[0].x, float)
    used = np.flatnonzero(np.sum([np.array(one.y, float) for one in series], axis=0))
    return float(edges[used[0]]), float(edges[used[-1] + 1])


def discard(results: Sequence[Named], legend: bool | None = None) -> list[str]:
    """False-non-match rate as the pairs of the lowest norms are thrown away, a panel a set; arguments as `figure_9`."""
    panels = []
    for key in _keys(results):
        found = [(number, name, one) for number, name, one in _of_key(results, key) if one["discard"]]
        if not found:
            continue
        series = [Series(name, one["discard"]["discard"], one["discard"]["fnmr"], f"c{number % SERIES_COLORS}")
                  for number, name, one in found]
        title = f"Error versus discard, {set_title(found[0][2])}"
        label = f"FNMR at FMR {found[0][2]['discard']['fmr']:g}"
        panels.append(plot(series, title, "share of same pairs thrown away, lowest norm first", label,
                           legend=len(results) > 1 if legend is None else legend))
    return panels


def _keys(results: Sequence[Named]) -> list[tuple[str, int | None]]:
    compared = [one for _, _, result in results for one in result.get("pairs", ())]
    return list(dict.fromkeys((one["set"], one["degrade"]) for one in compared))


def _of_key(
    results: Sequence[Named], key: tuple[str, int | None]
) -> list[Named]:
    return [(number, name, one) for number, name, result in results for one in result.get("pairs", ())
            if (one["set"], one["degrade"]) == key]


def set_title(one: dict[str, Any]) -> str:
    """How the pairs of a set are named."""
    name = Path(one["set"]).name
    return f"{name}, {one['degrade']}×{one['degrade']}" if one["degrade"] else name


def figure_5(result: dict[str, Any], images: str, pictures: Pictures) -> list[str]:
    """Pictures that the model ignores, emphasises, and finds good, as SVG panels; `images` is their set."""
    panels = []
    for kind, (title, meaning) in KINDS.items():
        found = result["examples"].get(kind, ())
        cells = []
        for place, one in enumerate(found):
            x, y = 4 + place % 4 * (PICTURE + GAP), 34 + place // 4 * (PICTURE + 34)
            uri = data_uri(pictures.of_set(images, one["image"], one["degrade"]))
            cells.append(f'<image x="{x:g}" y="{y:g}" width="{PICTURE:g}" height="{PICTURE:g}" href="{escape(uri)}"/>')
            lines = (f"norm {one['norm']:.1f}", f"z {one['z']:.2f}, f {one['weight']:.2f}".replace("-", "−"))
            cells += [f'<text class="tick" x="{x:g}" y="{y + PICTURE + 12 * (row + 1):g}">{line}</text>'
                      for row, line in enumerate(lines)]
        height = 40 + (PICTURE + 34) * max(1, -(-len(found) // 4))
        empty = "" if found else '<text class="tick" x="4" y="56">none</text>'
        panels.append(
            f'<svg class="plot" role="img" viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" height="{height:g}">'
            f'<text class="title" x="2" y="14">{title}: {escape(meaning)}</text>{"".join(cells)}{empty}</svg>'
        )
    return panels


def table_1(results: Sequence[dict[str, Any]]) -> str:
    """Accuracy in percent, a row for each model and resolution, a column for each set, as Markdown."""
    rows = [(_name(result["model"]), row) for result in results for row in result.get("verification", ())]
    sets = list(dict.fromkeys(row["set"] for _, row in rows))
    sides = sorted({row["degrade"] for _, row in rows}, key=lambda side: side or 1 << 20)
    lines = ["| model | resolution | " + " | ".join(sets) + " |", "| --- | --- |" + " ---: |" * len(sets)]
    for model in dict.fromkeys(name for name, _ in rows):
        for side in sides:
            found = {row["set"]: row["accuracy"] for name, row in rows if name == model and row["degrade"] == side}
            shown = (f"{100 * found[name]:.2f}" if name in found else "–" for name in sets)
            lines.append(f"| {model} | {f'{side}×{side}' if side else 'as they are'} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _name(model: str) -> str:
    path = Path(model)
    return path.parent.name if path.name in ("model.onnx", "model_last.pt") and path.parent.name else path.stem


def write_figures(folder: str | Path, value: dict[str, Any]) -> list[Path]:
    """Files of all figures that the JSON has numbers for; returns their paths. DataError when one cannot be written.

    figure4_MODEL.svg, figure5_MODEL.svg, figure8_MODEL.svg; of all models: figure9.svg, discard.svg, table1.md.
    """
    pictures = Pictures()
    files: dict[str, str] = {}
    for result in value["models"]:
        name = re.sub(r"[^\w.-]+", "_", _name(result["model"]))
        files[f"figure4_{name}.svg"] = sheet(panels := figure_4(result), max(1, len(panels) // 2))
        files[f"figure5_{name}.svg"] = sheet(figure_5(result, value["set"], pictures), 3)
        if people := figure_8(result):
            files[f"figure8_{name}.svg"] = sheet(people, 2)
    named = [(number, _name(result["model"]), result) for number, result in enumerate(value["models"])]
    if scores := figure_9(named):
        files["figure9.svg"] = sheet(scores, min(3, len(scores)))
    if curves := discard(named):
        files["discard.svg"] = sheet(curves, min(3, len(curves)))
    if any(result.get("verification") for result in value["models"]):
        files["table1.md"] = table_1(value["models"])
    paths = [Path(folder) / name for name in files]
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, files.values(), strict=True):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from None
    return paths
