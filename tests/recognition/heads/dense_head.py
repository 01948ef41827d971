"""A dense head in float64 by plain autograd, for parity tests: every margin's loss written out from its paper.

It shares no code with `recognition`: cosines are one [B, k] matrix, the classes are on one rank, every gradient is
autograd's, and what a paper gives no gradient is detached by name. Slow and plain on purpose.

Shapes: B samples, d size, C classes, K centres a class (rows j·K … j·K + K − 1 belong to class j), k classes used.
Proven by tests/recognition/heads/test_dense_head.py (gradcheck and closed forms); used by test_head_parity.py.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

PI = math.pi
SMALLEST_SINE = 1e-3

# The defaults that the project states for each margin.
DEFAULTS: dict[str, dict[str, Any]] = {
    "normface": {"s": 64.0},
    "sphereface": {"s": 64.0, "m": 1.7, "straight_through": True},
    "cosface": {"s": 64.0, "m": 0.4},
    "arcface": {"s": 64.0, "m": 0.5},
    "combined": {"s": 64.0, "m1": 1.0, "m2": 0.3, "m3": 0.2},
    "magface": {"s": 64.0, "lambda_g": 35.0, "easy": True},
    "adaface": {"s": 64.0, "m": 0.4},
    "curricularface": {"s": 64.0, "m": 0.5},
    "mvsoftmax": {"s": 32.0, "m": 0.35, "t": 0.2, "easy": True},
    "adacos": {"dynamic": True, "s": 64.0},
    "subcenter": {"s": 64.0, "m": 0.5, "centers_per_class": 3},
    "circle": {"s": 256.0, "m": 0.25},
    "sphereface2": {"s": 40.0, "m": 0.4, "t": 3.0, "alpha": 0.7, "l_w": 50.0},
    "broadface": {"s": 64.0, "m": 0.5, "queue": 32_768},
    "elasticface": {"s": 64.0, "kind": "arc", "plus": False},
    "uniface": {"s": 64.0, "m": 0.4, "balance": 1.0},
}
BINARY = ("sphereface2", "uniface")
# Mean and deviation of elasticface's margin, by kind and whether it is the "+" form.
ELASTIC = {("arc", False): (0.5, 0.05), ("arc", True): (0.5, 0.0175), ("cos", False): (0.35, 0.05),
           ("cos", True): (0.35, 0.02)}


class _Arccos(torch.autograd.Function):
    """arccos whose derivative −1/sin θ is bounded by a floor of sin θ."""

    @staticmethod
    def forward(ctx: Any, c: Tensor) -> Tensor:
        ctx.save_for_backward(c)
        return torch.acos(c)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (c,) = ctx.saved_tensors
        return -gradient / (1 - c * c).clamp_min(0).sqrt().clamp_min(SMALLEST_SINE)


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))  # torch's softplus rounds to x from 20 on, at the ninth digit


# Target logits. `v` holds: c [B] the target's cosine, theta its angle, norm [B] the embedding's length, draws [B],
# state (already advanced), and the margin's settings by name.

def _arc(v: SimpleNamespace, m: float | Tensor) -> Tensor:
    """ArcFace, Deng et al. 2019: cos(θ + m), beyond π its linear continuation."""
    m = torch.as_tensor(m, dtype=v.c.dtype)
    return torch.where(v.theta + m > PI, v.c - m * torch.sin(m), torch.cos(v.theta + m))


def _folded(phi: Tensor) -> Tensor:
    """SphereFace's monotone cosine, Liu et al. 2017: (−1)^k cos φ − 2k with k = ⌊φ/π⌋."""
    k = torch.floor(phi.detach() / PI)
    return (1 - 2 * (k % 2)) * torch.cos(phi) - 2 * k


def _combined(v: SimpleNamespace) -> Tensor:
    phi = v.m1 * v.theta + v.m2
    past = v.c - v.m2 * math.sin(v.m2) if v.m1 == 1 else _folded(phi)
    return v.s * (torch.where(phi > PI, past, torch.cos(phi)) - v.m3)


def _magface(v: SimpleNamespace) -> Tensor:
    """MagFace, Meng et al. 2021: the margin grows with the length, which gets gradient through it."""
    m = 0.45 + (0.8 - 0.45) / (110 - 10) * (v.norm.clamp(10, 110) - 10)
    if v.easy:
        return v.s * torch.where(v.c > 0, torch.cos(v.theta + m), v.c)
    return v.s * _arc(v, m)


