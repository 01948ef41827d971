"""The report's sections on scores: verification, IJB, identification, comparisons over seeds; ROC and DET plots.

Owns which figure stands where and with how many digits. Rates are shares from 0 to 1, four digits; accuracies of the
paper's Table 1 are percent. The best of a group is bold where several models are shown. A section without content is
an empty string. Proven by tests/eval/test_report.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from eval.plots import plot
from eval.report_page import Cell, details, heading, paragraph, plot_grid, table
from eval.report_pictures import Pictures
from eval.report_read import Key, Model, set_title
from eval.report_run import by_model

# Of a row of verification: key, heading, digits, and whether more is better (0: neither).
FIGURES = (("val", "VAL", 4, 1), ("far", "at FAR", 4, 0), ("eer", "EER", 4, -1), ("mean_norm", "mean norm", 2, 0))
MOST_FALSE_MATCHES = 0.5  # of a DET plot: beyond, nobody sets a threshold
IDENTIFICATION_NAMES = {"without_mate": "without mate", "map": "mAP", "map_steps": "mAP, by steps"}
GALLERY_NAMES = {"mated": "mated probes", "non_mated": "non-mated probes"}


def show(value: float | None, digits: int = 4) -> str:
    """A figure as text; a dash where there is none, whole numbers without digits."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def marked(values: Sequence[float | None], direction: int) -> list[bool]:
    """Which values are the best; none when they are all the same."""
    known = [direction * value for value in values if value is not None]
    if not direction or len(known) < 2 or min(known) == max(known):
        return [False] * len(values)
    return [value is not None and direction * value == max(known) for value in values]


def verification(models: Sequence[Model]) -> str:
    """Tables of verification: Table 1, then every figure."""
    keys = verification_keys(models)
    if not keys:
        return ""
    return table_1(models, keys) + heading("Every figure") + _rows_table(models, keys)


def verification_keys(models: Sequence[Model]) -> list[Key]:
    """Sets in the order in which they come, each as it is and then by falling side."""
    keys = dict.fromkeys(key for model in models for key in model.verification)
    names = list(dict.fromkeys(name for name, _ in keys))
    return sorted(keys, key=lambda key: (names.index(key[0]), -(key[1] or 1 << 20)))


def table_1(models: Sequence[Model], keys: Sequence[Key]) -> str:
    """Accuracy in percent as in the paper's Table 1: a row for each model and resolution, a column for each set."""
    names = list(dict.fromkeys(name for name, _ in keys))
    sides = sorted({side for _, side in keys}, key=lambda side: -(side or 1 << 20))
    best: dict[tuple[int, Key], bool] = {}
    for key in keys:
        rows = [(number, model.verification.get(key)) for number, model in enumerate(models)]
        flags = marked([row["accuracy"] if row else None for _, row in rows], 1)
        best |= {(number, key): flag for (number, _), flag in zip(rows, flags, strict=True)}
    groups = []
    for number, model in enumerate(models):
        group = []
        for side in sides:
            found = [model.verification.get((name, side)) for name in names]
            if not any(found):
                continue
            group.append([
                Cell(model.name, row=True, pin=True, model=number),
                Cell(f"{side}×{side}" if side else "as it is", text_left=True),
                *(Cell(_percent(row), best=best.get((number, (name, side)), False))
                  for name, row in zip(names, found, strict=True)),
            ])
        if group:
            groups.append(group)
    return heading("Accuracy, percent") + table([_left("model", pin=True), _left("pixels"), *names], groups)


def _percent(row: dict[str, Any] | None) -> str:
    return "–" if row is None or row["accuracy"] is None else f"{100 * row['accuracy']:.2f}"


def _left(text: str, pin: bool = False) -> Cell | str:
    """The head of a column of words."""
    return Cell(text, text_left=True, pin=pin)


def _rows_table(models: Sequence[Model], keys: Sequence[Key]) -> str:
    heads = [_left("set", pin=True), _left("model"), "pairs", "accuracy", *(title for _, title, _, _ in FIGURES)]
    groups = []
    for key in keys:
        rows = [(number, model.verification[key]) for number, model in enumerate(models) if key in model.verification]
        columns = {name: marked([row[name] for _, row in rows], way) for name, _, _, way in FIGURES}
        columns["accuracy"] = marked([row["accuracy"] for _, row in rows], 1)
        group = []
        for place, (number, row) in enumerate(rows):
            accuracy = f"{show(row['accuracy'])} ± {show(row['accuracy_std'])}"
            group.append([
                Cell(set_title(*key), row=True, pin=True),
                Cell(models[number].name, text_left=True, model=number),
                Cell(str(row["pairs"])),
                Cell(accuracy, best=columns["accuracy"][place]),
                *(Cell(show(row[name], digits), best=columns[name][place]) for name, _, digits, _ in FIGURES),
            ])
        groups.append(group)
    note = "Accuracy: mean ± deviation over ten folds. VAL: share of same pairs accepted at FAR. EER: equal error rate."
    return table(heads, groups) + paragraph(note, muted=True)


