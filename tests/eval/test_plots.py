"""eval/plots.py: what is drawn lies where the axes say, which are read back from the picture's own tick labels."""

import math
import re
import xml.etree.ElementTree as ET
from statistics import NormalDist

import pytest

from eval.plots import PALETTE, PLOT_HEIGHT, TOP, VERSION_COLORS, Axis, Series, plot, sheet, thin, tick_label, variables

STRAIGHT = {"linear": float, "log": math.log10, "deviate": NormalDist().inv_cdf}


def _number(label):
    label = label.replace("−", "-")
    return float(label[:-1]) * 1000 if label.endswith("k") else float(label)


def _reader(svg, axis, scale):
    """A function from units to values, fitted to the first and last tick; the ticks between must agree."""
    tree = ET.fromstring(svg)
    ticks = [(float(e.get(axis)), STRAIGHT[scale](_number(e.text))) for e in tree.iter("text")
             if e.get("class") == f"tick {axis}"]
    (first, one), (last, other) = ticks[0], ticks[-1]
    slope = (other - one) / (last - first)
    for place, value in ticks:
        assert value == pytest.approx(one + slope * (place - first), abs=0.02 * abs(other - one))
    return lambda place: one + slope * (place - first)


def _paths(svg, kind):
    return [e.get("d") for e in ET.fromstring(svg).iter("path") if kind in (e.get("class") or "").split()]


def _points(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


@pytest.mark.parametrize(("x_scale", "x"), [
    ("linear", [-3.0, 0.0, 2.5, 12.0]), ("log", [1e-6, 1e-4, 0.02, 1.0]), ("deviate", [0.001, 0.02, 0.3, 0.9]),
])  # fmt: skip
@pytest.mark.parametrize(("y_scale", "y"), [
    ("linear", [10.0, 35000.0, 20000.0, 0.0]), ("log", [3e-5, 0.2, 4.0, 100.0]), ("deviate", [0.9, 0.4, 0.05, 0.0004]),
])  # fmt: skip
def test_points_lie_where_the_axes_say(x_scale, x, y_scale, y):
    svg = plot([Series("a", x, y)], "title", "x", "y", x_scale=x_scale, y_scale=y_scale)
    across, up = _reader(svg, "x", x_scale), _reader(svg, "y", y_scale)
    (line,) = _paths(svg, "line")
    got = _points(line)
    assert len(got) == len(x)
    for (px, py), value_x, value_y in zip(got, x, y, strict=True):
        assert across(px) == pytest.approx(STRAIGHT[x_scale](value_x), abs=0.02)
        span = abs(up(TOP) - up(TOP + PLOT_HEIGHT))
        assert up(py) == pytest.approx(STRAIGHT[y_scale](value_y), abs=0.001 * span)


def test_a_band_surrounds_its_line_and_reaches_the_axis_where_it_is_0():
    one = Series("a", [1.0, 2.0, 3.0], [0.1, 0.2, 0.5], low=[0.0, 0.1, 0.4], high=[0.2, 0.4, 0.6])
    svg = plot([one], "t", "x", "y", y_scale="log")
    up = _reader(svg, "y", "log")
    (band,) = _paths(svg, "band")
    values = [up(y) for _, y in _points(band)]
    assert [10**value for value in values[:3]] == pytest.approx([0.2, 0.4, 0.6], rel=0.01)
    assert [10**value for value in values[3:5]] == pytest.approx([0.4, 0.1], rel=0.01)
    assert _points(band)[5][1] == TOP + PLOT_HEIGHT


def test_what_has_no_place_interrupts_the_line():
    svg = plot([Series("a", [0, 1, 2, 3, 4, 5], [1.0, 2.0, None, float("nan"), 4.0, 5.0])], "t", "x", "y")
    (line,) = _paths(svg, "line")
    assert line.count("M") == 2
    assert len(_points(line)) == 4
    svg = plot([Series("a", [0.0, 0.1, 1.0], [1.0, 2.0, 3.0])], "t", "x", "y", x_scale="log")
    assert len(_points(_paths(svg, "line")[0])) == 2


def test_steps_run_from_edge_to_edge_and_areas_stand_on_the_axis():
    svg = plot([Series("a", [0.0, 1.0, 2.0], [3.0, 5.0], kind="steps", filled=True)], "t", "x", "y")
    up, across = _reader(svg, "y", "linear"), _reader(svg, "x", "linear")
    points = [(round(across(x), 2), round(up(y), 2)) for x, y in _points(_paths(svg, "line")[0])]
    assert points == [(0, 3), (1, 3), (1, 5), (2, 5)]
    assert up(TOP + PLOT_HEIGHT) == pytest.approx(0, abs=0.02)
    assert _points(_paths(svg, "area")[0])[0][1] == TOP + PLOT_HEIGHT


def test_dots():
    svg = plot([Series("a", [1.0, 2.0, None], [1.0, 4.0, 2.0], kind="dots")], "t", "x", "y")
    assert len(_points(_paths(svg, "dots")[0])) == 2


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0], [2.0]), ([1.0, 2.0], [0.0, 0.0]), ([3.0], [None])])
@pytest.mark.parametrize("scale", ["linear", "log", "deviate"])
def test_hardly_any_data_still_draws(x, y, scale):
    svg = plot([Series("a", x, y)], "t", "x", "y", x_scale=scale, y_scale=scale)
    assert "nan" not in svg
    ET.fromstring(svg)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a & b", '"quoted"', "ends \\ with </svg>"])
