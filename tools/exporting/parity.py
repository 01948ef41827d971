"""The exported file against what it was made of: the same images through both, before anything is written.

Owns the numbers: largest error and smallest cosine at several batches, of the quality too, and the verification
accuracy before and after. All of it on the CPU through onnxruntime, whatever the file is for.
Proven by tests/tools/test_export_onnx.py and tests/tools/exporting/test_parity.py.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from prettytable import PrettyTable

from eval.embed import Embed, load_embedder
from eval.onnx_file import first_line
from eval.pixels import RAW, Given, Pixels
from recognition.errors import SettingsError
from tools.exporting.form import Form
from tools.exporting.graph import INPUT, OUTPUT
from tools.exporting.quality import Norms

BATCHES = (1, 3, 32)


@dataclass(frozen=True)
class ParityReport:
    """How far the file is from the network it was made of, float32 on the CPU: the worst over `batches`."""

    max_abs_error: float
    min_cosine: float
    batches: tuple[tuple[int, float, float], ...]
    """Batch size, largest absolute error, smallest cosine."""
    images: str
    num_bytes: int
    seconds: float
    precision: str = "fp32"
    fp32_bytes: int = 0
    """Of the same graph in float32."""
    mean_cosine: float = 1.0
    quality_error: float | None = None
    """Largest error of a z-score."""
    norms: Norms | None = None
    verification: tuple[dict[str, Any], ...] = field(default=())
    """{"set", "pairs", "before", "after", "difference"} of each set: accuracy."""
    calibrated: int = 0
    """How many images int8 takes its ranges from."""
    separate: bool = False
    """Whether it was compared on others than those."""

    def table(self) -> PrettyTable:
        """One row a batch size."""
        table = PrettyTable(["batch", "max |file − network|", "1 − min cosine"])
        table.title = f"onnxruntime, {self.precision}, against the network in float32 on {self.images}"
        for batch, error, cosine in self.batches:
            table.add_row([batch, f"{error:.1e}", f"{max(0.0, 1 - cosine):.1e}"])
        return table

    def verification_table(self) -> PrettyTable:
        """One row a set."""
        table = PrettyTable(["set", "pairs", "accuracy before", "after", "difference"], align="r")
        for row in self.verification:
            figures = f"{row['before']:.4f}", f"{row['after']:.4f}", f"{row['difference']:+.4f}"
            table.add_row([row["set"], row["pairs"], *figures])
        return table


class Exported:
    """A file's content, ready to embed uint8 RGB [n, 112, 112, 3]."""

    def __init__(self, content: bytes, pixels: Pixels, form: Form, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._pixels = pixels if form.preprocessing == "outside" else replace(RAW, color_order=pixels.color_order)
        self._form = form

    def feed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The input for images, as a caller of the file has to make it."""
        data = self._pixels.prepare(images)
        return {INPUT: data.astype(np.uint8) if self._form.preprocessing == "uint8" else data}

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Embeddings float32 [n, d] and, of a file that has it, the quality [n]."""
        outputs = self.session.run(None, self.feed(images))
        return outputs[0], outputs[1] if len(outputs) > 1 else None


def compare(
    exported: Exported, embed: Embed, images: np.ndarray, form: Form, norms: Norms | None
) -> tuple[tuple[tuple[int, float, float], ...], float, float | None]:
    """(batch size, largest absolute error, smallest cosine) at each batch; mean cosine; largest error of the quality.

    `embed`: the reference, raw. SettingsError when the file does not run at a batch that it should take.
    """
    raw = embed(images)
    length = np.linalg.norm(raw.astype(np.float64), axis=1)
    expected = raw / length[:, None] if form.unit else raw.astype(np.float64)
    rows, cosines, errors = [], [], []
    for batch in BATCHES if form.batch is None else (form.batch,):
        row = np.arange(batch) % len(images)
        try:
            embedding, quality = exported(images[row])
        except Exception as error:  # onnxruntime's errors have no common class of their own
            raise SettingsError(f"the graph does not run on {batch} images: {first_line(error)}") from None
        got = embedding.astype(np.float64)
        norm = np.linalg.norm(got, axis=1) * np.linalg.norm(expected[row], axis=1)
        cosine = (got * expected[row]).sum(1) / np.where(norm > 0, norm, np.nan)
        rows.append((batch, float(np.abs(got - expected[row]).max()), float(cosine.min())))
        cosines.append(float(cosine.mean()))
        if norms is not None and quality is not None:
            errors.append(float(np.abs(quality - norms.z(length[row])).max()))
    return tuple(rows), cosines[-1], max(errors) if errors else None


def verify(
    content: bytes, embed: Embed, sets: Sequence[Path], progress: bool = True
) -> tuple[tuple[dict[str, Any], ...], list[dict[str, Any]]]:
    """Accuracy on verification sets of the reference and of the file, and all figures of the file; DataError.

    The file is opened as any evaluation opens it.
    """
    from eval.verification import evaluate, load_set

    rows, figures = [], []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        file.write_bytes(content)
        exported = load_embedder(file, device="cpu", given=Given(output=OUTPUT))
        for path in sets:
            pairs = load_set(path)
            before = evaluate(embed, pairs, progress=progress)["accuracy"]
            figures.append(evaluate(exported.embed, pairs, progress=progress))
            after = figures[-1]["accuracy"]
            rows.append({"set": pairs.name, "pairs": len(pairs.issame), "before": before, "after": after,
                         "difference": after - before})
    return tuple(rows), figures
