"""The result of benchmarks/head.py as a table and as a picture: `python benchmarks/head_report.py RESULT.json PICTURE`.

Proven by tests/benchmarks/test_head_benchmark.py.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prettytable import PrettyTable

from recognition.errors import SettingsError, run_command

COLORS = {"ours": "#2a7f62", "plain": "#b0563b", "plain, dense": "#d59a6f", "full softmax": "#777777"}
FIGURES = [
    ("ms/step", "milliseconds", ".1f"), ("× plain", "time_ratio", ".2f"), ("CPU × plain", "cpu_ratio", ".2f"),
    ("× its full rate", "ratio_to_full_rate", ".2f"), ("peak MiB", "peak_mib", ".0f"),
    ("peak × plain", "peak_ratio", ".3f"), ("state MiB", "state_mib", ".0f"),
]
NO_ROOM = "no room"


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = PrettyTable(["C", "B", "rate", "head", *(title for title, _, _ in FIGURES)], align="r")
    table.align["head"] = "l"
    for number, row in enumerate(rows):
        figures = [shown(row[key], form) if key != "peak_mib" else shown(row[key], form, NO_ROOM)
                   for _, key, form in FIGURES]
        following = rows[number + 1] if number + 1 < len(rows) else row
        divider = any(following[key] != row[key] for key in ("classes", "batch", "rate"))
        table.add_row([row["classes"], row["batch"], row["rate"], row["name"], *figures], divider=divider)
    print(table)
    print("peak: memory above the state, which is weights, momentum and injection's memory")


def shown(value: float | None, form: str, missing: str = "") -> str:
    """A figure as text."""
    return missing if value is None else f"{value:{form}}"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of time over plain Partial FC's and of peak memory, a row of panels for each (classes, batch)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    problems = list(dict.fromkeys((row["classes"], row["batch"]) for row in rows))
    counts = [sum((row["classes"], row["batch"]) == problem for row in rows) for problem in problems]
    figure, panels = pyplot.subplots(len(problems), 2, figsize=(13, 1.2 * len(problems) + 0.27 * sum(counts)),
                                     squeeze=False, height_ratios=counts, layout="constrained")
    for (left, right), (classes, batch) in zip(panels, problems, strict=True):
        here = [row for row in rows if (row["classes"], row["batch"]) == (classes, batch)]
        bars(left, here, "time_ratio", ".2f")
        bars(right, here, "peak_mib", ",.0f")
        left.axvline(1, color="black", linewidth=0.8, zorder=0)
        left.set_title(f"{classes:,} classes, batch {batch}: time of a step over plain's at its rate", fontsize=10)
        right.set_title("peak memory above weights, momentum and memory, MiB", fontsize=10)
        right.set_xscale("log")
        right.set_xlim(left=1)
        right.set_yticklabels([])
    figure.savefig(path, dpi=120)


def bars(axes: Any, rows: list[dict[str, Any]], key: str, form: str) -> None:
    """Horizontal bars with their figures, from the top down, a gap where the sampling rate changes."""
    rates = list(dict.fromkeys(row["rate"] for row in rows))
    places = [number + 0.6 * rates.index(row["rate"]) for number, row in enumerate(rows)]
    drawn = axes.barh(places, [row[key] or 0 for row in rows], color=[COLORS[row["kind"]] for row in rows])
    labels = axes.bar_label(drawn, [shown(row[key], form, NO_ROOM) for row in rows], padding=4, fontsize=8)
    for label in labels:
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_yticks(places, [f"{row['name']}  ·  rate {row['rate']:g}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def main(arguments: Sequence[str]) -> None:
    """Print and draw a saved result."""
    if len(arguments) != 2:
        raise SettingsError("usage: head_report.py RESULT.json PICTURE")
    rows = json.loads(Path(arguments[0]).read_text())["rows"]
    report(rows)
    plot(rows, Path(arguments[1]))


if __name__ == "__main__":
    run_command(main)
