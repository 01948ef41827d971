"""Unit vectors and the gradient through them, for rows of vectors. Proven by tests/recognition/test_vectors.py."""

import torch
from torch import Tensor

SMALLEST_NORM = 1e-12
"""A vector this short has no direction: its unit vector and its gradient are zero."""


def inverse_norm(x: Tensor) -> Tensor:
    """1 / ‖x‖ of rows [n, d] → [n, 1]; 0 for rows shorter than SMALLEST_NORM, NaN for those not finite."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    inverse = torch.where(norm <= SMALLEST_NORM, 0, norm.reciprocal())
    # A norm that overflows must not look like a short vector.
    return torch.where(torch.isfinite(norm), inverse, torch.nan)


def unit(x: Tensor) -> Tensor:
    """Rows of x [n, d] at unit length; rows shorter than SMALLEST_NORM become zero, those not finite become NaN."""
    return x * inverse_norm(x)


def unit_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient by x of a loss whose gradient by unit(x) is given: (g − (g·x̂)x̂) / ‖x‖. Zero where unit(x) is zero."""
    inverse = inverse_norm(x)
    x_hat = x * inverse
    radial = torch.linalg.vecdot(gradient, x_hat)[:, None]
    return torch.addcmul(gradient, radial, x_hat, value=-1) * inverse
