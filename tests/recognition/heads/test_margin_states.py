"""What margins carry from step to step, against NumPy; the facts a head asks them for; their extra terms."""

import math

import numpy as np
import pytest
import torch

from recognition.heads.margins import (
    MARGINS,
    AdaCos,
    AdaFace,
    Batch,
    BroadFace,
    CurricularFace,
    ElasticFace,
    MagFace,
    SphereFace2,
    SubCenter,
    UniFace,
)

DTYPES = pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)


def make_batch(size: int, seed: int, dtype: torch.dtype) -> Batch:
    numbers = np.random.default_rng(seed)
    drawn = (numbers.uniform(-0.3, 0.9, size), numbers.uniform(0, 130, size), numbers.standard_normal(size))
    return Batch(*(torch.tensor(x, dtype=dtype) for x in drawn), {})


def start(margin, num_classes, dtype):
    return {name: torch.tensor(value, dtype=dtype) for name, value in margin.initial_state(num_classes).items()}


@pytest.mark.parametrize("name", MARGINS)
def test_advance_is_pure(name):
    """It changes none of its arguments, keeps names, shapes and types, and gives the same twice."""
    margin, batch = MARGINS[name](), make_batch(9, 0, torch.float32)
    state = start(margin, 50, torch.float32)
    old = {key: value.clone() for key, value in state.items()}
    before = [x.clone() for x in batch[:3]]
    first, second = (margin.advance(state, batch, torch.linspace(60, 90, 9)) for _ in range(2))
    assert state == old
    assert all(map(torch.equal, batch[:3], before))
    assert first == second
    assert first.keys() == old.keys()
    assert first is not state
    assert all(value.shape == () and value.dtype == torch.float32 for value in first.values())
    if name in ("adaface", "curricularface", "adacos"):
        assert first != old
    else:
        assert first == old


@DTYPES
def test_curricularface_follows_the_mean_cosine(dtype, rel):
    margin, t = CurricularFace(), 0.0
    state = start(margin, 10, dtype)
    assert state["t"] == 0
    for step in range(5):
        batch = make_batch(7, step, dtype)
        state = margin.advance(state, batch)
        t = 0.01 * np.mean(batch.cosine.double().numpy()) + 0.99 * t
        assert state["t"].item() == pytest.approx(t, rel=rel)


@DTYPES
def test_adaface_follows_the_clipped_lengths(dtype, rel):
    margin, mean, deviation = AdaFace(), 20.0, 100.0
    state = start(margin, 10, dtype)
    for step in range(5):
        batch = make_batch(7, step, dtype)
        state = margin.advance(state, batch)
        norm = np.clip(batch.norm.double().numpy(), 1e-3, 100)
        mean, deviation = 0.99 * mean + 0.01 * norm.mean(), 0.99 * deviation + 0.01 * norm.std(ddof=1)
        assert state["mean"].item() == pytest.approx(mean, rel=rel)
        assert state["deviation"].item() == pytest.approx(deviation, rel=rel)


def test_adaface_keeps_its_deviation_when_there_is_one_sample():
    state = start(AdaFace(), 10, torch.float64)
    after = AdaFace().advance(state, make_batch(1, 0, torch.float64)._replace(norm=torch.tensor([40.0]).double()))
    assert after["deviation"] == 100
    assert after["mean"].item() == pytest.approx(20.2)


