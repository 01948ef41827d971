"""The dense reference itself: gradcheck where nothing is detached, closed forms and properties where something is."""

import importlib.util
import itertools
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor


def _reference() -> ModuleType:
    """dense_head.py, found by its file: test folders are no packages."""
    if "dense_head" not in sys.modules:
        spec = importlib.util.spec_from_file_location("dense_head", Path(__file__).with_name("dense_head.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules["dense_head"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["dense_head"])
    return sys.modules["dense_head"]


dense = _reference()
CLASSES, SIZE = 7, 5
TRUE_DERIVATIVES = [
    ("normface", {}), ("sphereface", {"straight_through": False}), ("cosface", {}), ("arcface", {}),
    ("combined", {}), ("combined", {"m1": 1.35}), ("magface", {}), ("magface", {"easy": False}),
    ("adacos", {"dynamic": False}), ("subcenter", {"centers_per_class": 2}), ("elasticface", {}),
    ("elasticface", {"kind": "cos"}), ("sphereface2", {}), ("uniface", {}),
]


def _problem(name: str, per_class: int = 1) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(CLASSES * per_class, SIZE, generator=generator, dtype=torch.float64)
    label = torch.tensor([0, 6, 3, 3])
    noise = torch.randn(4, SIZE, generator=generator, dtype=torch.float64)
    embedding = torch.tensor([[3.0], [-40.0], [90.0], [20.0]]) * weight[label * per_class] + 8 * noise
    return weight, embedding, label, dense.initial_state(name, CLASSES)


@pytest.mark.parametrize(("name", "settings"), TRUE_DERIVATIVES, ids=str)
def test_gradients_are_those_of_the_loss(name, settings):
    """Central differences of the loss in random directions: by autograd nothing may be lost on the way."""
    per_class = settings.get("centers_per_class", 1)
    weight, embedding, label, state = _problem(name, per_class)
    draws = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64)
    memory = torch.roll(weight, 1, 1)
    fresh = torch.arange(len(weight)) % 3 == 0

    def step(weight: Tensor, embedding: Tensor) -> dict:
        injection = None if per_class > 1 else ("qaface", 0.6)
        return dense.dense_step(weight, embedding, label, name, {"s": 6.0} | settings, state, draws=draws,
                                memory=memory, fresh=fresh, injection=injection)

    found = step(weight, embedding)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        by_weight = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        by_x = torch.randn(embedding.shape, generator=generator, dtype=torch.float64)
        up, down = (step(weight + h * by_weight, embedding + h * by_x)["loss"] for h in (1e-5, -1e-5))
        expected = np.vdot(by_weight.numpy(), found["weight_gradient"])
        expected += np.vdot(by_x.numpy(), found["embedding_gradient"])
        assert (up - down) / 2e-5 == pytest.approx(expected, rel=1e-6)


def _loss_of(cosine: Tensor, column: list[int], name: str, settings: dict, state: dict) -> Tensor:
    bias = torch.tensor(state["bias"], dtype=torch.float64, requires_grad=True) if "bias" in state else None
    loss, _ = dense.margin_loss(cosine, torch.full((len(cosine),), 20.0, dtype=torch.float64), torch.tensor(column),
                                name, settings, state, torch.ones(cosine.shape[1]), None, bias)
    return loss


# One sample at cosine 0.3 and one negative: (name, settings, state, the negative's cosine, target's logit, its slope,
# the negative's logit, its slope), all worked out by hand from the papers.
THETA = math.acos(0.3)
HAND = [
    ("curricularface", {"s": 5.0}, {"t": 0.2}, 0.1,
     5 * math.cos(THETA + 0.5), 5 * math.sin(THETA + 0.5) / math.sin(THETA),
     5 * 0.1 * (0.99 * 0.2 + 0.01 * 0.3 + 0.1), 5 * (0.99 * 0.2 + 0.01 * 0.3 + 0.2)),
    ("curricularface", {"s": 5.0}, {"t": 0.2}, -0.6,
     5 * math.cos(THETA + 0.5), 5 * math.sin(THETA + 0.5) / math.sin(THETA), -3.0, 5.0),
    ("mvsoftmax", {"s": 5.0}, {}, 0.1, 5 * (0.3 - 0.35), 5.0, 5 * (1.2 * 0.1 + 0.2), 6.0),
    ("mvsoftmax", {"s": 5.0}, {}, -0.1, 5 * (0.3 - 0.35), 5.0, -0.5, 5.0),
    ("circle", {"s": 5.0}, {}, 0.1, 5 * 0.95 * (0.3 - 0.75), 5 * 0.95, 5 * 0.35 * (0.1 - 0.25), 5 * 0.35),
    ("circle", {"s": 5.0}, {}, -0.4, 5 * 0.95 * (0.3 - 0.75), 5 * 0.95, 0.0, 0.0),
    ("sphereface", {"s": 5.0}, {}, 0.1, 5 * (-math.cos(1.7 * math.acos(-0.9)) - 2), 5.0, 0.5, 5.0),
]


@pytest.mark.parametrize(("name", "settings", "state", "other", "positive", "slope", "negative", "other_slope"), HAND)
def test_detached_parts_against_hand_values(name, settings, state, other, positive, slope, negative, other_slope):
    c = -0.9 if name == "sphereface" else 0.3  # −0.9 lies past sphereface's first fold
    cosine = torch.tensor([[c, other]], dtype=torch.float64, requires_grad=True)
    loss = _loss_of(cosine, [0], name, settings, state)
    loss.backward()
    p = 1 / (1 + math.exp(positive - negative))
    assert loss.item() == pytest.approx(math.log1p(math.exp(negative - positive)), rel=1e-12)
    assert cosine.grad.tolist()[0] == pytest.approx([-p * slope, p * other_slope], rel=1e-10)


def test_adaface_by_hand():
    norm = torch.tensor([30.0, 150.0], dtype=torch.float64, requires_grad=True)
    cosine = torch.tensor([[0.3, 0.1], [0.2, 0.6]], dtype=torch.float64, requires_grad=True)
    state = {"mean": 40.0, "deviation": 30.0}
    loss, after = dense.margin_loss(cosine, norm, torch.tensor([0, 1]), "adaface", {"s": 5.0}, state, torch.ones(2))
    deviation = 0.99 * 30 + 0.01 * math.sqrt(35**2 * 2)
    mean = 0.99 * 40 + 0.01 * 65
    assert [after["mean"], after["deviation"]] == pytest.approx([mean, deviation])
    expected = 0.0
    for c, other, length in ((0.3, 0.1, 30.0), (0.6, 0.2, 100.0)):
        z = max(-1.0, min(1.0, 0.333 * (length - mean) / (deviation + 1e-3)))
        expected += math.log1p(math.exp(5 * (other - math.cos(math.acos(c) - 0.4 * z) + 0.4 + 0.4 * z))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.grad(loss, norm, allow_unused=True) == (None,)


def test_adacos_by_hand():
    cosine = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.8, 0.0], [0.1, 0.0, 0.2]], dtype=torch.float64)
    _, after = dense.margin_loss(cosine, torch.ones(3), torch.arange(3), "adacos", {}, {"s": 2.0}, torch.ones(3))
    average = np.exp(2 * np.array([0.1, 0.2, 0.3, 0.0, 0.1, 0.0])).sum() / 3
    assert float(after["s"]) == pytest.approx(math.log(average) / 0.8)  # cos of the median angle, below 45°
    assert dense.initial_state("adacos", 101)["s"] == pytest.approx(math.sqrt(2) * math.log(100))
    assert dense.initial_state("adacos", 2)["s"] == 1


