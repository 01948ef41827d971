"""ROC curves as a picture: in a file, `--plot` of the evaluation commands, or as pixels, for TensorBoard.

Owns that one picture: TAR over FAR on a logarithmic axis, and beside it, both axes logarithmic, the share of mates that
is refused, which shows what is left to gain. Bands are 95 %. Reports draw with eval/plots.py instead. Proven by
tests/eval/test_roc_plot.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recognition.errors import DataError, SettingsError

ENDINGS = (".png", ".svg", ".pdf")


def check_plot_path(path: str | Path) -> None:
    """SettingsError for a name whose ending is none of ENDINGS: said before hours of embedding, not after."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise SettingsError(f"{path}: expected a name ending in {', '.join(ENDINGS)}")


def write_roc_plot(path: str | Path, curves: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Draw curves into a file, a PNG, SVG or PDF by its ending.

    Args:
        path: of the picture.
        curves: name → what `metrics.roc_summary` returns; drawn in this order.
        title: above both panels.

    Raises:
        SettingsError: another ending. DataError: the file cannot be written.
    """
    check_plot_path(path)
    figure = _drawn(curves, title)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def roc_picture(curves: Mapping[str, Mapping[str, Any]], title: str) -> np.ndarray:
    """The same as pixels, uint8 RGB [height, width, 3]; curves without "low" and "high" have no band."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(_drawn(curves, title))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _drawn(curves: Mapping[str, Mapping[str, Any]], title: str) -> Any:
    from matplotlib.figure import Figure  # not above: only who wants a picture waits for it

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(title)
    accepted, refused = figure.subplots(1, 2)
    any_refused = False  # else matplotlib warns of an empty log axis
    for name, curve in curves.items():
        rows = [place for place, far in enumerate(curve["far"]) if 0 < far <= 1]
        far, tar = ([curve[key][row] for row in rows] for key in ("far", "tar"))
        any_refused |= any(rate < 1 for rate in tar)
        (line,) = accepted.plot(far, tar, label=name)
        refused.plot(far, [_nothing_is_a_gap(1 - rate) for rate in tar], color=line.get_color(), label=name)
        if "low" in curve:
            low, high = ([curve[key][row] for row in rows] for key in ("low", "high"))
            accepted.fill_between(far, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
            ends = [[1 - rate for rate in edge] for edge in (high, low)]
            refused.fill_between(far, *ends, color=line.get_color(), alpha=0.18, linewidth=0)
    accepted.set(xscale="log", ylabel="true-accept rate")
    refused.set(xscale="log", ylabel="1 − true-accept rate")
    if any_refused:
        refused.set_yscale("log")
    for panel in (accepted, refused):
        panel.set_xlabel("false-accept rate")
        panel.grid(alpha=0.3)
        if len(curves) > 1:
            panel.legend()
    return figure


def _nothing_is_a_gap(rate: float) -> float:
    """0 has no place on a logarithmic axis."""
    return rate if rate > 0 else float("nan")