def test_text_stays_text(text):
    svg = plot([Series(text, [1.0, 2.0], [1.0, 2.0])], text, text, text, legend=True)
    tree = ET.fromstring(svg)
    assert {e.tag for e in tree.iter()} == {"svg", "title", "text", "line", "path"}
    assert text in [e.text for e in tree.iter("text")]


def test_legend_names_each_series_once_inside_the_picture():
    series = [Series(f"a rather long name of a model, number {n}", [0, 1], [0, n], f"c{n % 8}") for n in range(6)]
    svg = plot([*series, Series(series[0].name, [0, 1], [1, 1], dashed=True)], "t", "x", "y")
    tree = ET.fromstring(svg)
    keys = [e for e in tree.iter("text") if e.get("class") == "key"]
    assert [e.text for e in keys] == [one.name for one in series]
    assert max(float(e.get("y")) for e in keys) < float(tree.get("height"))
    assert not [e for e in ET.fromstring(plot(series[:1], "t", "x", "y")).iter("text") if e.get("class") == "key"]


def test_same_data_same_text():
    one = Series("a", [0.1, 0.2], [1 / 3, 2 / 3], low=[0, 0.5], high=[0.5, 1])
    assert plot([one], "t", "x", "y") == plot([one], "t", "x", "y")


def _contrast(one, other):
    def luminance(color):
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", PALETTE)
def test_colours_can_be_told_from_their_background(theme):
    """WCAG 2.1: 4.5:1 for text, 3:1 for graphics."""
    palette = PALETTE[theme]
    for name in ("ink", "muted"):
        assert _contrast(palette[name], palette["surface"]) >= 4.5, name
    for name in [f"c{n}" for n in range(8)] + [f"v{n}" for n in range(VERSION_COLORS)]:
        assert _contrast(palette[name], palette["surface"]) >= 3, name
    assert set(palette) == set(PALETTE["light"])
    assert all(f"--{name}: {color}" in variables() for name, color in palette.items())


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (0.05, "0.05"), (-2, "−2"), (20000, "20k"), (1e-5, "1e-5"), (2e6, "2e6"), (0.3, "0.3"), (-2e6, "−2e6"),
])  # fmt: skip
def test_tick_labels(value, text):
    assert tick_label(value) == text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 17), (0.231, 0.239), (0, 123456), (1e-9, 3e-9)])
def test_ticks_are_round_and_a_handful(low, high):
    ticks = Axis(low, high, 0, 100).ticks()
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    step = ticks[1] - ticks[0]
    assert round(step / 10 ** math.floor(math.log10(step * 1.0001)), 6) in (1, 2, 5)


def test_thin_keeps_the_mean_and_leaves_out_what_is_not_there():
    x, y, every = thin(list(range(10)), [1.0, 3.0, None, 5.0, None, None, 2.0, 2.0, 8.0, 9.0], 5)
    assert every == 2
    assert x == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert y == [2.0, 5.0, None, 2.0, 8.5]
    assert thin([1.0, 2.0], [3.0, None], 5) == ([1.0, 2.0], [3.0, None], 1)


def test_a_sheet_is_one_file_with_its_own_colours():
    panel = plot([Series("a", [0, 1], [0, 1])], "t", "x", "y")
    tree = ET.fromstring(sheet([panel] * 5, 2))
    inner = [e for e in tree if e.tag.endswith("svg")]
    assert len(inner) == 5
    corners = {(float(e.get("x")), float(e.get("y"))) for e in inner}
    assert len(corners) == 5
    assert max(float(e.get("x")) + float(e.get("width")) for e in inner) <= float(tree.get("width"))
    assert max(float(e.get("y")) + float(e.get("height")) for e in inner) <= float(tree.get("height"))
