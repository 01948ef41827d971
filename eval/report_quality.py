"""The report's section on quality: what eval.quality found, as tables, the paper's figures and error versus discard.

Owns their order on the page; the figures are those of eval/quality_plots.py. Proven by tests/eval/test_report.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval import quality_plots
from eval.report_page import Cell, chip, contact_sheet, details, heading, paragraph, plot_grid, table
from eval.report_pictures import Pictures, data_uri
from eval.report_read import Model
from eval.report_scores import show
from recognition.errors import DataError

COLUMNS = ["norm", "z", "f = 0", "mean f", "own centre", "nearest other", "r"]
SHARES = (0.0, 0.1, 0.2, 0.5)

Found = tuple[int, Model, str, dict[str, Any], dict[str, Any]]  # model's number, model, file, the set's facts, result


def section(models: Sequence[Model], pictures: Pictures) -> str:
    """All that the models' quality results hold; DataError naming the file of one that is not what it should be."""
    parts = []
    for name in dict.fromkeys(name for model in models for name in model.quality):
        found = [(number, model, *model.quality[name]) for number, model in enumerate(models) if name in model.quality]
        try:
            parts.append(_of_set(found, pictures, len(models) > 1))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            sources = ", ".join(dict.fromkeys(source for _, _, source, _, _ in found))
            raise DataError(f"{sources}: not a result of eval.quality: {error!r}"[:300]) from None
    return "".join(parts)


def _of_set(found: Sequence[Found], pictures: Pictures, several: bool) -> str:
    facts = found[0][3]
    parts = [heading(f"Images: {facts['images']} of {facts['total']} of {facts['set']}"), _spread_table(found)]
    for number, model, _, _, result in found:
        parts.append(f"<h3>{chip(model.name, number)}</h3>" if several else "")
        parts.append(_of_model(result, str(facts["set"]), pictures))
    parts.append(_pairs([(number, model.name, result) for number, model, _, _, result in found], several))
    return "".join(parts)


def _spread_table(found: Sequence[Found]) -> str:
    groups = []
    for number, model, _, _, result in found:
        last = result["snapshots"][-1]
        groups.append([
            [Cell(model.name, row=True, pin=True, model=number), Cell(when(last)),
             Cell(quality_plots.version_name(row["degrade"]), text_left=True), *map(Cell, _figures(row))]
            for row in last["versions"]
        ])
    heads: list[Cell | str] = [Cell("model", text_left=True, pin=True), "epoch", Cell("images", text_left=True)]
    note = ("Mean ± deviation over the images, of the last save. z = (norm − μ)/σ; f: the weight at injection, 0 below "
            "−τ; own centre, nearest other: cosines; r: correlation of norm and cosine to the own centre.")
    return table([*heads, *COLUMNS], groups) + paragraph(note, muted=True)


def when(snapshot: dict[str, Any]) -> str:
    """A snapshot's moment: its epoch, else its step."""
    if snapshot["epoch"] is not None:
        return f"{snapshot['epoch']:.4g}"
    return "–" if snapshot["step"] is None else f"step {snapshot['step']}"


def _figures(row: dict[str, Any]) -> list[str]:
    return [_spread(row["norm"]), _spread(row["z"]), show(row["unrecognizable"]), show(row["weight"]["mean"], 3),
            _spread(row["own_cosine"]), _spread(row["other_cosine"]), show(row["correlation"], 3).replace("-", "−")]


def _spread(value: dict[str, Any] | None) -> str:
    return "–" if value is None else f"{value['mean']:z.3f} ± {value['deviation']:.3f}".replace("-", "−")


def _of_model(result: dict[str, Any], images: str, pictures: Pictures) -> str:
    panels = quality_plots.figure_4(result)
    half = len(panels) // 2  # norms, and below them z
    parts = [plot_grid(panels[:half]), plot_grid(panels[half:])]
    if people := quality_plots.figure_8(result):
        parts += [paragraph("Cosine to the own centre over the norm (the paper's Fig. 8):"), plot_grid(people)]
    if examples := _examples(result, images, pictures):
        parts.append(details("Pictures: ignored, emphasised, high norm", examples, is_open=True))
    return "".join(parts)


def _examples(result: dict[str, Any], images: str, pictures: Pictures) -> str:
    parts = []
    for kind, (title, meaning) in quality_plots.KINDS.items():
        found = result.get("examples", {}).get(kind, ())
        if not found:
            continue
        try:
            items = []
            for one in found:
                picture = data_uri(pictures.of_set(images, one["image"], one["degrade"]))
                items.append(([picture], f"image {one['image']}, {quality_plots.version_name(one['degrade'])}",
                              f"z {one['z']:.2f}, f {one['weight']:.2f}".replace("-", "−")))
            parts += [heading(f"{title}: {meaning}"), contact_sheet(items)]
        except DataError as error:
            parts.append(paragraph(f"No pictures of the images {title.lower()}: {error}.", muted=True))
    return "".join(parts)


def _pairs(found: Sequence[tuple[int, str, dict[str, Any]]], several: bool) -> str:
    rows = [(number, name, one) for number, name, result in found for one in result.get("pairs", ())]
    if not rows:
        return ""
    keys = dict.fromkeys((one["set"], one["degrade"]) for _, _, one in rows)
    groups = [[_discard_row(number, name, one) for number, name, one in rows if (one["set"], one["degrade"]) == key]
              for key in keys]
    heads: list[Cell | str] = [Cell("set", text_left=True, pin=True), Cell("model", text_left=True), "pairs", "same",
                               "different", *(f"FNMR, −{share:.0%}" if share else "FNMR" for share in SHARES), "area"]
    rates = sorted({one["discard"]["fmr"] for _, _, one in rows if one["discard"]})
    shown = ", ".join(f"{rate:g}" for rate in rates)
    note = (f"same, different: cosines of the pairs, mean ± deviation. FNMR at FMR {shown}: of all same "
            "pairs, and without the share whose worse image has the lowest norm; area: under that curve.")
    return "".join([
        heading("Scores of pairs, and error versus discard by norm"), table(heads, groups), paragraph(note, muted=True),
        plot_grid(quality_plots.figure_9(found)), plot_grid(quality_plots.discard(found, several)),
    ])


def _discard_row(number: int, name: str, one: dict[str, Any]) -> list[Cell]:
    curve = one["discard"]
    fnmr = [float(np.interp(share, curve["discard"], curve["fnmr"])) for share in SHARES] if curve else [None] * 4
    return [
        Cell(quality_plots.set_title(one), row=True, pin=True),
        Cell(name, text_left=True, model=number),
        Cell(str(one["pairs"])),
        *(Cell(_spread(one[kind])) for kind in ("same", "different")),
        *(Cell(show(value)) for value in fnmr),
        Cell(show(curve["area"] if curve else None)),
    ]