def _adaface(v: SimpleNamespace) -> Tensor:
    """AdaFace, Kim et al. 2022, eqs. 11 to 13; the length is a constant."""
    z = (_clipped_norm(v) - v.state["mean"]) / (v.state["deviation"] + 1e-3)
    z = (z * 0.333).clamp(-1, 1)
    theta = (v.theta - v.m * z).clamp(1e-3, PI - 1e-3)
    return v.s * (torch.cos(theta) - (v.m + v.m * z))


def _clipped_norm(v: SimpleNamespace) -> Tensor:
    return v.norm.detach().clamp(1e-3, 100)


def _mvsoftmax(v: SimpleNamespace) -> Tensor:
    return v.s * (torch.where(v.c > 0, v.c - v.m, v.c) if v.easy else v.c - v.m)


def _elasticface(v: SimpleNamespace) -> Tensor:
    """ElasticFace, Boutros et al. 2022; "+" sorts the margins against the cosines."""
    mean, deviation = ELASTIC[v.kind, v.plus]
    m = mean + deviation * v.draws
    if v.plus:
        by_cosine = torch.argsort(v.c.detach(), descending=True)
        m = torch.empty_like(m).scatter(0, by_cosine, m.sort().values)
    return v.s * (_arc(v, m) if v.kind == "arc" else v.c - m)


def _circle(v: SimpleNamespace) -> Tensor:
    """Circle loss, Sun et al. 2020, class level, eqs. 5 to 8 with O_p = 1 + m, Δ_p = 1 − m."""
    return v.s * (1 + v.m - v.c).clamp_min(0).detach() * (v.c - (1 - v.m))


def _g(c: Tensor, t: float) -> Tensor:
    return 2 * ((c + 1) / 2) ** t - 1


TARGETS: dict[str, Callable[[SimpleNamespace], Tensor]] = {
    "normface": lambda v: v.s * v.c,
    "sphereface": lambda v: v.s * _folded(v.m * v.theta),
    "cosface": lambda v: v.s * (v.c - v.m),
    "arcface": lambda v: v.s * _arc(v, v.m),
    "combined": _combined,
    "magface": _magface,
    "adaface": _adaface,
    "curricularface": lambda v: v.s * _arc(v, v.m),
    "mvsoftmax": _mvsoftmax,
    "adacos": lambda v: v.state["s"] * v.c,
    "subcenter": lambda v: v.s * _arc(v, v.m),
    "circle": _circle,
    "sphereface2": lambda v: v.s * (_g(v.c, v.t) - v.m) + v.bias,
    "broadface": lambda v: v.s * _arc(v, v.m),
    "elasticface": _elasticface,
    "uniface": lambda v: v.s * (v.c - v.m) - v.bias,
}


def _negatives(name: str, v: SimpleNamespace, cosine: Tensor) -> Tensor:
    """Logits of [B, k] cosines as negatives; the hard ones are chosen and weighted without gradient."""
    c, theta = v.c.detach()[:, None], v.theta.detach()[:, None]
    if name == "curricularface":  # Huang et al. 2020, eq. 9
        return v.s * torch.where(cosine > torch.cos(theta + v.m), cosine * (v.state["t"] + cosine), cosine)
    if name == "mvsoftmax":  # Wang et al. 2020, MV-AM-Softmax
        return v.s * torch.where(cosine > c - v.m, (1 + v.t) * cosine + v.t, cosine)
    if name == "circle":
        return v.s * (cosine + v.m).clamp_min(0).detach() * (cosine - v.m)
    if name == "sphereface2":  # Wen et al. 2022
        return v.s * (_g(cosine, v.t) + v.m) + v.bias
    if name == "uniface":  # Zhou et al. 2023
        return v.s * cosine - v.bias
    return (v.state["s"] if name == "adacos" else v.s) * cosine


def initial_state(name: str, num_classes: int, settings: dict[str, Any] | None = None) -> dict[str, float]:
    """What a margin starts from; {} for most."""
    p = SimpleNamespace(**DEFAULTS[name] | (settings or {}))
    if name == "adaface":
        return {"mean": 20.0, "deviation": 100.0}
    if name == "curricularface":
        return {"t": 0.0}
    if name == "adacos":
        return {"s": min(max(math.sqrt(2) * math.log(num_classes - 1), 1.0), p.s)}
    if name == "uniface":
        return {"bias": math.log(10 * num_classes)}
    if name == "sphereface2":
        # The root e^b of α·(1 − σ(positive + b)) = (1 − α)(C − 1)·σ(negative + b): no slope in b at cosines of 0.
        z = p.alpha / ((1 - p.alpha) * (num_classes - 1))
        positive, negative = (p.s * (2 * 0.5**p.t - 1 + sign * p.m) for sign in (-1, 1))
        root = math.sqrt((1 - z) ** 2 + 4 * z * math.exp(positive - negative))
        # Two forms of one root of a quadratic: each cancels where the other does not.
        if z < 1:
            return {"bias": math.log(2 * z / (1 - z + root)) - negative}
        return {"bias": math.log((root - (1 - z)) / 2) - positive}
    return {}