def ijb(models: Sequence[Model]) -> str:
    """Tables of IJB: 1:1 at false-accept rates, both readings; 1:N by gallery."""
    parts = []
    for folder in dict.fromkeys(folder for model in models for folder in model.ijb):
        found = [(number, model, model.ijb[folder]) for number, model in enumerate(models) if folder in model.ijb]
        parts.append(heading(folder))
        if any("1:1" in result for _, _, result in found):
            parts.append(_one_to_one(found))
        if any("1:N" in result for _, _, result in found):
            parts.append(_one_to_many(found))
    return "".join(parts)


def _one_to_one(found: Sequence[tuple[int, Model, dict[str, Any]]]) -> str:
    results = [(number, model, result["1:1"]) for number, model, result in found if "1:1" in result]
    targets = sorted({far for _, _, rates in results for far in rates["nearest"]}, key=float)
    groups = []
    for reading in ("nearest", "strict"):
        columns = [marked([rates[reading].get(far) for _, _, rates in results], 1) for far in targets]
        groups.append([
            [Cell(model.name, row=True, pin=True, model=number), Cell(reading, text_left=True),
             Cell(str(rates["pairs"])), *(Cell(show(rates[reading].get(far)), best=column[place])
               for far, column in zip(targets, columns, strict=True))]
            for place, (number, model, rates) in enumerate(results)
        ])  # fmt: skip
    heads = [_left("1:1, TAR at FAR", pin=True), _left("reading"), "pairs", *targets]
    note = ("nearest: the curve's corner with the nearest FAR, as in published tables; "
            "strict: the largest TAR whose FAR does not exceed the target.")
    return table(heads, groups) + paragraph(note, muted=True)


def _one_to_many(found: Sequence[tuple[int, Model, dict[str, Any]]]) -> str:
    results = [(number, model, result["1:N"]) for number, model, result in found if "1:N" in result]
    galleries = list(dict.fromkeys(name for _, _, result in results for name in result))
    keys = list(dict.fromkeys(key for _, _, result in results for figures in result.values() for key in figures))
    groups = []
    for gallery in galleries:
        rows = [(number, model, result[gallery]) for number, model, result in results if gallery in result]
        columns = [marked([one.get(key) for _, _, one in rows], 0 if key in GALLERY_NAMES else 1) for key in keys]
        groups.append([
            [Cell(model.name, row=True, pin=True, model=number), Cell(gallery, text_left=True),
             *(Cell(show(figures.get(key)), best=column[place]) for key, column in zip(keys, columns, strict=True))]
            for place, (number, model, figures) in enumerate(rows)
        ])
    heads = [_left("1:N", pin=True), _left("gallery"),
             *(GALLERY_NAMES.get(key, _one_to_many_name(key)) for key in keys)]
    note = "TPIR: share of mated probes found first and above the threshold at which that share of non-mated ones is."
    has_tpir = any(key.startswith("tpir") for key in keys)
    return table(heads, groups) + (paragraph(note, muted=True) if has_tpir else "")


def _one_to_many_name(key: str) -> str:
    if key.startswith("rank"):
        return f"rank {key.removeprefix('rank')}"
    if key.startswith("tpir@"):
        return f"TPIR at FPIR {key.removeprefix('tpir@')}"
    return key


def identification(models: Sequence[Model]) -> str:
    """Tables of identification: a probe's mate among gallery and distractors."""
    parts = []
    for name in dict.fromkeys(name for model in models for name in model.identification):
        found = [(number, model, model.identification[name]) for number, model in enumerate(models)
                 if name in model.identification]
        keys = list(dict.fromkeys(key for _, _, figures in found for key in figures))
        best = {key: marked([one.get(key) for _, _, one in found], 1 if key[:4] in ("rank", "map", "map_") else 0)
                for key in keys}
        rows = [[Cell(model.name, row=True, pin=True, model=number),
                 *(Cell(show(figures.get(key)), best=best[key][place]) for key in keys)]
                for place, (number, model, figures) in enumerate(found)]
        heads = [_left("model", pin=True), *(IDENTIFICATION_NAMES.get(key, _one_to_many_name(key)) for key in keys)]
        parts += [heading(name), table(heads, [rows])]
    return "".join(parts)