@pytest.mark.parametrize("name", [name for name in dense.DEFAULTS if name != "magface"])
def test_only_magface_changes_lengths(name):
    """Cosines do not know an embedding's length, and adaface's quality is a constant: x·∂L/∂x = 0."""
    weight, embedding, label, state = _problem(name, 3 if name == "subcenter" else 1)
    found = dense.dense_step(weight, embedding, label, name, {}, state, draws=torch.zeros(4, dtype=torch.float64))
    along = (embedding.numpy() * found["embedding_gradient"]).sum(axis=1)
    assert np.abs(along).max() < 1e-12 * np.abs(embedding.numpy()).max()
    assert np.abs(found["embedding_gradient"]).max() > 1e-6


@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_bias_of_sphereface2_starts_where_its_slope_is_zero(classes):
    bias = dense.initial_state("sphereface2", classes)["bias"]
    b = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    cosine = torch.zeros(1, classes, dtype=torch.float64)
    loss, _ = dense.margin_loss(cosine, torch.ones(1), torch.tensor([1]), "sphereface2", {}, {"bias": bias},
                                torch.ones(classes), bias=b)
    loss.backward()
    assert abs(b.grad.item()) < 1e-12 * 35


@pytest.mark.parametrize("name", dense.BINARY)
def test_scaled_sums_are_unbiased(name):
    """Over all choices of the random classes, the mean loss is the full one, and so is the mean gradient by x."""
    weight, embedding, _, state = _problem(name)
    label = torch.tensor([0, 3, 3, 0])
    shards = [(0, 4), (4, 7)]
    full = dense.dense_step(weight, embedding, label, name, {}, state)
    drawn = []
    for one in (1, 2):  # shard 0 has 0 and 3 present and draws one more, shard 1 draws two of three
        for two in itertools.combinations(range(4, 7), 2):
            rows = np.array(sorted([0, 3, one, *two]))
            drawn.append(dense.dense_step(weight, embedding, label, name, {}, state, rows=rows, shards=shards))
            unused = np.setdiff1d(np.arange(CLASSES), rows)
            assert (drawn[-1]["weight_gradient"][unused] == 0).all()
    for what in ("loss", "embedding_gradient", "weight_gradient"):
        np.testing.assert_allclose(np.mean([step[what] for step in drawn], axis=0), full[what], rtol=1e-10, atol=1e-12)