def _advance(name: str, v: SimpleNamespace, state: dict[str, Any], cosine: Tensor, left_out: Tensor,
             row_weight: Tensor) -> dict[str, Any]:
    """The state that this step uses, from the whole batch, without gradient."""
    c = v.c.detach()
    if name == "adaface":
        norm = _clipped_norm(v)
        # One sample says nothing of the deviation.
        deviation = norm.std(correction=1) if len(norm) > 1 else state["deviation"]
        return {"mean": 0.99 * state["mean"] + 0.01 * norm.mean(),
                "deviation": 0.99 * state["deviation"] + 0.01 * deviation}
    if name == "curricularface":
        return {"t": 0.99 * state["t"] + 0.01 * c.mean()}
    if name == "adacos" and v.dynamic:  # Zhang et al. 2019, eqs. 13 to 15; the limits are the project's
        exponential = torch.exp(state["s"] * cosine.detach()) * row_weight
        average = exponential.masked_fill(left_out, 0).sum(dim=1).mean()
        scale = torch.log(average) / torch.cos(torch.acos(c).median().clamp_max(PI / 4))
        return {"s": scale.clamp(1, v.s)}
    return dict(state)


def row_weights(rows: np.ndarray, label: Tensor, shards: list[tuple[int, int]]) -> Tensor:
    """How many classes each one used stands for in a scaled sum, float64 [k].

    1 if present in the batch, else (C_r − n)/(k_r − n), with n the classes of the batch in the shard.
    rows: [k] the classes used.  shards: the [start, stop) of each rank.
    """
    present = np.isin(rows, label.numpy())
    weight = np.ones(len(rows))
    for start, stop in shards:
        own = (rows >= start) & (rows < stop)
        random = own & ~present
        weight[random] = (stop - start - (own & present).sum()) / max(random.sum(), 1)
    return torch.from_numpy(weight)


def effective_centers(weight: Tensor, memory: Tensor | None, fresh: Tensor | None,
                      injection: tuple[str, float] | None) -> Tensor:
    """Unit centres [n, d] with the memory mixed into the fresh ones; ("vpl", λ) or ("qaface", λ)."""
    centers = _unit(weight)
    if injection is None:
        return centers
    kind, strength = injection
    assert kind in ("vpl", "qaface")
    assert memory is not None
    assert fresh is not None
    mixed = _unit((1 - strength if kind == "vpl" else 1) * centers + strength * memory)
    return torch.where(fresh[:, None], mixed, centers)


def cosines(embedding: Tensor, centers: Tensor, per_class: int, product_dtype: torch.dtype | None) -> Tensor:
    """Cosine of each sample and class [B, k], the largest of the class's K, held in [−1, 1]."""
    product_dtype = product_dtype or embedding.dtype
    cosine = (_unit(embedding).to(product_dtype) @ centers.to(product_dtype).T).to(embedding.dtype)
    cosine = cosine.view(len(embedding), -1, per_class).max(dim=2).values
    return cosine + (cosine.clamp(-1, 1) - cosine).detach()


def margin_loss(cosine: Tensor, norm: Tensor, column: Tensor, name: str, settings: dict[str, Any],
                state: dict[str, Any], row_weight: Tensor, draws: Tensor | None = None,
                bias: Tensor | None = None, filter_above: float | None = None) -> tuple[Tensor, dict[str, Any]]:
    """Mean loss over the batch and the advanced state.

    cosine: [B, k].  norm: [B] raw lengths.  column: [B] each target's column.  row_weight: [k], see `row_weights`.
    draws: [B] standard normal numbers.  bias: the trained one.  filter_above: negatives of larger cosine are in no sum.
    """
    p = DEFAULTS[name] | settings
    target = torch.nn.functional.one_hot(column, cosine.shape[1]).bool()
    v = SimpleNamespace(**p, c=cosine[target], norm=norm, draws=draws, bias=bias)
    v.theta = _Arccos.apply(v.c)
    left_out = target if filter_above is None else target | (cosine.detach() > filter_above)
    v.state = _advance(name, v, state, cosine, left_out, row_weight)
    positive = TARGETS[name](v)
    if p.get("straight_through"):
        plain = p["s"] * v.c
        positive = plain + (positive - plain).detach()
    negative = _negatives(name, v, cosine)
    if name in BINARY:
        sums = (_softplus(negative) * row_weight).masked_fill(left_out, 0).sum(dim=1)
        if name == "uniface":
            return (_softplus(-positive) + p["balance"] * sums).mean(), v.state
        return p["l_w"] / p["s"] * (p["alpha"] * _softplus(-positive) + (1 - p["alpha"]) * sums).mean(), v.state
    # −log of the target's softmax, without the cancellation of a difference of two large logarithms.
    loss = _softplus(torch.logsumexp(negative.masked_fill(left_out, -torch.inf), dim=1) - positive)
    if name == "magface":
        a = norm.clamp(10, 110)
        loss = loss + p["lambda_g"] * (a / 110**2 + 1 / a)
    return loss.mean(), v.state


