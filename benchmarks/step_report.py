"""The result of benchmarks/step.py as Markdown and as a picture: `python benchmarks/step_report.py RESULT PICTURE`.

Proven by tests/benchmarks/test_step.py.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recognition.errors import SettingsError, run_command
from recognition.phases import PHASES

TARGETS = {
    ("iresnet50", "none"): 9300, ("iresnet50", "qaface"): 7000, ("iresnet100", "none"): 5100,
    ("iresnet100", "qaface"): 3800, ("iresnet18", "none"): 18000, ("mobilefacenet", "none"): 25000,
}
"""Images a second of ours that this project aims at, on one H200 in bf16 with 206k classes."""
TARGET_CLASSES = 206_000
NAMES = {"iresnet18": "IResNet-18", "iresnet34": "IResNet-34", "iresnet50": "IResNet-50", "iresnet100": "IResNet-100",
         "iresnet200": "IResNet-200", "mobilefacenet": "MobileFaceNet"}
PARTS = ("data wait", *PHASES, "other")
COLORS = {
    "data wait": "#bbbbbb", "backbone forward": "#5b8fb9", "momentum forward": "#e0b252", "head": "#2a7f62",
    "backward": "#8ab6d6", "optimizer": "#b0563b", "momentum update": "#f0d49a", "memory write": "#86c5a8",
    "other": "#666666",
}


def markdown(result: dict[str, Any]) -> str:
    """Where and when, the steps, and their parts."""
    threads = f" used: {result['threads']}" if result["threads"] else ""
    told = (f"{result['date']}, commit {result['commit'][:7]}, {result['device']}{threads}, {result['precision']}, "
            f"torch {result['versions']['torch']}; peak {result['peak_tflops']:.3g} TFLOP/s, {result['peak_source']}")
    rows = result["rows"]
    return "\n".join([told, "", f"    {result['command']}", "", *steps_table(rows), "", *parts_table(rows)])


def steps_table(rows: list[dict[str, Any]]) -> list[str]:
    """Rates, ratios and memory; targets where there are any."""
    columns = ["backbone, batch", "classes", "step", "ms", "images/s", "of the floor", "× baseline", "by CPU time",
               "× backbone alone", "× no injection", "peak MiB", "state MiB"]
    with_targets = any(target(row) for row in rows)
    body = []
    for row in rows:
        cells = [f"{NAMES.get(row['backbone'], row['backbone'])}, {row['batch']}", f"{row['classes']:,}", row["name"]]
        cells += [shown(row["milliseconds"], ",.0f", "no room"), shown(row["images_per_second"], ",.4g"),
                  shown(row["share_of_floor"], ".0%"), shown(row["speed_over_baseline"], ".2f"),
                  shown(row["cpu_speed_over_baseline"], ".2f"), shown(row["time_over_alone"], ".2f"),
                  shown(row["time_over_no_injection"], ".2f"), shown(row["peak_mib"], ",.0f"),
                  shown(row["state_mib"], ",.0f")]
        body.append(cells + ([shown(target(row), ",d")] if with_targets else []))
    return table(columns + (["target images/s"] if with_targets else []), body, left=3)


def parts_table(rows: list[dict[str, Any]]) -> list[str]:
    """Milliseconds of each part."""
    body = [[f"{NAMES.get(row['backbone'], row['backbone'])}, {row['classes']:,}: {row['name']}",
             *(shown(row["breakdown_ms"].get(part), ",.1f") for part in PARTS), shown(row["head_share"], ".0%")]
            for row in rows if row["breakdown_ms"]]
    return table(["ms of", *PARTS, "head's share"], body, left=1)


def target(row: dict[str, Any]) -> int | None:
    """Images a second that ours is to reach, where the case is the one that the target is for."""
    fits = row["kind"] == "ours" and row["classes"] == TARGET_CLASSES and row["sample_rate"] == 1
    return TARGETS.get((row["backbone"], row["inject"])) if fits and row["precision"] == "bf16" else None


def table(columns: list[str], body: list[list[str]], left: int) -> list[str]:
    """Lines of a Markdown table; all columns but the first `left` ones are to the right."""
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    return ["| " + " | ".join(cells) + " |" for cells in [columns, rule, *body]]


def shown(value: float | None, form: str, missing: str = "") -> str:
    """A figure as text."""
    return missing if value is None else f"{value:{form}}"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Stacked bars of the parts of a step, a panel for each backbone and number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["breakdown_ms"]]
    panels = list(dict.fromkeys((row["backbone"], row["batch"], row["classes"]) for row in rows))
    cases = [[row for row in rows if (row["backbone"], row["batch"], row["classes"]) == panel] for panel in panels]
    counts = [len(case) for case in cases]
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(11, 0.8 + 0.75 * len(panels) + 0.34 * sum(counts)),
                                   squeeze=False, height_ratios=counts, layout="constrained")
    for axis, (backbone, batch, classes), case in zip(axes[:, 0], panels, cases, strict=True):
        bars(axis, case)
        axis.set_title(f"{NAMES.get(backbone, backbone)}, batch {batch}, {classes:,} classes", fontsize=10, loc="left")
    axes[-1, 0].set_xlabel("milliseconds a step")
    used = {part for row in rows for part, value in row["breakdown_ms"].items() if value > 0}
    handles = [matplotlib.patches.Patch(color=COLORS[part], label=part) for part in PARTS if part in used]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5), fontsize=9, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def bars(axes: Any, rows: list[dict[str, Any]]) -> None:
    """One bar a row, from the top down, with the step's time and images a second at its end."""
    places = list(range(len(rows)))
    start = [0.0] * len(rows)
    for part in PARTS:
        widths = [row["breakdown_ms"].get(part, 0.0) for row in rows]
        axes.barh(places, widths, left=start, color=COLORS[part], height=0.72)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    for place, end, row in zip(places, start, rows, strict=True):
        axes.text(end, place, f"  {row['milliseconds']:,.0f} ms · {row['images_per_second']:,.4g} images/s",
                  va="center", fontsize=8)
    axes.set_yticks(places, [row["name"] for row in rows], fontsize=9)
    axes.set_xlim(0, max(start) * 1.3)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def main(arguments: Sequence[str]) -> None:
    """Print and draw a saved result."""
    if len(arguments) != 2:
        raise SettingsError("usage: step_report.py RESULT.json PICTURE")
    result = json.loads(Path(arguments[0]).read_text())
    print(markdown(result))
    plot(result["rows"], Path(arguments[1]))


if __name__ == "__main__":
    run_command(main)