def test_broadface_queue_is_a_fifo_and_compensates_drift():
    weight, embedding, label, state = _problem("broadface")
    length = torch.tensor([[3.0], [0.5], [1.0], [2.0]], dtype=torch.float64)
    first = dense.dense_step(weight, length * weight[label], label, "broadface", {"queue": 6}, state)
    plain = dense.dense_step(weight, length * weight[label], label, "arcface", {}, {})
    for what in ("loss", "embedding_gradient", "weight_gradient"):  # nothing is queued yet
        np.testing.assert_allclose(first[what], plain[what], rtol=1e-12)
    # A past embedding that pointed along its centre points along it wherever the centre has gone.
    moved = torch.roll(weight, 1, 1)
    second = dense.dense_step(moved, embedding, label, "broadface", {"queue": 6}, first["state"])
    everything = torch.cat([length * moved[label], embedding])
    broad = dense.dense_step(moved, everything, torch.cat([label, label]), "arcface", {}, {})
    np.testing.assert_allclose(second["weight_gradient"], broad["weight_gradient"], rtol=1e-6)
    batch = dense.dense_step(moved, embedding, label, "arcface", {}, {})
    for what in ("loss", "embedding_gradient"):
        np.testing.assert_allclose(second[what], batch[what], rtol=1e-12)
    queued, queued_label, then = second["state"]["queue"]
    assert queued_label.tolist() == [3, 3, *label.tolist()]
    assert torch.equal(queued, torch.cat([(length * weight[label])[2:], embedding]))
    assert torch.equal(then, torch.cat([weight[label][2:], moved[label]]))
