"""Losses of C yes-or-no questions instead of a softmax over C classes, with a learnt bias that all classes share.

loss of a sample = positive_weight·softplus(−u) + negative_weight·Σ_j≠y w_j·softplus(v_j); the bias b is state["bias"],
trained by the head with slope `bias_slope` and without decay. Under sampling w_j makes up for the classes left out.
Proven by tests/recognition/heads/test_margins.py, tests/recognition/heads/test_margin_states.py.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from recognition.heads.margins.margin import Batch, Margin, bounded


@dataclass(frozen=True)
class SphereFace2(Margin):
    """u = s·(g(c) − m) + b, v_j = s·(g(c_j) + m) + b with g(c) = 2((c + 1)/2)^t − 1; s is the paper's r.

        loss of a sample = (l_w/s)·[alpha·softplus(−u) + (1 − alpha)·Σ_j softplus(v_j)]

    Wen et al., "SphereFace2: Binary Classification is All You Need for Deep Face Recognition", 2022 (its
    SphereFace2-C); defaults those of its authors' code: r = 40, m = 0.4, t = 3, α = 0.7 (λ there), l_w = 50.
    b starts where the loss is smallest while every cosine is 0 (`initial_state`). straight_through holds for negatives
    as well, as in that code. Needs SUM, and the bias' gradient over ranks.
    """

    s: float = 40.0
    m: float = 0.4
    t: float = bounded(3.0, 1, 20)
    alpha: float = bounded(0.7, 1e-6, 1 - 1e-6)
    l_w: float = bounded(50.0, 1e-6, 1e6)

    binary = True
    bias_slope = 1.0

    @property
    def positive_weight(self) -> float:
        """l_w·alpha/s."""
        return self.l_w * self.alpha / self.s

    @property
    def negative_weight(self) -> float:
        """l_w·(1 − alpha)/s."""
        return self.l_w * (1 - self.alpha) / self.s

    def initial_state(self, num_classes: int) -> dict[str, float]:
        """The bias that minimises α·softplus(−(a_y + b)) + (1 − α)(C − 1)·softplus(a_n + b).

        a_y = s·(g(0) − m) and a_n = s·(g(0) + m) are the logits of cosine 0. Setting the derivative by b to zero, with
        z = α/((1 − α)(C − 1)) and p = e^(a_n + b):  e^(a_y − a_n)·p² + (1 − z)·p − z = 0, whose positive root gives b.
        """
        z = self.alpha / ((1 - self.alpha) * max(num_classes - 1, 1))
        highest = self.s * (2 * 0.5**self.t - 1 + self.m)
        log_quadratic = -2 * self.s * self.m  # a_y − a_n
        linear = 1 - z
        root = math.sqrt(linear**2 + 4 * z * math.exp(log_quadratic))
        if linear >= 0:
            log_p = math.log(2 * z) - math.log(linear + root)
        else:  # the same root without the difference of two near numbers
            log_p = math.log(root - linear) - math.log(2) - log_quadratic
        return {"bias": log_p - highest}

    def target(self, c: Tensor, norm: Tensor, batch: Batch) -> Tensor:
        """u, [B]."""
        return self.s * (2 * ((c + 1) / 2) ** self.t - 1 - self.m) + batch.state["bias"]

    def negative(self, c: Tensor, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """v, [B, T], and ∂v/∂c."""
        half = (c + 1) / 2
        v = self.s * (2 * half**self.t - 1 + self.m) + batch.state["bias"]
        return v, self.s if self.straight_through else self.s * self.t * half ** (self.t - 1)

    def largest_negative(self) -> float:
        """No number: the bias is learnt. A softplus does not overflow."""
        return math.inf


@dataclass(frozen=True)
class UniFace(Margin):
    """u = s·(c − m) − b, v_j = s·c_j − b; loss of a sample = softplus(−u) + balance·Σ_j softplus(v_j).

    Zhou et al., "UniFace: Unified Cross-Entropy Loss for Deep Face Recognition", 2023; s = 64, m = 0.4 and
    balance l = 1 the paper's. b is its unified threshold between all positives and all negatives, from ln(10·C) as in
    its authors' code; C counts all classes, since the sum is scaled to all of them. Needs SUM, and the bias' gradient
    over ranks.
    """

    m: float = 0.4
    balance: float = bounded(1.0, 0, 1e6)

    binary = True
    bias_slope = -1.0

    @property
    def negative_weight(self) -> float:
        """The balance l."""
        return self.balance

    def initial_state(self, num_classes: int) -> dict[str, float]:
        """The bias ln(10·C)."""
        return {"bias": math.log(10 * num_classes)}

    def target(self, c: Tensor, norm: Tensor, batch: Batch) -> Tensor:
        """u, [B]."""
        return self.s * (c - self.m) - batch.state["bias"]

    def negative(self, c: Tensor, batch: Batch) -> tuple[Tensor, float]:
        """v, [B, T], and ∂v/∂c."""
        return self.s * c - batch.state["bias"], self.s

    def largest_negative(self) -> float:
        """No number: the bias is learnt. A softplus does not overflow."""
        return math.inf
