"""What an exported file is to be like, and what it says of itself: its settings and its metadata.

Metadata are text; anything but plain text is JSON. `mean` and `std` are what the caller has to do to the pixels, so a
graph that normalises inside says 0 and 1. Nothing in them tells of its maker's disk.
Proven by tests/tools/test_export_onnx.py and tests/tools/exporting/test_surroundings.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Literal

from eval.norm_quality import UNIT
from eval.pixels import IMAGE_SIZE, Pixels
from eval.thresholds import FLOAT32, HALF
from recognition.errors import SettingsError
from tools.exporting.quality import Norms

Precision = Literal["fp32", "fp16", "int8"]
Preprocessing = Literal["outside", "inside", "uint8"]

# The smallest cosine to the float32 network on any image that a file is written with.
LEAST_COSINE: dict[str, float] = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.9}
# The largest error of a z-score that one is written with. Good files: 1e-5, 0.01, 0.4 (docs/deployment.md).
MOST_QUALITY_ERROR: dict[str, float] = {"fp32": 0.01, "fp16": 0.1, "int8": 1.0}
# Entries of a model file's info, or of an earlier export's metadata, that go into the metadata.
PUBLISHED = ("backbone", "run", "step", "epoch", "scores")


@dataclass(frozen=True)
class Form:
    """What is asked of a file.

    precision: of weights and products; input and output are float32 whatever it is.  batch: fixed, None: any.
    unit: embeddings of unit length.  preprocessing: by the caller; or in the graph, from float32 pixels 0 to 255; or in
    the graph from uint8 ones.  quality: a second output, the z-score of the norm.  norms: whose μ and σ that takes, the
    run's or those of the images at hand; None: the run's where it has any.
    least_cosine: to float32; None: LEAST_COSINE's.
    """

    precision: Precision = "fp32"
    batch: int | None = None
    unit: bool = False
    preprocessing: Preprocessing = "outside"
    quality: bool = False
    norms: Literal["run", "images"] | None = None
    least_cosine: float | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise SettingsError(f"--batch: expected 1 or more, got {self.batch}")
        if self.least_cosine is not None and not -1 <= self.least_cosine <= 1:
            raise SettingsError(f"--least-cosine: expected a cosine, -1 to 1, got {self.least_cosine:g}")
        if self.norms is not None and not self.quality:
            raise SettingsError("--norms says whose μ and σ the quality takes; give --quality as well")

    @property
    def limit(self) -> float:
        """The smallest cosine that is accepted."""
        return LEAST_COSINE[self.precision] if self.least_cosine is None else self.least_cosine

    @property
    def quality_limit(self) -> float:
        """The largest error of a z-score that is accepted."""
        return MOST_QUALITY_ERROR[self.precision]


def metadata(
    form: Form, pixels: Pixels, embedding_size: int, known: Mapping[str, Any], norms: Norms | None, *,
    unit: bool = False, inside: str | None = None,
) -> dict[str, str]:
    """What a user of the file needs to know, as text.

    pixels: what the network itself takes.  known: what is known of where it comes from.  norms: by
    which the norm tells quality, in the graph or to who reads the file.
    unit: the network itself gives unit length.  inside: how it normalises pixels by itself.
    """
    outside = form.preprocessing == "outside"
    facts: dict[str, Any] = {
        "input_size": [IMAGE_SIZE, IMAGE_SIZE],
        "color_order": pixels.color_order,
        "mean": _short(pixels.mean) if outside else 0.0,
        "std": _short(pixels.std) if outside else 1.0,
        "preprocessing": inside or ("outside" if outside else f"inside: {pixels}"),
        "precision": form.precision,
        "embedding": UNIT if form.unit or unit else "raw",
        "embedding_size": embedding_size,
        **{key: without_folders(known[key]) for key in PUBLISHED if key in known},
    }
    if facts.get("scores"):
        facts["scores_of"] = whose_scores(known)
    if norms is not None:
        facts |= norms.facts()
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def whose_scores(known: Mapping[str, Any]) -> str:
    """Which network the scores that came with it are of: that in float32, or in the half precision of its training."""
    if str(known.get("scores_of", "")).startswith(HALF):  # of an exported file
        return str(known["scores_of"])
    products = known.get("scores_in", "float32")
    return FLOAT32 if products == "float32" else f"{HALF}{products}"


def _short(values: tuple[float, ...]) -> float | list[float]:
    return values[0] if len(set(values)) == 1 else list(values)


def without_folders(value: Any) -> Any:
    """The value with every path in it cut to its last part: a published file should not tell of its maker's disk."""
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(child) for child in value]
    if isinstance(value, str):
        return PurePosixPath(PureWindowsPath(value).as_posix()).name if "/" in value or "\\" in value else value
    return value
