"""What a model makes of bad pictures: norms, z-scores, weights and centre similarities of a set and its reductions.

Owns the figures behind the paper's Figs. 4, 5 and 8 ("A Quality Aware Sample-to-Sample Comparison for Face
Recognition", WACV 2023): for images as they are and reduced to 16×16 and 8×8 pixels the embedding's norm ‖u‖, its
z = (‖u‖ − μ)/σ (eq. 10), the weight f(z) = exp(−z) if z ≥ −τ, else 0 (eq. 11), and the cosines of the embedding to the
centre of its own class and to the nearest other. `load_images` draws the set, `measure` embeds it with one snapshot of
a model (eval/snapshots.py), `figures` makes numbers and histograms of that (eval/quality_figures.py), `evaluate` does
so for all snapshots. `python -m eval.quality RUN_OR_MODEL… --images SET` prints a table and writes JSON; a run shows
every save that it still has. Arrays are float64 [V, N]: V versions, the originals first, of N images.
Proven by tests/eval/test_quality.py.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prettytable import PrettyTable
from tqdm import tqdm

from eval.embed import IMAGE_SIZE, Embed, require_finite
from eval.quality_figures import (
    BINS,
    correlation,
    cosines_to_centers,
    cosines_to_means,
    edges_over,
    quality_weight,
    summary,
    unit,
)
from eval.snapshots import Snapshot, open_snapshots, require_model
from eval.verification import EMBED_AT_ONCE, decode_face, load_bin, reduce_to, write_json
from recognition.data.dataset import open_dataset
from recognition.data.image_file import ImageError
from recognition.errors import DataError, run_command
from recognition.streams import stream_key

MAX_COUNT = 10_000  # the paper's; at 112×112 pixels they take 376 MB
PAPERS_TAU = 2.0
SMALLEST_DEVIATION = 1e-6  # as recognition/memory.py, which needs torch

_SUBSET = 0x7175616C697479  # keeps this draw apart from others


@dataclass(frozen=True)
class ImageSet:
    """Images drawn from a set of `total`.

    names: where each stands, for errors.  labels int64 [N], num_classes, fingerprint: of a RecordIO set; a run knows
    its own training set by the last.
    """

    path: str
    images: np.ndarray  # uint8 RGB [N, 112, 112, 3]
    names: list[str]
    total: int
    labels: np.ndarray | None = None
    num_classes: int = 0
    fingerprint: str | None = None


@dataclass(frozen=True)
class Measured:
    """What one snapshot makes of the images, without the snapshot: a run may have many, each with its backbones.

    facts: what the JSON says of the snapshot.  own, other: cosines to the own and the nearest other centre, NaN where
    there is none; None for images without labels.
    """

    facts: dict[str, Any]
    norm: np.ndarray
    z: np.ndarray
    weight: np.ndarray
    own: np.ndarray | None
    other: np.ndarray | None


def load_images(path: str | Path, count: int = 2000) -> ImageSet:
    """Draw at most `count` images of a RecordIO set or a `.bin` set: always the same ones of the same number.

    A larger draw contains a smaller one. Raises DataError as `load_bin` and `open_dataset`, and for an image that is
    not 112×112.
    """
    path = Path(path)
    if path.suffix == ".bin":
        everything = load_bin(path).images
        if not len(everything):
            raise DataError(f"{path}: no pairs in this set")
        chosen = choose(len(everything), count)
        return ImageSet(str(path), everything[chosen], [f"{path}: image {i}" for i in chosen], len(everything))
    dataset = open_dataset(path)
    chosen = choose(dataset.num_images, count)
    images = np.empty((len(chosen), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    names = [dataset.where(int(sample)) for sample in chosen]
    for row, sample in enumerate(chosen):
        try:
            images[row] = decode_face(dataset.encoded(int(sample)))
        except ImageError as error:
            raise DataError(f"{names[row]}: {error}") from None
    labels = dataset.labels[chosen]
    return ImageSet(str(path), images, names, dataset.num_images, labels, dataset.num_classes, dataset.fingerprint())


def choose(total: int, count: int) -> np.ndarray:
    """`count` of the numbers below `total`, rising, int64: a function of these two alone."""
    key = stream_key(_SUBSET, np.arange(total))
    return np.sort(np.argsort(key, kind="stable")[:count])


def measure(snapshot: Snapshot, images: ImageSet, sides: Sequence[int], progress: bool = False) -> Measured:
    """Embed the images and their reduced versions, and take the figures of each of them.

    μ and σ are those that the run has kept, else mean and deviation of the originals' norms. Centres are the run's own
    Ŵ when the images are of its training set (by fingerprint), else the classes' means of the originals.
    Raises NumericsError that names the images whose embedding is not finite.
    """
    two = snapshot.norm_of == "momentum"
    title = snapshot.name if snapshot.step is None else f"step {snapshot.step}"
    total = len(images.images) * (1 + len(sides)) * (2 if two else 1)
    with tqdm(total=total, desc=title, unit="image", disable=None if progress else True, leave=False) as bar:
        embedding = _embed(snapshot.name, snapshot.embed, images, sides, bar)
        of_norm = _embed(snapshot.name, snapshot.embed_norm, images, sides, bar) if two else embedding
    norm = np.linalg.norm(of_norm.astype(np.float64), axis=2)
    mean, deviation = snapshot.statistics or (float(norm[0].mean()), max(float(norm[0].std()), SMALLEST_DEVIATION))
    tau = PAPERS_TAU if snapshot.tau is None else snapshot.tau
    kind, own, other = _cosines(snapshot, images, np.stack([unit(rows) for rows in embedding]))
    facts = {
        "step": snapshot.step,
        "epoch": snapshot.epoch,
        "norm_of": snapshot.norm_of,
        "mean": mean,
        "deviation": deviation,
        "statistics_from": "images" if snapshot.statistics is None else "run",
        "tau": tau,
        "tau_from": "default" if snapshot.tau is None else "run",
        "centers": kind,
    }
    weight = quality_weight(norm, mean, deviation, tau)
    return Measured(facts, norm, (norm - mean) / deviation, weight, own, other)


def _embed(model: str, embed: Embed, images: ImageSet, sides: Sequence[int], bar: tqdm) -> np.ndarray:
    """Embeddings float32 [V, N, d] of the images and their reduced versions, which are made part by part."""
    versions = []
    for side in (None, *sides):
        parts = []
        for start in range(0, len(images.images), EMBED_AT_ONCE):
            part = images.images[start : start + EMBED_AT_ONCE]
            parts.append(embed(reduce_to(part, side) if side else part))
            bar.update(len(part))
        versions.append(np.concatenate(parts))
        reduced = f", {side}×{side}" if side else ""
        require_finite(versions[-1], [f"{name}{reduced}, by {model}" for name in images.names])
    return np.stack(versions)


def _cosines(
    snapshot: Snapshot, images: ImageSet, embedding: np.ndarray
) -> tuple[str | None, np.ndarray | None, np.ndarray | None]:
    """The kind of centre, and the cosines [V, N] of unit embeddings [V, N, d] to the own and the nearest other."""
    if images.labels is None:
        return None, None, None
    if snapshot.centers is None or snapshot.data != images.fingerprint:
        return "class means", *cosines_to_means(embedding, images.labels)
    flat, label = embedding.reshape(-1, embedding.shape[2]), np.tile(images.labels, len(embedding))
    own, other = cosines_to_centers(flat, label, snapshot.centers(images.num_classes))
    return "learned", own.reshape(embedding.shape[:2]), other.reshape(embedding.shape[:2])


def histogram_edges(measured: Sequence[Measured]) -> dict[str, np.ndarray]:
    """Edges of the histograms by figure, common to all versions and snapshots, so that one can be laid over another."""
    return {
        "norm": edges_over([one.norm for one in measured]),
        "z": edges_over([one.z for one in measured]),
        "weight": edges_over([one.weight for one in measured], 0.0),
        "cosine": np.linspace(-1, 1, BINS + 1),
    }


def figures(measured: Measured, sides: Sequence[int], edges: dict[str, np.ndarray]) -> dict[str, Any]:
    """One snapshot for the JSON, whose keys docs/evaluation.md describes."""
    versions = []
    for row, side in enumerate((None, *sides)):
        norm, weight = measured.norm[row], measured.weight[row]
        own, other = (None if cosine is None else cosine[row] for cosine in (measured.own, measured.other))
        versions.append({
            "degrade": side,
            "norm": summary(norm, edges["norm"]),
            "z": summary(measured.z[row], edges["z"]),
            "weight": summary(weight, edges["weight"]),
            "unrecognizable": float((weight == 0).mean()),
            "own_cosine": summary(own, edges["cosine"]),
            "other_cosine": summary(other, edges["cosine"]),
            "correlation": correlation(norm, own),
        })
    return {**measured.facts, "correlation": correlation(measured.norm, measured.own), "versions": versions}


def evaluate(
    model: str | Path, images: ImageSet, sides: Sequence[int], threads: int | None = None, device: str = "auto",
    progress: bool = False,
) -> dict[str, Any]:
    """All saves of a run, or a model file: {model, histogram_edges, snapshots}. Raises as open_snapshots, measure."""
    measured = [measure(one, images, sides, progress) for one in open_snapshots(model, threads, device)]
    edges = histogram_edges(measured)
    return {
        "model": str(model),
        "histogram_edges": {name: values.tolist() for name, values in edges.items()},
        "snapshots": [figures(one, sides, edges) for one in measured],
    }


def table(results: Sequence[dict[str, Any]]) -> PrettyTable:
    """Results as a table for people."""
    columns = ["model", "epoch", "reduced to", "norm", "z", "f = 0", "mean f", "own centre", "nearest other", "r"]
    out = PrettyTable(columns, align="r")
    out.align["model"] = "l"

    def spread(value: dict[str, Any] | None) -> str:
        return "–" if value is None else f"{value['mean']:z.3f} ± {value['deviation']:.3f}"

    for result in results:
        for snapshot in result["snapshots"]:
            epoch, step = snapshot["epoch"], snapshot["step"]
            when = f"{epoch:.4g}" if epoch is not None else "" if step is None else f"step {step}"
            for row in snapshot["versions"]:
                out.add_row([
                    Path(result["model"]).name,
                    when,
                    f"{row['degrade']}×{row['degrade']}" if row["degrade"] else "",
                    spread(row["norm"]),
                    spread(row["z"]),
                    f"{row['unrecognizable']:.4f}",
                    f"{row['weight']['mean']:.3f}",
                    spread(row["own_cosine"]),
                    spread(row["other_cosine"]),
                    "–" if row["correlation"] is None else f"{row['correlation']:.3f}",
                ])
    return out


def main(arguments: Sequence[str]) -> int | None:
    """Show what models make of good and bad pictures: norms, z-scores, weights, cosines to class centres."""
    parser = argparse.ArgumentParser(prog="python -m eval.quality", description=main.__doc__)
    parser.add_argument("models", nargs="+", metavar="RUN_OR_MODEL", help="run folder, .pt model file, or .onnx file")
    parser.add_argument("--images", required=True, metavar="SET", help="RecordIO folder or .bin file")
    parser.add_argument("--count", type=int, default=2000, metavar="N", help="images drawn from it (default: 2000)")
    parser.add_argument("--sides", nargs="+", type=int, default=[16, 8], metavar="SIDE",
                        help="also reduced to SIDE×SIDE (default: 16 8)")
    parser.add_argument("--json", metavar="OUT", help="write the results there")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--device", default="auto", help="for runs and .pt models: cpu, cuda, … (default: auto)")
    options = parser.parse_args(list(arguments))
    if not 1 <= options.count <= MAX_COUNT:
        parser.error(f"--count: expected 1 to {MAX_COUNT}, got {options.count}")
    for side in options.sides:
        if not 1 <= side <= IMAGE_SIZE:
            parser.error(f"--sides: expected 1 to {IMAGE_SIZE}, got {side}")
    for model in options.models:  # a wrong name shows now, not after an hour of embedding with the others
        require_model(model)
    images = load_images(options.images, options.count)
    how = (options.sides, options.threads, options.device, True)
    results = [evaluate(model, images, *how) for model in options.models]
    print(f"{len(images.images)} of {images.total} images of {images.path}; mean ± deviation; "
          "r: correlation of norm and cosine to the own centre")
    print(table(results))
    if options.json:
        facts = {"set": images.path, "total": images.total, "images": len(images.images)}
        write_json(options.json, {**facts, "models": results})
    return None


if __name__ == "__main__":
    run_command(main)
