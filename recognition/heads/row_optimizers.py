"""Row-wise optimisers of the class centres: SGD with momentum, AdamW, Adagrad; stochastic rounding of bf16 states.

Convention: an optimiser is the dataclass of its settings. Row j of each of its states belongs to row j of the weight,
and it touches the rows that it is given and no others: a row that was not used keeps its weight and its state to the
bit, without decay or drift. `update` works in place on contiguous rows and takes the gradient's memory for its own: the
gradient is overwritten.

Whether a step counts is a flag on the device. torch's fused kernels take such a flag, GradScaler's, and then leave what
they would write as it is, so they serve here as gated building blocks: no scratch memory, and no element-wise choice
between an old and a new value afterwards, which cost more than the update. On the CPU these kernels walk plain memory
and do not look at strides.

Shapes: n rows of a tile, d embedding size.
Proven by tests/recognition/heads/test_row_optimizers.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowOptimizer:
    """What all row-wise optimisers share. Their weight_decay is of the rows used in a step."""

    def states(self, num_rows: int, size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Fresh states by name, each [num_rows, …] and zero. dtype: of those that are [num_rows, size]."""
        raise NotImplementedError

    def update(
        self,
        weight: Tensor,
        state: Mapping[str, Tensor],
        gradient: Tensor,
        lr: float,
        finite: Tensor,
        skipped: Tensor | None = None,
    ) -> None:
        """Update rows in place; the gradient's content is lost.

        weight, gradient, state: [n, d] float32 or float64 (and what `states` says), weight and state contiguous.
        finite: boolean scalar on the device; False leaves weight and state unchanged to the bit, whatever the gradient
        holds, without the host having to look.
        skipped: [n], steps between this use of a row and the one before it. When given, the decay of those steps is
        made up for first: w ← w·(1 − `decay(lr)`)^skipped.
        """
        raise NotImplementedError

    def decay(self, lr: float) -> float:
        """The share of a row's weights that decay takes in a step, when the row is used in every step."""
        raise NotImplementedError

    def _make_up(self, weight: Tensor, lr: float, finite: Tensor, skipped: Tensor | None) -> None:
        if skipped is not None:
            factor = torch.pow(max(0.0, 1 - self.decay(lr)), skipped.double())
            weight.mul_(torch.where(finite, factor, 1.0).to(weight.dtype)[:, None])


