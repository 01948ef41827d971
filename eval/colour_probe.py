"""Whether a network would rather see BGR: a probe with a few hundred pairs, as they are and with red and blue swapped.

Owns the warning against the wrong order of the channels, which costs little on an easy set and so is never found by
looking at the score. Accuracy on a few hundred pairs is a handful of errors, more or less, so it is not compared: it is
how far the same pairs lie from strangers, in deviations of all comparisons of strangers, of which a few hundred
pictures have tens of thousands. Both orders see the same pictures. Proven by tests/eval/test_colour_probe.py.
"""

import numpy as np

from eval.embed import Embed

PROBE_PAIRS = 150  # of each kind; four passes of so many images
LEAST_PAIRS = 30  # of each kind; with fewer, nothing is said
CERTAINTY = 4.0  # standard errors of the gain, of 19 degrees of freedom: by chance once in 2,600 probes
GROUPS = 20  # of pairs, left out in turn


def probe_colour_order(embed: Embed, images: np.ndarray, issame: np.ndarray) -> tuple[float, float] | None:
    """How much better a model tells pairs apart with red and blue swapped.

    Args:
        embed: images → raw embeddings.
        images: uint8 RGB [2N, 112, 112, 3]; pair i is images 2i and 2i+1.
        issame: bool [N]; of each kind PROBE_PAIRS are used, evenly over the set.

    Returns:
        The gain in separation = mean over same pairs of (cosine − m) / s, where m and s are the mean and deviation of
        the cosines of all pictures in different pairs to each other; and that in standard errors, by the jackknife
        over GROUPS groups of pairs. None where there are fewer than LEAST_PAIRS of a kind, nothing varies, or an
        embedding is not finite: whoever evaluates the whole set names its image.
    """
    same, different = (_spread(np.flatnonzero(issame == kind)) for kind in (True, False))
    if min(len(same), len(different)) < LEAST_PAIRS:
        return None
    rows = np.concatenate([same, different])
    probe = images[np.stack([2 * rows, 2 * rows + 1], axis=1).reshape(-1)]
    orders = (probe, np.ascontiguousarray(probe[..., ::-1]))
    separations = [_separations(embed(order), len(same)) for order in orders]
    gain = separations[1] - separations[0]
    if not np.isfinite(gain).all():
        return None
    error = np.sqrt((GROUPS - 1) * gain[1:].var())
    return float(gain[0]), float(gain[0] / error) if error > 0 else 0.0


def colour_warning(embed: Embed, images: np.ndarray, issame: np.ndarray, order: str = "RGB") -> str | None:
    """What to tell people where the other order is clearly better (CERTAINTY); `order`: the one that is now in use."""
    found = probe_colour_order(embed, images, issame)
    if found is None or found[1] < CERTAINTY:
        return None
    other = "BGR" if order == "RGB" else "RGB"
    return (f"warning: {other} tells faces apart better than {order} (separation +{found[0]:.2f}, "
            f"{found[1]:.0f} standard errors); was the model trained on {other}? (--color-order {other})")


def _spread(rows: np.ndarray) -> np.ndarray:
    """At most PROBE_PAIRS of them, evenly over all."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), PROBE_PAIRS)).round().astype(int)]


def _separations(embedding: np.ndarray, same: int) -> np.ndarray:
    """Of all pairs, then without each group; raw [2P, d], the same pairs first → float64 [1 + GROUPS].

    NaN where nothing varies or an embedding is not finite.
    """
    if not np.isfinite(embedding).all():
        return np.full(1 + GROUPS, np.nan)
    embedding = embedding.astype(np.float64)
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    unit = embedding / np.where(length > 0, length, 1)
    cosine = (unit[0 : 2 * same : 2] * unit[1 : 2 * same : 2]).sum(axis=1)
    strangers = unit[2 * same :]
    all_cosines = strangers @ strangers.T
    np.fill_diagonal(all_cosines, np.nan)  # a picture and itself
    same_group, group = np.arange(same) % GROUPS, np.arange(len(strangers)) // 2 % GROUPS
    found = []
    for left_out in range(-1, GROUPS):
        kept = all_cosines[np.ix_(group != left_out, group != left_out)]
        spread = np.nanstd(kept)
        mean = cosine[same_group != left_out].mean() - np.nanmean(kept)
        found.append(mean / spread if spread > 1e-6 else np.nan)
    return np.array(found)
