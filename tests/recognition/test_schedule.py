import numpy as np
import pytest

from recognition.schedule import ScheduleSettings, learning_rates


def test_step_divides_at_the_milestones():
    rates = learning_rates(ScheduleSettings("step", milestones=(10, 16, 22)), 0.1, epochs=24, steps_per_epoch=100)
    assert len(rates) == 2400
    assert rates[[0, 999, 1000, 1600, 2200, 2399]] == pytest.approx([0.1, 0.1, 0.01, 0.001, 1e-4, 1e-4])


def test_polynomial_is_linear_to_zero_by_default():
    rates = learning_rates(ScheduleSettings("polynomial"), 0.2, epochs=2, steps_per_epoch=50)
    np.testing.assert_allclose(rates, 0.2 * (1 - np.arange(100) / 100))


@pytest.mark.parametrize("kind", ["step", "polynomial", "cosine"])
def test_warmup_rises_linearly_to_the_peak(kind):
    rates = learning_rates(ScheduleSettings(kind, warmup_epochs=2, milestones=(5,)), 1.0, epochs=8, steps_per_epoch=10)
    np.testing.assert_allclose(rates[:20], np.arange(1, 21) / 20)
    assert rates.max() == rates[19] == 1.0
    assert (np.diff(rates[19:]) <= 0).all()


def test_cosine_ends_near_zero_and_is_half_way_at_half_time():
    rates = learning_rates(ScheduleSettings("cosine"), 1.0, epochs=1, steps_per_epoch=1000)
    assert rates[500] == pytest.approx(0.5)
    assert rates[-1] < 1e-5


def test_fractions_of_an_epoch():
    assert len(learning_rates(ScheduleSettings(), 0.1, epochs=1.5, steps_per_epoch=10)) == 15
