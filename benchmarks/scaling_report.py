"""The result of benchmarks/scaling.py as tables and as a picture. Proven by tests/benchmarks/test_scaling.py."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prettytable import PrettyTable

from benchmarks.scaling_model import GB

COLORS = ["#2a7f62", "#b0563b", "#4d6fa8", "#8a6fb0"]
LINES = ["-", "--", ":", "-."]


def report(result: dict[str, Any], room: Sequence[float]) -> None:
    """Print the tables."""
    if "measured" in result:
        print(exchange_table(result["measured"]["exchange"]))
        times = result["measured"]["times"]
        seconds = "seconds" if result["device"] == "cuda" else "CPU seconds"
        print(fit_table(f"MEASURED {seconds} a step and the formula's, on {result['device']}", times, 1e3, "ms"))
        room_taken = result["measured"]["backbone_memory"]
        print(fit_table("MEASURED peak memory and the formula's", room_taken, 1 / 2**20, "MiB"))
        print(state_table(result["measured"]["head_memory"]))
        print(error_table(times + room_taken))
    constants = ", ".join(f"{name} {value:g}" for name, value in result["hardware"].items())
    print(modelled_table(result["modelled"], room))
    print(f"modelled with {constants}; no GPU was measured for this table")


def exchange_table(rows: Sequence[dict[str, Any]]) -> PrettyTable:
    """Counted exchanges beside the formulas'."""
    table = PrettyTable(["ranks", "C", "B", "rate", "inject", "calls", "bytes", "by formula", "of them gradients"],
                        align="r")
    table.title = "MEASURED exchanges of a whole step, whole tensors"
    for row in rows:
        calls, num_bytes = (sum(pair[n] for pair in row["counted"].values()) for n in (0, 1))
        told_calls, told = (sum(pair[n] for pair in row["formulas"].values()) for n in (0, 1))
        same = "equal" if row["exact"] else f"{told_calls} calls, {told:,}"
        gradients = row["counted"].get("sum of gradients", (0, 0))[1]
        inject = "qaface" if row["memory"] else "none"
        table.add_row([row["ranks"], f"{row['classes']:,}", row["batch"], row["rate"], inject, calls,
                       f"{num_bytes:,}", same, f"{gradients:,}"])
    return table


def fit_table(title: str, rows: Sequence[dict[str, Any]], unit: float, name: str) -> PrettyTable:
    """Measured figures, the model's, and its error; those that the fit had not seen are marked."""
    columns = ["what", "ranks", "C", "B", "rate", "inject", name, f"model {name}", "error", "fitted"]
    table = PrettyTable(columns, align="r")
    table.title = title
    for row in rows:
        classes = f"{row['classes']:,}" if "classes" in row else row["backbone"]
        inject = "qaface" if row.get("inject") else ""
        table.add_row([row["what"], row.get("ranks", 1), classes, row["batch"], row.get("rate", ""), inject,
                       f"{row['measured'] * unit:,.1f}", f"{row['model'] * unit:,.1f}", f"{row['error']:+.1%}",
                       "" if row["held_out"] else "yes"])
    return table


def state_table(rows: Sequence[dict[str, Any]]) -> PrettyTable:
    """The head's state beside its formula, and what a step took above it."""
    columns = ["C", "B", "rate", "inject", "state MiB", "by formula", "a class, B", "peak above MiB"]
    table = PrettyTable(columns, align="r")
    table.title = "MEASURED memory of the head"
    for row in rows:
        peak = "no room" if row["peak"] is None else f"{row['peak'] / 2**20:,.0f}"
        table.add_row([f"{row['classes']:,}", row["batch"], row["rate"], "qaface" if row["inject"] else "none",
                       f"{row['state'] / 2**20:,.1f}", f"{row['formula'] / 2**20:,.1f}",
                       f"{row['state'] / row['classes']:,.0f}", peak])
    return table


