"""Plots as SVG text: lines, steps, dots, bands; linear, logarithmic and normal-deviate axes; a legend.

Owns how figures are drawn in reports and in files of their own. Pure functions of the data, the same text every time,
no library. A plot is 380 units wide, so that its letters stay readable at a phone's width; colours are CSS variables
(`--c0` … of PALETTE), so that the page around it decides about light and dark. A value that has no place on an axis
(None, NaN, 0 on a logarithmic one) interrupts its line. Proven by tests/eval/test_plots.py.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from statistics import NormalDist
from typing import Literal

WIDTH, PLOT_HEIGHT = 380.0, 168.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 26.0, 40.0
LETTER = 6.0  # mean width of a letter of 11 units; legends are laid out without a font at hand
LEGEND_LINE = 16.0

Scale = Literal["linear", "log", "deviate"]
# A scale's values are places on a straight line after this; normal deviates: Martin et al., "The DET curve", 1997.
STRAIGHTENED = {"linear": float, "log": math.log10, "deviate": NormalDist().inv_cdf}
DEVIATE_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999)

# Eight series, each 3:1 or more against its background; `v` are the versions of a set, from good to bad.
PALETTE = {
    "light": {
        "c0": "#2563c9", "c1": "#c2570c", "c2": "#0f7b5f", "c3": "#8b3fb8", "c4": "#c8336e", "c5": "#8a6d00",
        "c6": "#0a7a99", "c7": "#5f6672", "v0": "#4b3fa0", "v1": "#b8418e", "v2": "#d9731a", "v3": "#7a7a7a",
        "surface": "#ffffff", "ink": "#1b1f27", "muted": "#596172", "grid": "#e4e7ec", "axis": "#8b93a1",
    },
    "dark": {
        "c0": "#6aa5ff", "c1": "#f2995a", "c2": "#3ec5a0", "c3": "#c58cf0", "c4": "#f07fae", "c5": "#d9b84a",
        "c6": "#4dc4e6", "c7": "#a9b1bd", "v0": "#938af5", "v1": "#e272ba", "v2": "#f7b267", "v3": "#a5a5a5",
        "surface": "#1a1e26", "ink": "#e8ebf0", "muted": "#a4adbb", "grid": "#2d333e", "axis": "#6b7484",
    },
}
SERIES_COLORS = 8
VERSION_COLORS = 4

STYLE = """
.plot text { font: 11px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink) }
.plot .title { font-size: 13px; font-weight: 600 }
.plot .tick, .plot .label { fill: var(--muted) }
.plot .grid { stroke: var(--grid); stroke-width: 1 }
.plot .frame { stroke: var(--axis); stroke-width: 1; fill: none }
.plot .mark { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 3 }
.plot .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round }
.plot .band { stroke: none; opacity: .16 }
.plot .area { stroke: none; opacity: .2 }
.plot .dashed { stroke-dasharray: 5 4 }
""".strip()


@dataclass(frozen=True)
class Series:
    """One line of a plot: y over x, with a band from `low` to `high`.

    color: of PALETTE.  kind: "steps" take x as edges, one more than y.  filled: down to the axis.
    """

    name: str
    x: Sequence[float | None]
    y: Sequence[float | None]
    color: str = "c0"
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    kind: Literal["line", "steps", "dots"] = "line"
    dashed: bool = False
    filled: bool = False


@dataclass(frozen=True)
class Axis:
    """Where values of an axis lie: from `low` to `high` on `start` to `end` units."""

    low: float
    high: float
    start: float
    end: float
    scale: Scale = "linear"

    def place(self, value: float | None) -> float | None:
        """Units of a value; None where it has no place."""
        if value is None or not _has_place(value, self.scale):
            return None
        straight = STRAIGHTENED[self.scale]
        low, high = straight(self.low), straight(self.high)
        return self.start + (straight(value) - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values on the axis: 1, 2 or 5 times a power of ten, or powers of ten."""
        if self.scale == "deviate":
            return [tick for tick in DEVIATE_TICKS if self.low * (1 - 1e-9) <= tick <= self.high]
        if self.scale == "log":
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            every = math.ceil(len(powers) / 7)
            if len(powers) >= 2:
                return [10.0**power for power in powers if power % every == 0]
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
            return [tick for tick in fine if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def _has_place(value: float, scale: Scale) -> bool:
    return math.isfinite(value) and (scale == "linear" or (value > 0 and (scale == "log" or value < 1)))


def plot(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    *,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[float] = (),
    legend: bool | None = None,
) -> str:
    """One plot as an `<svg>` element.

    Args:
        series: what is drawn, first lowest.
        title: above it.
        x_label: below it, with the unit.
        y_label: beside it, with the unit.
        x_scale: of that axis; "deviate" is for shares between 0 and 1.
        y_scale: likewise.
        x_range: what the axis shows; None: what the data need. Lines are cut off there.
        y_range: likewise.
        marks: vertical lines at these x.
        legend: whether names are shown; None: when there are several.
    """
    has_dots = any(one.kind == "dots" for one in series)  # a line may begin at the frame, half a dot may not
    horizontal = _axis([one.x for one in series], x_range, x_scale, LEFT, WIDTH - RIGHT, tight=not has_dots)
    ys = [values for one in series for values in (one.y, one.low, one.high) if values is not None]
    if any(one.filled for one in series) and y_scale == "linear":
        ys.append([0.0])
    vertical = _axis(ys, y_range, y_scale, TOP + PLOT_HEIGHT, TOP, tight=y_range is not None)
    show_legend = len({one.name for one in series}) > 1 if legend is None else legend
    rows = _legend_rows(series) if show_legend else []
    height = TOP + PLOT_HEIGHT + BOTTOM + LEGEND_LINE * len(rows)
    size, inner = f"{_n(WIDTH)} {_n(height)}", (_n(WIDTH - LEFT - RIGHT + 4), _n(PLOT_HEIGHT + 4))
    parts = [
        f'<svg class="plot" role="img" viewBox="0 0 {size}" width="{_n(WIDTH)}" height="{_n(height)}">',
        f"<title>{escape(title)}</title>",
        f'<text class="title" x="2" y="14">{escape(_cut(title, int(WIDTH / (LETTER * 1.25))))}</text>',
        *_frame(horizontal, vertical, x_label, y_label),
        # An inner svg cuts off what leaves the axes, without a clip path, whose name would have to be unique. It is a
        # little larger, so that a line along the frame is whole.
        f'<svg x="{_n(LEFT - 2)}" y="{_n(TOP - 2)}" width="{inner[0]}" height="{inner[1]}" '
        f'viewBox="{_n(LEFT - 2)} {_n(TOP - 2)} {inner[0]} {inner[1]}">',
        *(_mark(horizontal.place(x)) for x in marks),
        *(piece for one in series for piece in _drawn(one, horizontal, vertical)),
        "</svg>",
        *_legend(rows, TOP + PLOT_HEIGHT + BOTTOM),
        "</svg>",
    ]
    return "".join(parts)


def _axis(
    values: Sequence[Sequence[float | None]], given: tuple[float, float] | None, scale: Scale,
    start: float, end: float, tight: bool,
) -> Axis:
    """An axis over all values that have a place on it; a little wider unless `tight`."""
    if given is not None:
        return Axis(*given, start, end, scale)
    usable = [value for some in values for value in some if value is not None and _has_place(value, scale)]
    low, high = (min(usable), max(usable)) if usable else (0.1, 0.9)
    if scale == "deviate":
        return Axis(low, high, start, end, scale) if low < high else Axis(low / 2, (1 + low) / 2, start, end, scale)
    if scale == "log":
        if high / low < 1.01:
            low, high = low / 2, high * 2
        return Axis(low, high, start, end, scale) if tight else Axis(low / 1.2, high * 1.2, start, end, scale)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = abs(low) / 2
        return Axis(low - room, high + room, start, end) if room else Axis(0.0, 1.0, start, end)
    room = 0.0 if tight else 0.05 * (high - low)
    # A figure that cannot be negative gets no negative axis.
    return Axis(0.0 if 0 <= low <= room else low - room, high + room, start, end)


def _frame(horizontal: Axis, vertical: Axis, x_label: str, y_label: str) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, TOP + PLOT_HEIGHT
    for tick in vertical.ticks():
        y = _n(vertical.place(tick))
        yield f'<line class="grid" x1="{_n(LEFT)}" x2="{_n(right)}" y1="{y}" y2="{y}"/>'
        yield f'<text class="tick y" x="{_n(LEFT - 6)}" y="{y}" dy="4" text-anchor="end">{tick_label(tick)}</text>'
    for tick in horizontal.ticks():
        x = _n(horizontal.place(tick))
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{_n(TOP)}" y2="{_n(bottom)}"/>'
        yield f'<text class="tick x" x="{x}" y="{_n(bottom + 15)}" text-anchor="middle">{tick_label(tick)}</text>'
    yield f'<path class="frame" d="M{_n(LEFT)} {_n(TOP)}V{_n(bottom)}H{_n(right)}"/>'
    middle, center = (LEFT + right) / 2, TOP + PLOT_HEIGHT / 2
    yield f'<text class="label" x="{_n(middle)}" y="{_n(bottom + 31)}" text-anchor="middle">{escape(x_label)}</text>'
    yield (f'<text class="label" x="11" y="{_n(center)}" text-anchor="middle" '
           f'transform="rotate(-90 11 {_n(center)})">{escape(y_label)}</text>')


def tick_label(value: float) -> str:
    """A round value, short: 0.05, 20, 20k, 1e-05 as 1e-5."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−" if value < 0 else "-", 1)
    if abs(value) >= 1e4:
        return f"{value / 1e3:.10g}k".replace("-", "−")
    return f"{value:.10g}".replace("-", "−")


def _mark(x: float | None) -> str:
    if x is None:
        return ""
    return f'<line class="mark" x1="{_n(x)}" x2="{_n(x)}" y1="{_n(TOP)}" y2="{_n(TOP + PLOT_HEIGHT)}"/>'


def _drawn(one: Series, horizontal: Axis, vertical: Axis) -> Iterator[str]:
    color, dash = f"var(--{one.color})", " dashed" if one.dashed else ""
    name = f"<title>{escape(one.name)}</title>"
    x = [horizontal.place(value) for value in one.x]
    y = [vertical.place(value) for value in one.y]
    if one.kind == "dots":
        dots = "".join(f"M{_n(a)} {_n(b)}h0" for a, b in zip(x, y, strict=True) if a is not None and b is not None)
        yield (f'<path class="dots" stroke="{color}" stroke-width="4" stroke-linecap="round" opacity=".6" fill="none" '
               f'd="{dots}">{name}</path>')
        return
    if one.kind == "steps":
        x = [edge for pair in pairwise(x) for edge in pair]
        y = [value for value in y for _ in range(2)]
    if one.low is not None and one.high is not None:
        yield f'<path class="band" fill="{color}" d="{_band(x, one.low, one.high, vertical)}"/>'
    runs = list(_runs(x, y))
    if one.filled:
        area = "".join(f"M{_n(run[0][0])} {_n(vertical.start)}L{_points(run)}L{_n(run[-1][0])} {_n(vertical.start)}Z"
                       for run in runs)
        yield f'<path class="area" fill="{color}" d="{area}"/>'
    lines = "".join(f"M{_points(run)}" if len(run) > 1 else f"M{_points(run)}h0" for run in runs)
    yield f'<path class="line{dash}" stroke="{color}" d="{lines}">{name}</path>'


def _band(
    x: Sequence[float | None], low: Sequence[float | None], high: Sequence[float | None], vertical: Axis
) -> str:
    """The outline of a band; what has no place because it is 0 (or 1) reaches the end of the axis."""

    def place(value: float | None) -> float | None:
        if value is None or vertical.scale == "linear" or 0 < value < 1:
            return vertical.place(value)
        return vertical.start if value <= 0 else vertical.place(value) or vertical.end

    lows, highs = [place(value) for value in low], [place(value) for value in high]
    pieces, run = [], []
    for a, below, above in [*zip(x, lows, highs, strict=True), (None, None, None)]:
        if a is not None and below is not None and above is not None:
            run.append((a, below, above))
        elif run:
            there, back = [(a, above) for a, _, above in run], [(a, below) for a, below, _ in reversed(run)]
            pieces.append(f"M{_points(there + back)}Z")
            run = []
    return "".join(pieces)


def _runs(x: Sequence[float | None], y: Sequence[float | None]) -> Iterator[list[tuple[float, float]]]:
    """Stretches of points without a gap."""
    run: list[tuple[float, float]] = []
    for a, b in zip(x, y, strict=True):
        if a is not None and b is not None:
            run.append((a, b))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_n(a)} {_n(b)}" for a, b in points)


def _legend_rows(series: Sequence[Series]) -> list[list[tuple[float, Series]]]:
    """Names in rows, each with its x; equal names stand once."""
    rows: list[list[tuple[float, Series]]] = []
    x, seen = WIDTH, set()
    for one in series:
        if one.name in seen:
            continue
        seen.add(one.name)
        width = 36 + LETTER * len(_cut(one.name, 52))
        if not rows or x + width > WIDTH - 4:
            rows.append([])
            x = 4.0
        rows[-1].append((x, one))
        x += width
    return rows


def _legend(rows: Sequence[Sequence[tuple[float, Series]]], top: float) -> Iterator[str]:
    for number, row in enumerate(rows):
        y = top + LEGEND_LINE * number + 8
        for x, one in row:
            stroke = f'stroke="var(--{one.color})" stroke-width="3" stroke-linecap="round"'
            if one.kind == "dots":
                yield f'<path {stroke.replace("3", "6", 1)} d="M{_n(x + 8)} {_n(y)}h0"/>'
            else:
                dash = ' stroke-dasharray="4 5"' if one.dashed else ""
                yield f'<path {stroke}{dash} d="M{_n(x)} {_n(y)}h16"/>'
            yield (f'<text class="key" x="{_n(x + 21)}" y="{_n(y + 4)}">'
                   f"{escape(_cut(one.name, 52))}<title>{escape(one.name)}</title></text>")


def _cut(text: str, letters: int) -> str:
    """The beginning of a long text; of names the end tells more, so the middle goes."""
    if len(text) <= letters:
        return text
    return text[: letters // 2] + "…" + text[len(text) - (letters - letters // 2 - 1) :]


def _n(value: float | None) -> str:
    """A coordinate, to a hundredth."""
    assert value is not None
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"


def thin(x: Sequence[float], y: Sequence[float | None], most: int) -> tuple[list[float], list[float | None], int]:
    """At most `most` points: means of consecutive ones, None left out. Returns x, y and how many a point stands for."""
    every = math.ceil(len(x) / most) if most else 1
    if every <= 1:
        return list(x), list(y), 1
    xs, ys = [], []
    for start in range(0, len(x), every):
        values = [value for value in y[start : start + every] if value is not None]
        xs.append(sum(x[start : start + every]) / len(x[start : start + every]))
        ys.append(sum(values) / len(values) if values else None)
    return xs, ys, every


def variables() -> str:
    """CSS: the palette's variables for light, for dark, and for a `data-theme` that overrides the reader's choice."""

    def block(theme: str) -> str:
        return "; ".join(f"--{name}: {color}" for name, color in PALETTE[theme].items())

    return (
        f":root {{ color-scheme: light dark; {block('light')} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {block('dark')} }} }}\n"
        f':root[data-theme="light"] {{ color-scheme: light; {block("light")} }}\n'
        f':root[data-theme="dark"] {{ color-scheme: dark; {block("dark")} }}'
    )


def sheet(panels: Sequence[str], columns: int) -> str:
    """Plots in rows of `columns` as one SVG file with its colours, for whoever opens it by itself."""
    heights = [float(panel.split('height="', 1)[1].split('"', 1)[0]) for panel in panels]
    placed, top = [], 8.0
    for start in range(0, len(panels), columns):
        for column, panel in enumerate(panels[start : start + columns]):
            placed.append(panel.replace("<svg ", f'<svg x="{_n(10 + column * (WIDTH + 14))}" y="{_n(top)}" ', 1))
        top += max(heights[start : start + columns]) + 12
    width = 10 + min(columns, max(len(panels), 1)) * (WIDTH + 14)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(top)}" '
        f'width="{_n(width)}" height="{_n(top)}"><style>{variables()}\n{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="var(--surface)"/>{"".join(placed)}</svg>\n'
    )
