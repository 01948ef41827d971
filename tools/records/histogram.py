"""How many identities have how many images: counted in classes that double, and drawn.

Proven by tests/tools/records/test_inspect.py.
"""

from pathlib import Path
from typing import Any

import numpy as np


def images_histogram(labels: np.ndarray) -> list[dict[str, int]]:
    """Identities with images by their number of images: 1, 2, 3–4, 5–8, … as {from, to, identities, images}."""
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    classes = np.ceil(np.log2(counts)).astype(np.int64)  # exact: the logarithm of a power of two is whole
    return [{
        "from": 2**k // 2 + 1 if k else 1, "to": 2**k, "identities": int((classes == k).sum()),
        "images": int(counts[classes == k].sum()),
    } for k in range(int(classes.min()), int(classes.max()) + 1)]


def draw_histogram(facts: dict[str, Any], path: Path) -> None:
    """Draw the classes of `images_histogram` as bars, identities above and images below, into a PNG."""
    from matplotlib.figure import Figure  # takes half a second, and few want pictures

    bars = facts["images_histogram"]
    names = [f"{bar['from']}–{bar['to']}" if bar["from"] < bar["to"] else str(bar["to"]) for bar in bars]
    figure = Figure(figsize=(max(6.0, 0.7 * len(bars) + 1.5), 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, what, color in ((above, "identities", "#2563c9"), (below, "images", "#0f7b5f")):
        drawn = axes.bar(names, [bar[what] for bar in bars], color=color)
        axes.bar_label(drawn, labels=[f"{bar[what]:,}" if bar[what] else "" for bar in bars], fontsize=8)
        axes.set_ylabel(what)
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.get_major_formatter().set_scientific(False)
    below.set_xlabel("images of an identity")
    spread = facts["images_per_identity"]
    above.set_title(f"{facts['images']:,} images of {facts['identities_with_images']:,} identities: "
                    f"{spread['min']:,} to {spread['max']:,} each, median {spread['median']:,g}", fontsize=10)
    figure.savefig(path, dpi=120, metadata={"Software": None})
