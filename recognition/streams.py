"""Random numbers that are functions of what they are for: no generator's state, the same on any number of ranks.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), vectorised: a key is hashed
from words such as (purpose, seed, epoch, sample), and a stream of 64-bit numbers starts at each key. NumPy alone, and
no generator of NumPy's, whose streams may change between versions.
Proven by tests/recognition/test_streams.py.
"""

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the step of SplitMix64


def stream_key(*words: int | np.ndarray) -> np.ndarray:
    """Words to keys uint64 [b]; distinct in the last word when the others are equal."""
    key = np.zeros(1, np.uint64)
    for word in words:
        value = word.astype(np.uint64) if isinstance(word, np.ndarray) else np.uint64(word & _MASK)
        key = mix((key ^ value) + np.uint64(_GOLDEN))
    return key


def torch_seed(*words: int) -> int:
    """Words to a seed that torch's generators take, below 2^63."""
    return int(stream_key(*words)[0] >> 1)


def uniform(key: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [b, count], from the streams of the keys uint64 [b]."""
    return (uniform_bits(key, count) >> np.uint64(11)) * 2.0**-53


def uniform_bits(key: np.ndarray, count: int) -> np.ndarray:
    """The first `count` outputs of SplitMix64 started at each key, uint64 [b, count]."""
    steps = np.array([(j + 1) * _GOLDEN & _MASK for j in range(count)], np.uint64)
    return mix(key[:, None] + steps)


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, a bijection of uint64 in which each bit in changes half of the bits out."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
