"""What a model makes of bad pictures: norms, z-scores, weights and centre similarities of a set and its reductions.

Owns the figures behind the paper's Figs. 4, 5, 8 and 9 and Table 1 ("A Quality Aware Sample-to-Sample Comparison for
Face Recognition", WACV 2023): for images as they are and reduced to 16×16 and 8×8 pixels the embedding's norm ‖u‖, its
z = (‖u‖ − μ)/σ (eq. 10), the weight f(z) = exp(−z) if z ≥ −τ, else 0 (eq. 11), and the cosines of the embedding to the
centre of its own class and to the nearest other. `load_images` (eval/quality_images.py) draws the set, `measure` embeds
it with one snapshot of a model (eval/snapshots.py), `figures` makes numbers and histograms of that
(eval/quality_figures.py), `evaluate` does so for all snapshots. `python -m eval.quality RUN_OR_MODEL… --images SET`
prints a table and writes JSON and, with --figures, pictures (eval/quality_plots.py); a run shows every save that it
still has. Arrays are float64 [V, N]: V versions, the originals first, of N images.
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
from eval.ijb_cache import default_cache
from eval.ijb_lists import find_target
from eval.model_options import add_model_options, given_in, naming_options
from eval.pixels import Given
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
from eval.quality_images import ImageSet, choose, load_images, load_subjects
from eval.quality_pairs import FMR, measure_ijb, measure_set
from eval.quality_plots import write_figures
from eval.safe_pickle import load_pairs
from eval.snapshots import Snapshot, open_snapshots, require_model
from eval.verification import EMBED_AT_ONCE, reduce_to, write_json
from recognition.errors import run_command

__all__ = ["ImageSet", "Measured", "choose", "evaluate", "figures", "load_images", "measure"]

MAX_COUNT = 10_000  # the paper's; at 112×112 pixels they take 376 MB
PAPERS_TAU = 2.0
SMALLEST_DEVIATION = 1e-6  # as recognition/memory.py, which needs torch
EXAMPLES = 8  # of each kind


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


def examples(measured: Measured, images: ImageSet, sides: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """The paper's Fig. 5: which images are ignored, which count most, which have the highest norms.

    At most EXAMPLES of each, the most extreme first and no image twice, each {"image": number in the set, "degrade",
    "norm", "z", "weight"}.
    """
    ignored = np.where(measured.weight == 0, measured.z, np.inf)
    orders = {"ignored": ignored, "emphasised": -measured.weight, "high_norm": -measured.norm}
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, order in orders.items():
        seen: dict[int, dict[str, Any]] = {}
        for place in np.argsort(order, axis=None, kind="stable"):
            version, row = np.unravel_index(place, order.shape)
            nothing = order[version, row] == (np.inf if kind == "ignored" else 0)
            if len(seen) == EXAMPLES or nothing:
                break
            values = {name: float(getattr(measured, name)[version, row]) for name in ("norm", "z", "weight")}
            degrade = None if version == 0 else sides[version - 1]
            seen.setdefault(int(row), {"image": int(images.numbers[row]), "degrade": degrade, **values})
        found[kind] = list(seen.values())
    return found


def of_subjects(snapshot: Snapshot, subjects: ImageSet, sides: Sequence[int]) -> list[dict[str, Any]]:
    """The paper's Fig. 8: norm and cosine to the own centre of each image of a few people, as they are and reduced."""
    measured = measure(snapshot, subjects, sides)
    assert subjects.labels is not None
    assert measured.own is not None
    found = []
    for label in np.unique(subjects.labels):
        mine = subjects.labels == label
        versions = [
            {"degrade": side, "norm": measured.norm[row, mine].tolist(),
             "cosine": [None if np.isnan(value) else float(value) for value in measured.own[row, mine]]}
            for row, side in enumerate((None, *sides))
        ]
        found.append({"label": int(label), "images": int(mine.sum()), "centers": measured.facts["centers"],
                      "versions": versions})
    return found