def curves(models: Sequence[Model], pictures: Pictures) -> str:
    """ROC and DET plots with their bands, and the hardest pairs; verification sets first, then IJB."""
    parts = []
    for key in dict.fromkeys(key for model in models for key in model.curves):
        found = [(number, model, model.curves[key]) for number, model in enumerate(models) if key in model.curves]
        parts.append(_set_of_curves(models, set_title(*key), found, pictures.verification_sheets))
    for folder in dict.fromkeys(folder for model in models for folder in model.ijb):
        found = [(number, model, model.ijb[folder]["curve"]) for number, model in enumerate(models)
                 if "curve" in model.ijb.get(folder, {})]
        if found:
            parts.append(_set_of_curves(models, f"{folder}, 1:1", found,
                                        partial(pictures.ijb_sheets, found[0][1].ijb[folder]["folder"])))
    if parts:
        parts.insert(0, paragraph("Bands: 95 % of the curves drawn anew from the same data.", muted=True))
    return "".join(parts)


def _set_of_curves(
    models: Sequence[Model], title: str, found: Sequence[tuple[int, Model, dict[str, Any]]],
    sheets: Callable[[dict[str, Any]], str],
) -> str:
    several = len(models) > 1
    drawn = [roc_plot([(n, model.name, curve["roc"]) for n, model, curve in found], several),
             det_plot([(n, model.name, curve["roc"]) for n, model, curve in found], several)]
    parts = [heading(title), plot_grid(drawn)]
    for _, model, curve in found:
        if sheet := sheets(curve):
            summary = "Hardest pairs" + (f" of {model.name}" if several else "")
            parts.append(details(summary, sheet, is_open=not several))
    return "".join(parts)


def roc_plot(found: Sequence[tuple[int, str, dict[str, Any]]], legend: bool | None = None) -> str:
    """True-accept rate over the false-accept rate, which is logarithmic. found: model's number, name, roc_summary."""
    series = [by_model(n, name, roc["far"], roc["tar"], low=roc["low"], high=roc["high"]) for n, name, roc in found]
    lowest = min(rate for _, _, roc in found for rate in roc["tar"])
    # Up to a little over 1, so that the line is whole there.
    y_range = (max(0.0, lowest - 0.15 * (1 - lowest)), 1 + 0.02 * (1 - lowest or 1))
    return plot(series, "ROC", "false-accept rate", "true-accept rate", x_scale="log", y_range=y_range, legend=legend)


def det_plot(found: Sequence[tuple[int, str, dict[str, Any]]], legend: bool | None = None) -> str:
    """False non-matches over false matches, both as normal deviates, as far as half of the different pairs match."""
    series = []
    for number, name, roc in found:
        points = [place for place, far in enumerate(roc["far"]) if 0 < far <= MOST_FALSE_MATCHES]
        misses = {key: [1 - roc[key][place] for place in points] for key in ("tar", "low", "high")}
        far = [roc["far"][place] for place in points]
        series.append(by_model(number, name, far, misses["tar"], low=misses["high"], high=misses["low"]))
    return plot(series, "DET", "false-match rate", "false-non-match rate", x_scale="deviate", y_scale="deviate",
                legend=legend)


def comparisons(found: dict[str, dict[str, Any]]) -> str:
    """Tables of runs over seeds."""
    parts = []
    for name, value in found.items():
        parts.append(heading(name))
        parts.append(_comparison(value["figures"], "deviation", "mean ± deviation over seeds", 4))
        if value["differences"]:
            parts.append(_comparison(value["differences"], "error", "gain over the first ± standard error", 4))
        for member, status in value["failed"].items():
            parts.append(paragraph(f"{member} failed, exit status {status}: its figures are missing."))
    return "".join(parts)


def _comparison(rows: dict[str, dict[str, Any]], spread: str, title: str, digits: int) -> str:
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))

    def figure(one: dict[str, Any] | None) -> str:
        if one is None or one["mean"] is None:
            return "–"
        sign = "+" if spread == "error" else ""
        seeds = f" ({one['seeds']})" if one.get("seeds") is not None else ""
        mean = f"{one['mean']:{sign}.{digits}f}".replace("-", "−")
        return f"{mean} ± {show(one[spread], digits)}{seeds}"

    heads = [_left(title, pin=True), *names]
    body = [[Cell(label, row=True, pin=True), *(Cell(figure(figures.get(name))) for name in names)]
            for label, figures in rows.items()]
    has_seeds = any(one.get("seeds") is not None for figures in rows.values() for one in figures.values())
    return table(heads, [body]) + (paragraph("In brackets: how many seeds.", muted=True) if has_seeds else "")
