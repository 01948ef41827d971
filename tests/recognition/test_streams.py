"""The generator against published outputs, and its streams against chance."""

import math

import numpy as np

from recognition.streams import uniform, uniform_bits


def assert_chi_square_fits(counts: np.ndarray, expected: float) -> None:
    """Counts of equally likely cells: chi² within five standard deviations of its mean."""
    degrees = counts.size - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - degrees) < 5 * math.sqrt(2 * degrees)


def test_the_generator_is_splitmix64():
    # The first outputs for the seed 1234567, https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert uniform_bits(np.array([1234567], np.uint64), 4).tolist() == [expected]


def test_uniform_numbers_of_neighbouring_keys_are_uniform_and_independent():
    n, bins = 1 << 16, 16
    cells = (uniform(np.arange(n, dtype=np.uint64), 4) * bins).astype(int)
    for j in range(4):
        assert_chi_square_fits(np.bincount(cells[:, j], minlength=bins), n / bins)
        for k in range(j):
            assert_chi_square_fits(np.bincount(cells[:, j] * bins + cells[:, k], minlength=bins**2), n / bins**2)
        pairs = cells[:-1, j] * bins + cells[1:, j]
        assert_chi_square_fits(np.bincount(pairs, minlength=bins**2), (n - 1) / bins**2)
