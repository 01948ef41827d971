"""Margins against their formulas in float64, derivatives against differences."""

import math

import numpy as np
import pytest
import torch

from recognition.heads.margins import (
    SINE_FLOOR,
    ArcFace,
    Combined,
    CosFace,
    Margin,
    NormFace,
    target_logit,
)

GRID = torch.linspace(-0.9995, 0.9995, 2001)


def _arcface(theta: float, m: float) -> float:
    return math.cos(theta + m) if theta + m < math.pi else math.cos(theta) - m * math.sin(m)


def _reference(margin: Margin, c: float) -> float:
    theta = math.acos(c)
    if isinstance(margin, ArcFace):
        return margin.s * _arcface(theta, margin.m)
    if isinstance(margin, CosFace):
        return margin.s * (c - margin.m)
    if isinstance(margin, Combined):
        if margin.m1 == 1:
            return margin.s * (_arcface(theta, margin.m2) - margin.m3)
        phase = margin.m1 * theta + margin.m2
        k = math.floor(phase / math.pi)
        return margin.s * ((-1) ** k * math.cos(phase) - 2 * k - margin.m3)
    return margin.s * c


MARGINS = [
    NormFace(),
    ArcFace(),
    ArcFace(s=32, m=0.3),
    CosFace(),
    Combined(),
    Combined(m1=0.9, m2=0.4, m3=0.15),
    Combined(m1=1.35, m2=0.5, m3=0.0),
]


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_logit_is_the_formula(margin):
    logit, _ = target_logit(GRID, margin)
    expected = [_reference(margin, c) for c in GRID.double().tolist()]
    np.testing.assert_allclose(logit.double().numpy(), expected, atol=2e-5 * margin.s)


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_slope_is_the_derivative_of_the_formula(margin):
    _, slope = target_logit(GRID, margin)
    for c, got in list(zip(GRID.double().tolist(), slope.tolist(), strict=True))[::20]:
        step = 1e-7
        low, high = _reference(margin, c - step), _reference(margin, c + step)
        if abs(high - low) / (2 * step) > 1e4:
            continue  # astride ArcFace's jump at θ = π − m
        assert got == pytest.approx((high - low) / (2 * step), rel=2e-3, abs=1e-3 * margin.s)


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_slope_stays_bounded_at_the_ends(margin):
    ends = torch.tensor([-1.0000001, -1.0, 1.0, 1.0000001])
    logit, slope = target_logit(ends, margin)
    assert torch.isfinite(logit).all()
    assert slope.abs().max() <= margin.s * 2.5 / SINE_FLOOR


def test_straight_through_passes_the_gradient_unchanged():
    _, slope = target_logit(GRID, ArcFace(straight_through=True))
    assert (slope == 64.0).all()
    _, slope = target_logit(GRID, ArcFace())
    assert (slope != 64.0).any()


def test_combined_honours_all_three_margins():
    c = torch.tensor([0.3])
    alone = [target_logit(c, Combined(m1=a, m2=b, m3=d))[0].item() for a, b, d in
             ((1.0, 0.0, 0.0), (1.2, 0.0, 0.0), (1.0, 0.2, 0.0), (1.0, 0.0, 0.2), (1.2, 0.2, 0.2))]
    assert len(set(alone)) == 5
    assert min(alone) == alone[-1]
