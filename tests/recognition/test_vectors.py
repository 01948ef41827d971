import pytest
import torch

from recognition.vectors import unit, unit_gradient


def test_unit_gradient_is_autograds():
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(6, 4, dtype=torch.float64)
    unit(x).backward(gradient)
    torch.testing.assert_close(unit_gradient(gradient, x.detach()), x.grad)


def test_zero_has_no_direction_and_no_gradient():
    x = torch.zeros(1, 3)
    assert (unit(x) == 0).all()
    assert (unit_gradient(torch.ones(1, 3), x) == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_what_is_not_finite_or_overflows_becomes_nan(bad):
    assert torch.isnan(unit(torch.tensor([[1.0, bad, 2.0]]))).all()
