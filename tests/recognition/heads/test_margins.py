"""Every margin's target and negatives against its formula written again in float64, slopes against differences."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recognition.heads.margins import (
    MARGINS,
    SINE_FLOOR,
    AdaCos,
    AdaFace,
    ArcFace,
    Batch,
    BroadFace,
    Circle,
    Combined,
    CosFace,
    CurricularFace,
    ElasticFace,
    MagFace,
    Margin,
    MVSoftmax,
    NormFace,
    SphereFace,
    SphereFace2,
    SubCenter,
    UniFace,
    target_logit,
)

SAMPLES, OTHERS = 401, 203
STATE = {"mean": 21.5, "deviation": 9.0, "t": 0.31, "s": 23.7, "bias": -7.25}
CASES: list[tuple[str, Margin]] = [
    ("normface", NormFace()),
    ("sphereface", SphereFace(straight_through=False)),
    ("sphereface", SphereFace(s=30, m=3.0, straight_through=False)),
    ("cosface", CosFace()),
    ("arcface", ArcFace()),
    ("arcface", ArcFace(s=32, m=0.3)),
    ("combined", Combined()),
    ("combined", Combined(m1=0.9, m2=0.4, m3=0.15)),
    ("combined", Combined(m1=1.35, m2=0.5, m3=0.0)),
    ("magface", MagFace()),
    ("magface", MagFace(easy=False, m_low=0.3, m_high=1.1, norm_low=5.0, norm_high=60.0, lambda_g=20.0)),
    ("adaface", AdaFace()),
    ("adaface", AdaFace(s=48, m=0.3, h=1.0)),
    ("curricularface", CurricularFace()),
    ("curricularface", CurricularFace(s=20, m=0.4)),
    ("mvsoftmax", MVSoftmax()),
    ("mvsoftmax", MVSoftmax(s=64, m=0.2, t=0.4, easy=False)),
    ("adacos", AdaCos()),
    ("adacos", AdaCos(dynamic=False)),
    ("subcenter", SubCenter()),
    ("circle", Circle()),
    ("circle", Circle(s=80, m=0.4)),
    ("sphereface2", SphereFace2()),
    ("sphereface2", SphereFace2(s=25, m=0.3, t=2.5)),
    ("broadface", BroadFace()),
    ("elasticface", ElasticFace()),
    ("elasticface", ElasticFace(kind="cos")),
    ("elasticface", ElasticFace(plus=True)),
    ("elasticface", ElasticFace(kind="cos", plus=True, mean=0.3, deviation=0.1)),
    ("uniface", UniFace()),
]
IDS = [f"{name}-{number}" for number, (name, _) in enumerate(CASES)]


def make_batch(dtype: torch.dtype, size: int = SAMPLES) -> Batch:
    """Target cosines over all of [−1, 1], lengths below, in and above all limits, draws, and a state that has moved."""
    numbers = np.random.default_rng(5)
    cosine = numbers.permutation(np.linspace(-0.9995, 0.9995, size))
    norm = numbers.uniform(1, 140, size)
    state = {name: torch.tensor(value, dtype=dtype) for name, value in STATE.items()}
    return Batch(*(torch.tensor(x, dtype=dtype) for x in (cosine, norm, numbers.standard_normal(size))), state)


def _arc(c: float, m: float) -> float:
    theta = math.acos(c)
    return math.cos(theta + m) if theta + m < math.pi else c - m * math.sin(m)


def _falling(phase: float) -> float:
    k = math.floor(phase / math.pi)
    return (-1) ** k * math.cos(phase) - 2 * k


def _elastic_margins(v: Margin, batch: SimpleNamespace) -> np.ndarray:
    """Mean and deviation of the paper where none are given; with plus the i-th smallest cosine, the i-th largest m."""
    mean, deviation = {("arc", False): (0.5, 0.05), ("cos", False): (0.35, 0.05), ("arc", True): (0.5, 0.0175),
                       ("cos", True): (0.35, 0.02)}[v.kind, v.plus]
    mean = mean if v.mean is None else v.mean
    m = mean + (deviation if v.deviation is None else v.deviation) * batch.normal
    if v.plus:
        place = np.empty(len(m), int)
        place[np.argsort(batch.cosine)] = np.arange(len(m))
        m = np.sort(m)[::-1][place]
    return m


def expected_target(name: str, v: Margin, c: float, norm: float, i: int, batch: SimpleNamespace) -> float:
    """Logit of sample i of the batch, were its cosine c and its length norm. No gradient parts take those as well."""
    if name == "normface":
        return v.s * c
    if name == "sphereface":
        return v.s * _falling(v.m * math.acos(c))
    if name == "cosface":
        return v.s * (c - v.m)
    if name in ("arcface", "curricularface", "subcenter", "broadface"):
        return v.s * _arc(c, v.m)
    if name == "combined":
        angular = _arc(c, v.m2) if v.m1 == 1 else _falling(v.m1 * math.acos(c) + v.m2)
        return v.s * (angular - v.m3)
    if name == "magface":
        a = min(max(norm, v.norm_low), v.norm_high)
        m = v.m_low + (v.m_high - v.m_low) / (v.norm_high - v.norm_low) * (a - v.norm_low)
        if v.easy:
            return v.s * (math.cos(math.acos(c) + m) if c > 0 else c)
        return v.s * _arc(c, m)
    if name == "adaface":
        z = v.h * (min(max(norm, 1e-3), 100) - batch.state["mean"]) / (batch.state["deviation"] + 1e-3)
        z = min(max(z, -1), 1)
        return v.s * (math.cos(min(max(math.acos(c) - v.m * z, 1e-3), math.pi - 1e-3)) - (v.m + v.m * z))
    if name == "mvsoftmax":
        return v.s * (c - v.m if c > 0 or not v.easy else c)
    if name == "adacos":
        return batch.state["s"] * c
    if name == "circle":
        return v.s * max(1 + v.m - c, 0) * (c - (1 - v.m))
    if name == "sphereface2":
        return v.s * (2 * ((c + 1) / 2) ** v.t - 1 - v.m) + batch.state["bias"]
    if name == "elasticface":
        m = _elastic_margins(v, batch)[i]
        return v.s * (_arc(c, m) if v.kind == "arc" else c - m)
    assert name == "uniface"
    return v.s * (c - v.m) - batch.state["bias"]


def expected_negative(name: str, v: Margin, c: float, target: float, state: dict[str, float]) -> tuple[float, float]:
    """Logit of another class with cosine c, of a sample whose target cosine is `target`, and the slope by c."""
    if name == "curricularface" and c > math.cos(math.acos(target) + v.m):
        return v.s * c * (state["t"] + c), v.s * (state["t"] + 2 * c)
    if name == "mvsoftmax" and c > target - v.m:
        return v.s * ((1 + v.t) * c + v.t), v.s * (1 + v.t)
    if name == "adacos":
        return state["s"] * c, state["s"]
    if name == "circle":
        weight = max(c + v.m, 0)
        return v.s * weight * (c - v.m), v.s * weight
    if name == "sphereface2":
        return v.s * (2 * ((c + 1) / 2) ** v.t - 1 + v.m) + state["bias"], v.s * v.t * ((c + 1) / 2) ** (v.t - 1)
    if name == "uniface":
        return v.s * c - state["bias"], v.s
    return v.s * c, v.s


def _arrays(batch: Batch) -> SimpleNamespace:
    fields = {"cosine": batch.cosine, "norm": batch.norm, "normal": batch.normal}
    state = {name: value.item() for name, value in batch.state.items()}
    return SimpleNamespace(**{name: value.double().numpy() for name, value in fields.items()}, state=state)


def test_every_margin_has_a_case():
    assert {name for name, _ in CASES} == set(MARGINS)
    assert all(type(margin) is MARGINS[name] for name, margin in CASES)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize(("name", "margin"), CASES, ids=IDS)
def test_target_is_the_formula(name, margin, dtype, tolerance):
    batch = make_batch(dtype)
    arrays = _arrays(batch)
    logit, slope, _ = target_logit(batch.cosine, margin, batch)
    assert logit.dtype == slope.dtype == dtype
    expected = [expected_target(name, margin, c, norm, i, arrays)
                for i, (c, norm) in enumerate(zip(arrays.cosine, arrays.norm, strict=True))]
    np.testing.assert_allclose(logit.numpy(), expected, rtol=0, atol=tolerance * margin.s)


@pytest.mark.parametrize(("name", "margin"), CASES, ids=IDS)
def test_slopes_are_the_derivatives_of_the_formula(name, margin):
    """Central differences; where the two sides differ a formula has a kink, which must be rare."""
    batch = make_batch(torch.float64)
    arrays = _arrays(batch)
    _, by_cosine, by_norm = target_logit(batch.cosine, margin, batch)
    assert (by_norm is not None) == (name == "magface")
    kinks, h = 0, 1e-6
    for i, (c, norm) in enumerate(zip(arrays.cosine, arrays.norm, strict=True)):
        if name == "circle":  # its weight has no gradient
            assert by_cosine[i].item() == pytest.approx(margin.s * (1 + margin.m - c), rel=1e-12)
            continue
        at = [(lambda dc, dn, i=i, c=c, norm=norm: expected_target(name, margin, c + dc, norm + dn, i, arrays))(*d)
              for d in ((-h, 0), (0, 0), (h, 0), (0, -h), (0, h))]
        if abs(at[2] - 2 * at[1] + at[0]) > 1e-4 * h * margin.s * (1 - c * c) ** -1.5:
            kinks += 1
            continue
        assert by_cosine[i].item() == pytest.approx((at[2] - at[0]) / (2 * h), rel=1e-4, abs=1e-6 * margin.s)
        if by_norm is not None:
            assert by_norm[i].item() == pytest.approx((at[4] - at[3]) / (2 * h), rel=1e-5, abs=1e-7 * margin.s)
    assert kinks <= 2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize(("name", "margin"), CASES, ids=IDS)
def test_negatives_are_the_formula(name, margin, dtype, tolerance):
    batch = make_batch(dtype, 41)
    arrays = _arrays(batch)
    c = torch.tensor(np.random.default_rng(6).uniform(-1, 1, (41, OTHERS)), dtype=dtype)
    logit, slope = margin.negative(c, batch)
    slope = slope.expand_as(c) if isinstance(slope, torch.Tensor) else torch.full_like(c, slope)
    assert logit.dtype == slope.dtype == dtype
    # A cosine that rounding puts on the other side of a threshold is compared on none.
    threshold = {"curricularface": np.cos(np.arccos(arrays.cosine) + getattr(margin, "m", 0)),
                 "mvsoftmax": arrays.cosine - getattr(margin, "m", 0)}.get(name, np.full(41, -9.0))
    clear = np.abs(c.double().numpy() - threshold[:, None]) > 1e-6
    assert clear.mean() > 0.999
    expected = np.array([[expected_negative(name, margin, x, target, arrays.state) for x in row]
                         for row, target in zip(c.double().tolist(), arrays.cosine, strict=True)])
    for got, want in ((logit, expected[..., 0]), (slope, expected[..., 1])):
        np.testing.assert_allclose(got.numpy()[clear], want[clear], rtol=0, atol=tolerance * margin.s)
    plain = {"curricularface", "mvsoftmax", "circle", "sphereface2", "uniface"}.isdisjoint({name})
    assert margin.plain_negatives == plain
    if plain:
        assert torch.equal(logit, margin.scale(batch.state) * c)


@pytest.mark.parametrize(("name", "margin"), CASES, ids=IDS)
def test_no_negative_passes_the_stated_bound(name, margin):
    """And the bound is reached, or almost, but where the state could yet grow."""
    batch = make_batch(torch.float64)
    hardest = batch._replace(cosine=torch.full((SAMPLES,), -0.2, dtype=torch.float64), state=batch.state | {
        "t": torch.tensor(1.0, dtype=torch.float64), "s": torch.tensor(margin.s, dtype=torch.float64)})
    every = torch.linspace(-1, 1, 2001, dtype=torch.float64).expand(SAMPLES, -1)
    largest = margin.negative(every, hardest)[0].max().item()
    assert largest <= margin.largest_negative()
    assert margin.binary or largest == pytest.approx(margin.largest_negative())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "margin"), CASES, ids=IDS)
def test_all_is_finite_at_the_ends(name, margin, dtype):
    """Cosines of ±1 and, by rounding, beyond; slopes bounded."""
    ends = torch.tensor([-1.0000001, -1.0, 1.0, 1.0000001], dtype=dtype)
    batch = make_batch(dtype, 4)._replace(cosine=ends.clamp(-1, 1), norm=torch.tensor([0, 1e-8, 1e8, 30], dtype=dtype))
    logit, by_cosine, by_norm = target_logit(ends, margin, batch)
    assert torch.isfinite(logit).all()
    assert by_cosine.abs().max() <= margin.s * 3 / SINE_FLOOR
    assert by_norm is None or torch.isfinite(by_norm).all()
    for part in margin.negative(ends.clamp(-1, 1).expand(4, 4), batch):
        assert torch.isfinite(torch.as_tensor(part)).all()


@pytest.mark.parametrize(("name", "margin"), CASES, ids=IDS)
def test_straight_through_passes_the_gradient_unchanged(name, margin):
    batch = make_batch(torch.float32)
    through = type(margin)(**{**vars(margin), "straight_through": True})
    logit, by_cosine, by_norm = target_logit(batch.cosine, through, batch)
    assert torch.equal(logit, target_logit(batch.cosine, margin, batch)[0])
    scale = STATE["s"] if name == "adacos" else margin.s
    assert by_norm is None
    assert torch.equal(by_cosine, torch.full_like(by_cosine, scale))


def test_combined_honours_all_three_margins():
    batch = make_batch(torch.float32, 1)._replace(cosine=torch.tensor([0.3]))
    alone = [target_logit(batch.cosine, Combined(m1=a, m2=b, m3=d), batch)[0].item() for a, b, d in
             ((1.0, 0.0, 0.0), (1.2, 0.0, 0.0), (1.0, 0.2, 0.0), (1.0, 0.0, 0.2), (1.2, 0.2, 0.2))]
    assert len(set(alone)) == 5
    assert min(alone) == alone[-1]


@pytest.mark.parametrize(("name", "margin"), CASES, ids=IDS)
def test_the_host_never_looks(name, margin):
    """On the meta device there are no values: whatever asked for one would raise."""
    batch = make_batch(torch.float32)
    batch = Batch(*(x.to("meta") for x in batch[:3]), {name: x.to("meta") for name, x in batch.state.items()})
    state = {name: batch.state[name] for name in margin.initial_state(100)}
    margin.advance(state, batch, batch.norm if margin.needs_sums else None)
    assert target_logit(batch.cosine, margin, batch)[0].shape == (SAMPLES,)
    assert margin.negative(batch.cosine[:, None].expand(-1, 7), batch)[0].shape == (SAMPLES, 7)