def error_table(rows: Sequence[dict[str, Any]]) -> PrettyTable:
    """How far each formula was off where its fit had not seen the figures."""
    table = PrettyTable(["what", "constants", "fitted on", "asked for", "median error", "worst"], align="r")
    table.align["what"] = "l"
    table.title = "errors on what the fit had not seen; the modelled formula is that of the table of GPUs"
    for what in dict.fromkeys(row["what"] for row in rows):
        mine = [row for row in rows if row["what"] == what]
        found = [abs(row["error"]) for row in mine if row["held_out"]]
        table.add_row([what, len(mine[0]["constants"]), len(mine) - len(found), len(found),
                       f"{statistics.median(found):.1%}", f"{max(found):.1%}"])
    return table


def modelled_table(rows: Sequence[dict[str, Any]], room: Sequence[float]) -> PrettyTable:
    """The model's rows for GPUs."""
    fits = [f"in {size:g} GB" for size in room]
    table = PrettyTable(["backbone", "C", "GPUs", "B", "rate", "inject", "GB a GPU", "of it classes", *fits, "MB sent",
                         "exchange ms", "head ms", "step ms", "head share", "img/s"], align="r")
    table.title = "MODELLED on GPUs"
    for row in rows:
        table.add_row([
            row["backbone"], f"{row['classes']:,}", row["ranks"], row["batch"], row["rate"], row["inject"],
            f"{row['bytes'] / GB:,.1f}", f"{row['memory']['classes'] / GB:,.1f}",
            *("yes" if row["bytes"] < size * GB else "no" for size in room), f"{row['moved'] / 1e6:,.0f}",
            f"{row['seconds']['exchange'] * 1e3:,.2f}", f"{row['seconds']['head'] * 1e3:,.1f}",
            f"{row['step'] * 1e3:,.1f}", f"{row['head_share']:.0%}", f"{row['images_per_second']:,.0f}",
        ])
    return table


def plot(result: dict[str, Any], path: Path, room: Sequence[float]) -> None:
    """Memory of a GPU and the head's share over the number of classes, both modelled."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    rows = result["modelled"]
    gpus = list(dict.fromkeys(row["ranks"] for row in rows))
    first, rates = rows[0]["backbone"], list(dict.fromkeys(row["rate"] for row in rows))
    injections = list(dict.fromkeys(row["inject"] for row in rows))
    for color, number in zip(COLORS, gpus, strict=False):
        for line, inject in zip(LINES, injections, strict=False):
            draw(left, rows, "bytes", 1 / GB, f"{number} GPU{'s' * (number > 1)}, {inject}", color, line,
                 ranks=number, inject=inject, rate=rates[0], backbone=first)
    for size in room:
        left.axhline(size, color="black", linewidth=0.8, zorder=0)
        left.annotate(f"{size:g} GB", (1, size), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                      fontsize=8)
    left.set_yscale("log")
    left.set_title(f"modelled memory of a GPU, GB: {first}, rate {rates[0]:g}", fontsize=10)
    for color, name in zip(COLORS, dict.fromkeys(row["backbone"] for row in rows), strict=False):
        for line, rate in zip(LINES, rates, strict=False):
            draw(right, rows, "head_share", 100, f"{name}, rate {rate:g}", color, line,
                 ranks=gpus[-1], inject=injections[0], rate=rate, backbone=name)
    right.set_ylim(0, 100)
    right.set_title(f"modelled share of the head in a step, %: {gpus[-1]} GPUs, {injections[0]}", fontsize=10)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("classes")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def draw(
    axes: Any, rows: Sequence[dict[str, Any]], key: str, unit: float, label: str, color: str, line: str, **where: Any
) -> None:
    """One line over the classes, of the rows with these values."""
    chosen = sorted((row["classes"], row[key] * unit) for row in rows if all(row[k] == v for k, v in where.items()))
    axes.plot(*zip(*chosen, strict=True), label=label, color=color, linestyle=line, marker="o", markersize=3)