@dataclass(frozen=True)
class RowSGD(RowOptimizer):
    """SGD with momentum for rows: v ← momentum·v + g + weight_decay·w;  w ← w − lr·v (torch.optim.SGD's form)."""

    momentum: float = 0.9
    weight_decay: float = 5e-4

    def states(self, num_rows: int, size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """The momentum: velocity [num_rows, size]."""
        return {"velocity": torch.zeros(num_rows, size, dtype=dtype, device=device)}

    def update(
        self,
        weight: Tensor,
        state: Mapping[str, Tensor],
        gradient: Tensor,
        lr: float,
        finite: Tensor,
        skipped: Tensor | None = None,
    ) -> None:
        """See `RowOptimizer.update`."""
        self._make_up(weight, lr, finite, skipped)
        velocity = state["velocity"]
        gradient.add_(weight, alpha=self.weight_decay).add_(velocity, alpha=self.momentum)
        _gated_sgd(weight, gradient, lr, finite, keep=velocity)

    def decay(self, lr: float) -> float:
        """The gradient of decay reaches the weights 1 + momentum + momentum² + … times, over later steps."""
        return lr * self.weight_decay / (1 - self.momentum)


@dataclass(frozen=True)
class RowAdamW(RowOptimizer):
    """AdamW (Loshchilov and Hutter, ICLR 2019, algorithm 2) for rows, bias corrected by how often a row was used.

    m ← β₁m + (1 − β₁)g;  v ← β₂v + (1 − β₂)g²;  w ← w − lr·(m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε) + weight_decay·w),
    with t the row's own count. weight_decay: the reference trainer's for AdamW.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.1

    def states(self, num_rows: int, size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """The moments first (m) and second (v), [num_rows, size], and the row's count (t), [num_rows] int32."""
        moments = {name: torch.zeros(num_rows, size, dtype=dtype, device=device) for name in ("first", "second")}
        return moments | {"count": torch.zeros(num_rows, dtype=torch.int32, device=device)}

    def update(
        self,
        weight: Tensor,
        state: Mapping[str, Tensor],
        gradient: Tensor,
        lr: float,
        finite: Tensor,
        skipped: Tensor | None = None,
    ) -> None:
        """See `RowOptimizer.update`."""
        self._make_up(weight, lr, finite, skipped)
        gradient = gradient.contiguous()
        first, second, count = state["first"], state["second"], state["count"]
        count.add_(finite)
        t = count.double().clamp_min_(1)[:, None]  # 0 only when a row's first step is not finite
        correction1, correction2 = 1 - torch.pow(self.beta1, t), 1 - torch.pow(self.beta2, t)
        _gated_approach(first, gradient, 1 - self.beta1, finite)
        _gated_approach(second, gradient.square_(), 1 - self.beta2, finite)
        # (√(v/c₂) + ε)·c₁ = ε·c₁ + √v · c₁/√c₂, in the gradient's memory
        scale = (correction1 / correction2.sqrt()).to(weight.dtype)
        # MKL takes zeros and denormals fifty times as long; √tiny is nothing beside any ε.
        divisor = torch.clamp_min(second, torch.finfo(second.dtype).tiny, out=gradient).sqrt_()
        torch.addcmul((self.epsilon * correction1).to(weight.dtype), divisor, scale, out=divisor)
        _gated_sgd(weight, torch.div(first, divisor, out=divisor), lr, finite, self.weight_decay)

    def decay(self, lr: float) -> float:
        """Decoupled decay: lr·weight_decay."""
        return lr * self.weight_decay


@dataclass(frozen=True)
class RowAdagrad(RowOptimizer):
    """Row-wise Adagrad, one accumulator a row: a ← a + mean(g²);  w ← w − lr·(g/(√a + ε) + weight_decay·w).

    As for embedding tables of recommender systems: Mudigere et al., "Software-Hardware Co-design for Fast and Scalable
    Training of Deep Learning Recommendation Models", ISCA 2022, section 4.1; decay is decoupled here.
    """

    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def states(self, num_rows: int, size: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """The accumulator square (a), [num_rows], never below float32: it only grows, and takes no room."""
        wide = torch.promote_types(dtype, torch.float32)
        return {"square": torch.zeros(num_rows, dtype=wide, device=device)}

    def update(
        self,
        weight: Tensor,
        state: Mapping[str, Tensor],
        gradient: Tensor,
        lr: float,
        finite: Tensor,
        skipped: Tensor | None = None,
    ) -> None:
        """See `RowOptimizer.update`."""
        self._make_up(weight, lr, finite, skipped)
        square = state["square"]
        mean = torch.linalg.vector_norm(gradient, dim=1).square_().div_(gradient.shape[1])
        square.add_(torch.where(finite, mean, -0.0))
        _gated_sgd(weight, gradient.div_(square.sqrt().add_(self.epsilon)[:, None]), lr, finite, self.weight_decay)

    def decay(self, lr: float) -> float:
        """Decoupled decay: lr·weight_decay."""
        return lr * self.weight_decay


ROW_OPTIMIZERS: dict[str, type[RowOptimizer]] = {"sgd": RowSGD, "adamw": RowAdamW, "adagrad": RowAdagrad}


def stochastic_round(x: Tensor, generator: torch.Generator) -> Tensor:
    """float32 to bfloat16, up or down with the probabilities that make the mean equal to x.

    Rounding to nearest loses every update below half a unit in the last place (2⁻⁹ of the value), and with it slow
    learning and decay; this keeps them on average. Exact on what bfloat16 holds, so an unchanged value stays as it is.
    Finite numbers stay finite (above bfloat16's largest: that one), infinities and NaN stay what they are.
    """
    largest = torch.finfo(torch.bfloat16).max
    # Uniform 16 bits an element, added below the bits that stay; -2^15 … 2^15 - 1 as int16, hence the offset.
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=generator)
    noise = words.view(torch.int16)[: x.numel()].view(x.shape)
    bits = x.clamp(-largest, largest).view(torch.int32)
    rounded = bits.add_(noise).add_(1 << 15).bitwise_and_(-1 << 16).view(torch.float32)
    return torch.where(x.abs() < torch.inf, rounded, x).to(torch.bfloat16)


def _gated_sgd(
    x: Tensor, direction: Tensor, lr: float, finite: Tensor, decay: float = 0.0, keep: Tensor | None = None
) -> None:
    """One pass over memory: x ← x − lr·(direction + decay·x) and keep ← direction; nothing where not finite."""
    assert x.is_contiguous()
    assert keep is None or keep.is_contiguous()
    torch._fused_sgd_(  # its first step sets the momentum buffer to the gradient
        [x], [direction.contiguous()], [] if keep is None else [keep],
        weight_decay=decay, momentum=0.0 if keep is None else 1.0, lr=lr, dampening=0.0, nesterov=False,
        maximize=False, is_first_step=True, found_inf=(~finite).float(),
    )


def _gated_approach(x: Tensor, target: Tensor, share: float, finite: Tensor) -> None:
    """One pass over memory: x ← x + share·(target − x); nothing where not finite."""
    assert x.is_contiguous()
    torch._fused_sgd_(  # maximising turns the sign of `target`
        [x], [target], [], weight_decay=1.0, momentum=0.0, lr=share, dampening=0.0, nesterov=False,
        maximize=True, is_first_step=True, found_inf=(~finite).float(),
    )
