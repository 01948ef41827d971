"""Unit vectors and the gradient through them, for rows of vectors. Proven by tests/recognition/test_vectors.py."""

import torch
from torch import Tensor

SMALLEST_NORM = 1e-12
"""A vector this short has no direction: its unit vector and its gradient are zero."""


def unit(x: Tensor) -> Tensor:
    """Rows of x [n, d] at unit length; rows shorter than SMALLEST_NORM become zero, those not finite become NaN."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    direction = torch.where(norm <= SMALLEST_NORM, 0, x / norm.clamp_min(SMALLEST_NORM))
    # A norm that overflows must not look like a short vector.
    return torch.where(torch.isfinite(norm), direction, torch.nan)


def unit_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient by x of a loss whose gradient by unit(x) is given: (g − (g·x̂)x̂) / ‖x‖. Zero where unit(x) is zero."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    x_hat = unit(x)
    tangent = gradient - (gradient * x_hat).sum(dim=1, keepdim=True) * x_hat
    return torch.where(norm <= SMALLEST_NORM, 0, tangent / norm.clamp_min(SMALLEST_NORM))