@DTYPES
@pytest.mark.parametrize("size", [1, 6, 7])
def test_adacos_finds_its_scale(size, dtype, rel):
    """The lower of two middle angles; sums with the scale before; never more than π/4, never more than the setting."""
    margin, s = AdaCos(), math.sqrt(2) * math.log(299)
    state = start(margin, 300, dtype)
    assert state["s"].item() == pytest.approx(s, rel=rel)
    for step in range(6):
        batch = make_batch(size, step, dtype)
        if step % 2:
            batch = batch._replace(cosine=batch.cosine.abs() ** 0.2)  # the median angle on the other side of π/4
        cosine = np.random.default_rng(step).normal(0, 0.1, (size, 299))
        sums = np.exp(state["s"].item() * cosine).sum(axis=1)
        state = margin.advance(state, batch, torch.tensor(sums, dtype=dtype))
        median = np.sort(np.arccos(batch.cosine.double().numpy()))[(size - 1) // 2]
        s = np.log(sums.mean()) / np.cos(min(np.pi / 4, median))
        assert state["s"].item() == pytest.approx(s, rel=rel)
        assert margin.scale(state) is state["s"]


def test_adacos_scale_stays_within_limits():
    batch, state = make_batch(4, 0, torch.float32), {"s": torch.tensor(19.0)}
    assert AdaCos().advance(state, batch, torch.full((4,), 1e36))["s"] == 64
    assert AdaCos(s=30.0).advance(state, batch, torch.full((4,), 1e36))["s"] == 30
    assert AdaCos().advance(state, batch, torch.zeros(4))["s"] == 1
    assert AdaCos().initial_state(2) == AdaCos().initial_state(1) == {"s": 1.0}
    fixed = AdaCos(dynamic=False)
    assert fixed.initial_state(10_575)["s"] == pytest.approx(math.sqrt(2) * math.log(10_574))
    assert fixed.advance(state, batch, None) == state


@pytest.mark.parametrize("classes", [2, 3, 10, 10_575, 10_000_000])
@pytest.mark.parametrize("margin", [SphereFace2(), SphereFace2(s=20, m=0.1, t=2, alpha=0.95),
                                    SphereFace2(s=900, m=2.0)], ids=str)
def test_the_bias_of_sphereface2_starts_where_the_loss_is_smallest(margin, classes):
    """The derivative by b of the loss at cosine 0 vanishes: its two parts are equal."""
    bias = torch.tensor(margin.initial_state(classes)["bias"], dtype=torch.float64)
    u, v = (margin.s * (2 * 0.5**margin.t - 1 + side * margin.m) + bias for side in (-1, 1))
    pull = math.log(margin.alpha) + torch.nn.functional.logsigmoid(-u)
    push = math.log(1 - margin.alpha) + math.log(classes - 1) + torch.nn.functional.logsigmoid(v)
    assert pull.item() == pytest.approx(push.item(), abs=1e-9)


def test_the_weights_and_bias_of_the_binary_kinds():
    margin = SphereFace2(s=20.0, alpha=0.6, l_w=30.0)
    assert (margin.positive_weight, margin.negative_weight) == pytest.approx((30 * 0.6 / 20, 30 * 0.4 / 20))
    assert math.isfinite(margin.initial_state(1)["bias"])
    assert UniFace().initial_state(1000) == {"bias": pytest.approx(math.log(10_000))}
    assert (UniFace().positive_weight, UniFace(balance=0.3).negative_weight) == (1, 0.3)
    c, bias = torch.rand(6, 4).double(), torch.tensor(-2.0, dtype=torch.float64)
    for kind in (SphereFace2(), UniFace()):
        with_bias = [torch.cat([kind.target(c[:, 0], c[:, 0], batch)[:, None], kind.negative(c, batch)[0]], dim=1)
                     for batch in (Batch(c[:, 0], c[:, 0], None, {"bias": b}) for b in (bias, bias + 1))]
        slope = with_bias[1] - with_bias[0]
        np.testing.assert_allclose(slope.numpy(), kind.bias_slope, rtol=1e-12)


def test_straight_through_sphereface2_holds_for_negatives_too():
    batch = make_batch(3, 0, torch.float32)._replace(state={"bias": torch.tensor(0.0)})
    assert SphereFace2(straight_through=True).negative(torch.rand(3, 5), batch)[1] == 40.0


def test_magface_asks_for_longer_embeddings():
    """Its regulariser, and the gradient of it by the length: falling up to the longest, nothing outside."""
    norm = torch.tensor([3.0, 10.5, 40.0, 109.0, 200.0], dtype=torch.float64, requires_grad=True)
    value = MagFace().regularizer(norm)
    a = norm.detach().clamp(10, 110)
    np.testing.assert_allclose(value.detach().numpy(), 35 * (a / 110**2 + 1 / a).numpy(), rtol=1e-12)
    (slope,) = torch.autograd.grad(value.sum(), norm)
    expected = [0, *(35 * (1 / 110**2 - 1 / a[1:4] ** 2)).tolist(), 0]
    np.testing.assert_allclose(slope.numpy(), expected, rtol=1e-12)
    assert all(MARGINS[name]().regularizer(norm) is None for name in MARGINS if name != "magface")


def test_elasticface_plus_gives_the_largest_margin_to_the_smallest_cosine():
    batch = make_batch(64, 1, torch.float64)
    drawn, dealt = (ElasticFace(plus=plus, deviation=0.02).margins(batch) for plus in (False, True))
    assert torch.equal(dealt[batch.cosine.argsort(descending=True)].diff() >= 0, torch.ones(63, dtype=torch.bool))
    assert torch.equal(dealt.sort().values, drawn.sort().values)
    assert not torch.equal(dealt, drawn)


def test_what_a_head_asks_for():
    facts = {name: (kind().needs_targets, kind().needs_sums, kind().draws, kind().binary) for name, kind in
             MARGINS.items()}
    for fact, names in enumerate(({"curricularface", "mvsoftmax", "adacos"}, {"adacos"}, {"elasticface"},
                                  {"sphereface2", "uniface"})):
        assert {name for name in MARGINS if facts[name][fact]} == names
    assert not AdaCos(dynamic=False).needs_sums
    assert not AdaCos(dynamic=False).needs_targets
    assert {name for name, kind in MARGINS.items() if kind().centers_per_class != 1} == {"subcenter"}
    assert SubCenter(centers_per_class=5).centers_per_class == 5
    assert BroadFace().queue == 32_768
