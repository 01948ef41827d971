"""Every margin can be chosen and set by name from a config; a new one is added in one place, as docs/heads.md shows."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from recognition import config as configuration
from recognition.config import load
from recognition.errors import SettingsError
from recognition.heads.margins import MARGINS, Batch, Margin, target_logit

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "configs" / "wf4m_r100.py"
DEFAULTS = {
    "normface": {"s": 64}, "sphereface": {"s": 64, "m": 1.7, "straight_through": True}, "cosface": {"s": 64, "m": 0.4},
    "arcface": {"s": 64, "m": 0.5}, "combined": {"s": 64, "m1": 1, "m2": 0.3, "m3": 0.2},
    "magface": {"s": 64, "m_low": 0.45, "m_high": 0.45 + 0.0035 * 100, "norm_low": 10, "norm_high": 110, "lambda_g": 35,
                "easy": True},
    "adaface": {"s": 64, "m": 0.4, "h": 0.333, "history": 0.99},
    "curricularface": {"s": 64, "m": 0.5, "history": 0.99}, "mvsoftmax": {"s": 32, "m": 0.35, "t": 0.2, "easy": True},
    "adacos": {"s": 64, "dynamic": True}, "subcenter": {"s": 64, "m": 0.5, "centers_per_class": 3},
    "circle": {"s": 256, "m": 0.25}, "sphereface2": {"s": 40, "m": 0.4, "t": 3, "alpha": 0.7, "l_w": 50},
    "broadface": {"s": 64, "m": 0.5, "queue": 32_768},
    "elasticface": {"s": 64, "kind": "arc", "plus": False, "mean": None, "deviation": None},
    "uniface": {"s": 64, "m": 0.4, "balance": 1},
}
TEXTS = {"bool": ("true", True), "int": ("7", 7), "float": ("0.75", 0.75), "float | None": ("0.75", 0.75)}


@pytest.fixture(scope="module")
def example() -> type[Margin]:
    """The margin that docs/heads.md defines, by running that page's code."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "heads.md").read_text(), re.DOTALL)
    namespace = {"__name__": "example"}
    exec(code[1], namespace)
    return namespace["LiArcFace"]


def test_defaults_are_those_of_the_sources():
    assert DEFAULTS.keys() == MARGINS.keys()
    for name, settings in DEFAULTS.items():
        expected = {"straight_through": False} | settings
        assert {setting: getattr(MARGINS[name](), setting) for setting in expected} == expected


@pytest.mark.parametrize("name", MARGINS)
def test_all_settings_of_a_margin_are_set_by_name(name):
    overrides, expected = [f"head.margin={name}", "data.root=x", "head.inject=none"], {}
    inside = {"queue": ("1000", 1000), "alpha": ("0.3", 0.3), "kind": ("cos", "cos"), "t": ("1.5", 1.5),
              "norm_low": ("3.5", 3.5), "norm_high": ("60", 60.0)}
    for field in dataclasses.fields(MARGINS[name]):
        kind = getattr(field.type, "__name__", str(field.type))
        text, value = inside.get(field.name) or TEXTS[kind]
        overrides.append(f"head.margin.{field.name}={text}")
        expected[field.name] = value
    margin = load(CONFIG, overrides).head.margin
    assert type(margin) is MARGINS[name]
    assert vars(margin) == expected
    assert MARGINS[name]() == load(CONFIG, overrides[:3]).head.margin


@pytest.mark.parametrize(("override", "expected"), [
    (["subcenter", "centers_per_class=0"], "head.margin.centers_per_class: 0; expected 1 to 64"),
    (["sphereface2", "alpha=1"], "head.margin.alpha: 1.0; expected"),
    (["mvsoftmax", "t=-1"], "head.margin.t: -1.0; expected 0 to 10"),
    (["magface", "norm_low=200"], "head.margin.norm_low: 200.0; expected below norm_high"),
    (["elasticface", "deviation=nan"], "head.margin.deviation: nan; expected a finite number"),
    (["elasticface", "kind=sin"], "'sin' is not one of arc, cos"),
    (["curricularface", "needs_targets=true"], "head.margin.needs_targets: no such setting"),
])
def test_a_value_that_cannot_be_is_named(override, expected):
    with pytest.raises(SettingsError, match=re.escape(expected)):
        load(CONFIG, ["data.root=x", "head.inject=none", f"head.margin={override[0]}", f"head.margin.{override[1]}"])


def test_the_documented_example_is_a_margin(example):
    """Its target, its negatives and their slopes, against the formula of its paper."""
    c = np.linspace(-0.99, 0.99, 101)
    batch = Batch(torch.tensor(c), torch.ones(101).double(), None, {})
    logit, slope, by_norm = target_logit(batch.cosine, example(s=32.0), batch)
    negative, negative_slope = example(s=32.0).negative(batch.cosine[None], batch)
    np.testing.assert_allclose(logit.numpy(), 32 * (math.pi - 2 * (np.arccos(c) + 0.45)) / math.pi, atol=1e-10)
    np.testing.assert_allclose(negative[0].numpy(), 32 * (math.pi - 2 * np.arccos(c)) / math.pi, atol=1e-10)
    for got in (slope, negative_slope[0]):
        np.testing.assert_allclose(got.numpy(), 64 / math.pi / np.sqrt(1 - c * c), rtol=1e-10)
    assert by_norm is None
    assert not example().plain_negatives
    assert example().negative(torch.tensor([[1.0, -1.0]]), batch)[0].max() == example().largest_negative()


def test_a_line_in_the_dict_makes_it_a_setting(example, monkeypatch):
    variants = {**MARGINS, "liarcface": example}
    monkeypatch.setitem(configuration.VARIANTS, Margin, variants)
    settings = ["data.root=x", "head.inject=none", "head.margin=liarcface", "head.margin.m=0.3"]
    assert load(CONFIG, settings).head.margin == example(m=0.3)
    with pytest.raises(SettingsError, match=re.escape("head.margin.m: 2.5; expected 0 to 1")):
        load(CONFIG, ["data.root=x", "head.margin=liarcface", "head.margin.m=2.5"])