def evaluate(
    model: str | Path, images: ImageSet, sides: Sequence[int], threads: int | None = None, device: str = "auto",
    progress: bool = False, *, given: Given | None = None, subjects: ImageSet | None = None,
    sets: Sequence[str | Path] = (), ijb: Sequence[str | Path] = (), fmr: float = FMR,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """All saves of a run, or a model file: {model, histogram_edges, snapshots, examples, …}, see docs/evaluation.md.

    Examples, `subjects` and the pairs of `sets` (.bin files) and `ijb` (folders) are of the last save. Embeddings of
    IJB are kept in the folder `cache`, if any, as eval.ijb keeps them.
    Raises as open_snapshots, measure, quality_pairs.
    """
    measured = []
    for snapshot in open_snapshots(model, threads, device, given):
        for note in snapshot.notes:
            print(f"{snapshot.name}: {note}")
        measured.append(measure(snapshot, images, sides, progress))
    edges = histogram_edges(measured)
    result: dict[str, Any] = {
        "model": str(model),
        "histogram_edges": {name: values.tolist() for name, values in edges.items()},
        "snapshots": [figures(one, sides, edges) for one in measured],
        "examples": examples(measured[-1], images, sides),
    }
    if subjects is not None:
        result["subjects"] = of_subjects(snapshot, subjects, sides)
    if sets or ijb:
        made = [measure_set(snapshot.embed, path, sides, fmr, progress) for path in sets]
        result["verification"] = [row for rows, _ in made for row in rows]
        result["pairs"] = [one for _, compared in made for one in compared]
        kept = (cache, snapshot.identity()) if ijb and cache is not None and snapshot.identity is not None else None
        result["pairs"] += [measure_ijb(snapshot.embed, folder, fmr, progress, kept) for folder in ijb]
    return result


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


def pairs_table(results: Sequence[dict[str, Any]]) -> PrettyTable:
    """Scores and error versus discard as a table for people."""
    shares = (0.0, 0.1, 0.2, 0.5)
    columns = ["model", "set", "reduced to", "pairs", "same", "different"]
    columns += [*(f"−{share:.0%}" for share in shares), "area"]
    out = PrettyTable(columns, align="r", title="cosines of pairs; FNMR without the share of the lowest norms")
    out.align["model"] = out.align["set"] = "l"
    for result in results:
        for one in result["pairs"]:
            curve = one["discard"]
            fnmr = [np.interp(share, curve["discard"], curve["fnmr"]) for share in shares] if curve else []
            out.add_row([
                Path(result["model"]).name,
                one["set"],
                f"{one['degrade']}×{one['degrade']}" if one["degrade"] else "",
                one["pairs"],
                *("–" if one[kind] is None else f"{one[kind]['mean']:z.3f} ± {one[kind]['deviation']:.3f}"
                  for kind in ("same", "different")),
                *([f"{value:.4f}" for value in (*fnmr, curve["area"])] if curve else ["–"] * (len(shares) + 1)),
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
    parser.add_argument("--pairs", nargs="+", default=[], metavar="SET", help="also the pairs of .bin files")
    parser.add_argument("--ijb", nargs="+", default=[], metavar="DIR", help="also the 1:1 pairs of IJB folders")
    parser.add_argument("--fmr", type=float, default=FMR, metavar="RATE",
                        help=f"false-match rate of error versus discard (default: {FMR:g})")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cache", metavar="FOLDER", help="keep IJB's embeddings there (default: as eval.ijb)")
    where.add_argument("--no-cache", action="store_true", help="keep none")
    parser.add_argument("--json", metavar="OUT", help="write the results there")
    parser.add_argument("--figures", metavar="FOLDER", help="draw the paper's Figs. 4, 5, 8, 9 and Table 1 there")
    add_model_options(parser, positional=False)
    options = parser.parse_args(list(arguments))
    if not 1 <= options.count <= MAX_COUNT:
        parser.error(f"--count: expected 1 to {MAX_COUNT}, got {options.count}")
    for side in options.sides:
        if not 1 <= side <= IMAGE_SIZE:
            parser.error(f"--sides: expected 1 to {IMAGE_SIZE}, got {side}")
    if not 0 <= options.fmr < 1:
        parser.error(f"--fmr: expected 0 or more, below 1, got {options.fmr:g}")
    for model in options.models:  # a wrong name shows now, not after an hour of embedding with the others
        require_model(model)
    for path in options.pairs:
        load_pairs(path)
    for folder in options.ijb:
        find_target(folder)
    images, subjects = load_images(options.images, options.count), load_subjects(options.images)
    with naming_options():
        results = [
            evaluate(model, images, options.sides, options.threads, options.device, True, given=given_in(options),
                     subjects=subjects, sets=options.pairs, ijb=options.ijb, fmr=options.fmr,
                     cache=None if options.no_cache else options.cache or default_cache(model))
            for model in options.models
        ]
    print(f"{len(images.images)} of {images.total} images of {images.path}; mean ± deviation; "
          "r: correlation of norm and cosine to the own centre")
    print(table(results))
    if options.pairs or options.ijb:
        print(pairs_table(results))
    facts = {"set": images.path, "total": images.total, "images": len(images.images)}
    if options.json:
        write_json(options.json, {**facts, "models": results})
    if options.figures:
        for path in write_figures(options.figures, {**facts, "models": results}):
            print(path)
    return None


if __name__ == "__main__":
    run_command(main)