def dense_step(weight: Tensor, embedding: Tensor, label: Tensor, name: str, settings: dict[str, Any],
               state: dict[str, Any], *, rows: np.ndarray | None = None, shards: list[tuple[int, int]] | None = None,
               memory: Tensor | None = None, fresh: Tensor | None = None, injection: tuple[str, float] | None = None,
               draws: Tensor | None = None, product_dtype: torch.dtype | None = None,
               filter_above: float | None = None) -> dict[str, Any]:
    """One step with rate 1: loss, embedding_gradient [B, d], weight_gradient [C·K, d], and the state after it.

    weight: [C·K, d], whose dtype all but the products has.  embedding: [B, d] raw.  label: [B] int64.
    settings: what differs from DEFAULTS.  state: `initial_state` or an earlier step's.  rows: int64 sorted classes
    used, all if None.  shards: the ranks' [start, stop).  memory [C·K, d], fresh [C·K] boolean: the injection's.
    """
    per_class = (DEFAULTS[name] | settings).get("centers_per_class", 1)
    num_classes = len(weight) // per_class
    rows = np.arange(num_classes) if rows is None else rows
    used = torch.from_numpy((rows[:, None] * per_class + np.arange(per_class)).ravel())
    weight = weight.detach().clone().requires_grad_()
    x = embedding.detach().clone().requires_grad_()
    bias = torch.tensor(float(state["bias"]), dtype=weight.dtype, requires_grad=True) if "bias" in state else None
    centers = effective_centers(weight, memory, fresh, injection)[used]
    row_weight = row_weights(rows, label, shards or [(0, num_classes)]).to(weight.dtype)

    def loss(x: Tensor, centers: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Any]]:
        column = torch.searchsorted(torch.from_numpy(rows), label)
        return margin_loss(cosines(x, centers, per_class, product_dtype), torch.linalg.vector_norm(x, dim=1), column,
                           name, settings, state, row_weight, draws, bias, filter_above)

    if name == "broadface":
        value, by_x, by_weight, after = _broadface(loss, weight, centers, x, label, settings, state)
    else:
        value, after = loss(x, centers, label)
        by_x, by_weight, *by_bias = torch.autograd.grad(value, [x, weight] + ([] if bias is None else [bias]))
        if bias is not None:
            after = after | {"bias": (bias - by_bias[0]).detach()}
    return {"loss": value.item(), "embedding_gradient": by_x.numpy(), "weight_gradient": by_weight.numpy(),
            "state": after}


def _broadface(loss: Callable[..., tuple[Tensor, dict[str, Any]]], weight: Tensor, centers: Tensor, x: Tensor,
               label: Tensor, settings: dict[str, Any], state: dict[str, Any],
               ) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """BroadFace, Kim et al. 2020: x learns from the batch, W from queue and batch.

    A past embedding follows its centre's drift, scaled to its own length: e + ‖e‖/‖w_then‖·(w_now − w_then).
    """
    now = weight.detach()
    batch = (x.detach(), label, now[label])
    past, past_label, then = state.get("queue", tuple(part[:0] for part in batch))
    ratio = torch.linalg.vector_norm(past, dim=1) / torch.linalg.vector_norm(then, dim=1)
    moved = past + ratio[:, None] * (now[past_label] - then)
    value, _ = loss(x, centers.detach(), label)
    broad, _ = loss(torch.cat([moved, batch[0]]), centers, torch.cat([past_label, label]))
    (by_x,), (by_weight,) = torch.autograd.grad(value, [x]), torch.autograd.grad(broad, [weight])
    size = (DEFAULTS["broadface"] | settings)["queue"]
    old = (past, past_label, then)
    return value, by_x, by_weight, {"queue": tuple(torch.cat(pair)[-size:] for pair in zip(old, batch, strict=True))}
