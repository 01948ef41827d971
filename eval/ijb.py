"""IJB-B and IJB-C: templates of several faces, compared 1:1 and searched 1:N.

Owns the protocol: f(x) + f(mirror), not unit length, times the detector's score → mean within a media → sum over the
media of a template → unit length → dot products. The lists are eval/ijb_lists', the pass over the pictures is
eval/ijb_faces', 1:N eval/ijb_search's; `evaluate_ijb` is all of that. `python -m eval.ijb MODEL DIR` prints tables and
writes JSON. Proven by tests/eval/test_ijb.py, against the protocol written out template by template.
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from prettytable import PrettyTable

from eval import metrics
from eval.embed import Embed, Embedder, load_embedder
from eval.ijb_cache import EmbeddingCache, default_cache, model_identity, open_unchanged
from eval.ijb_faces import crop_face, embed_faces, unit
from eval.ijb_lists import PROTOCOLS, TARGETS, IjbSet, find_target, load_ijb, protocols_of
from eval.ijb_processes import fill_cache
from eval.ijb_search import identify_templates
from eval.model_options import add_model_options, given_in, open_model
from eval.roc_plot import check_plot_path, write_roc_plot
from eval.verification import write_json
from recognition.cpus import available_cpus
from recognition.errors import SettingsError, run_command

__all__ = ["IjbSet", "crop_face", "embed_faces", "evaluate_ijb", "load_ijb", "pair_scores", "template_features"]

PAIRS_AT_ONCE = 2**9  # two blocks of 1 MB at 512 numbers a template: in the cache, three times as fast as 64 MB
HARDEST = 8  # pairs of each kind in `curve_of`


def template_features(features: np.ndarray, template: np.ndarray, media: np.ndarray, templates: int) -> np.ndarray:
    """Mean within each media, sum over the media of each template, unit length.

    Args:
        features: float32 [F, d].
        template: int [F], 0 .. templates − 1, each at least once.
        media: int [F]; the same number in two templates is two media.
        templates: T.

    Returns:
        float32 [T, d]; sums are taken in float64.
    """
    result = np.empty((templates, features.shape[1]), np.float32)
    order = np.lexsort((media, template))
    edges = np.searchsorted(template[order], np.arange(templates + 1))
    for number in range(templates):
        rows = order[edges[number] : edges[number + 1]]
        _, starts, counts = np.unique(media[rows], return_index=True, return_counts=True)
        means = np.add.reduceat(features[rows].astype(np.float64), starts, axis=0) / counts[:, None]
        result[number] = unit(means.sum(axis=0, keepdims=True))[0]
    return result


def pair_scores(features: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Dot product of the templates of each pair, by chunks; features float32 [T, d], positions [P] → float32 [P]."""
    result = np.empty(len(first), np.float32)

    def score(part: range) -> None:
        for start in range(part.start, part.stop, PAIRS_AT_ONCE):
            rows = slice(start, min(start + PAIRS_AT_ONCE, part.stop))
            np.einsum("pd,pd->p", features[first[rows]], features[second[rows]], out=result[rows])

    threads = available_cpus()
    share = max(1, -(-len(first) // threads))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(score, (range(at, min(at + share, len(first))) for at in range(0, len(first), share))))
    return result


def curve_of(ijb: IjbSet, scores: np.ndarray) -> dict[str, Any]:
    """ROC of 1:1 with its band, and the pairs that are hardest, by the templates' numbers.

    The band is over subjects where the lists of 1:N name every template's, else over pairs.

    Returns:
        {"roc": see `metrics.roc_summary`, "hardest": {"false_match": [[template, template, score] × 8, the highest of
        different subjects first], "false_non_match": [… the lowest of one subject first]}}.
    """
    groups = None
    if ijb.search is not None and (ijb.search.subject >= 0).all():
        subject = np.unique(ijb.search.subject, return_inverse=True)[1].astype(np.int32)
        groups = subject[ijb.first], subject[ijb.second]
    hardest = {
        "false_match": _hardest(ijb, scores, ~ijb.issame, highest=True),
        "false_non_match": _hardest(ijb, scores, ijb.issame, highest=False),
    }
    return {"roc": metrics.roc_summary(scores, ijb.issame, groups), "hardest": hardest}


def _hardest(ijb: IjbSet, scores: np.ndarray, among: np.ndarray, *, highest: bool) -> list[list[Any]]:
    """The pairs of highest or lowest score, in an order that does not depend on the list's."""
    rows = np.flatnonzero(among)
    ease = -scores[rows] if highest else scores[rows]
    if len(rows) > HARDEST:
        near = ease <= np.partition(ease, HARDEST - 1)[HARDEST - 1]  # more than eight where scores are equal
        rows, ease = rows[near], ease[near]
    first, second = ijb.template_ids[ijb.first[rows]], ijb.template_ids[ijb.second[rows]]
    order = np.lexsort((second, first, ease))[:HARDEST]
    return [[int(first[at]), int(second[at]), float(scores[rows[at]])] for at in order]


def score_templates(ijb: IjbSet, templates: np.ndarray, curve: bool = False) -> dict[str, Any]:
    """Figures of the protocols that the set was read for, from the features of all templates, unit length, [T, d].

    Returns:
        {"1:1": {"nearest": {far: tar}, "strict": {…}, "pairs": P}, "1:N": see `identify_templates`} of those that were
        read, and with `curve` also {"curve": see `curve_of`} of 1:1.
    """
    result: dict[str, Any] = {}
    if len(ijb.issame):
        scores = pair_scores(templates, ijb.first, ijb.second)
        result["1:1"] = {**metrics.tar_at_far(scores, ijb.issame), "pairs": len(ijb.issame)}
    if ijb.search is not None:
        result["1:N"] = identify_templates(ijb, templates)
    if curve and "1:1" in result:
        result["curve"] = curve_of(ijb, scores)
    return result


def evaluate_ijb(
    embed: Embed,
    folder: str | Path,
    *,
    target: str | None = None,
    protocols: Sequence[str] | None = None,
    use_detector_score: bool = True,
    use_norm: bool = True,
    flip: bool = True,
    progress: bool = False,
    cache: tuple[str | Path, dict[str, Any]] | None = None,
    threads: int | None = None,
    curve: bool = False,
    prepare: Callable[[IjbSet, EmbeddingCache], None] | None = None,
) -> dict[str, Any]:
    """Run the protocols on a folder.

    Args:
        embed: images → raw embeddings.
        folder: with loose_crop/ and meta/.
        target: IJBB or IJBC, where the folder holds both.
        protocols: of "1:1" and "1:N"; None = all that the folder has the lists of.
        use_detector_score: multiply by the detector's score.
        use_norm: weigh faces by their embedding's length.
        flip: add the mirror image's embedding.
        progress: show a bar, on terminals.
        cache: a folder for embeddings, and what they are of (`model_identity`); a killed run goes on from there.
        threads: that read and align pictures; None = one a processor.
        curve: also the ROC and the hardest pairs.
        prepare: called with the set and the cache before anything is embedded here, as `fill_cache` may be.

    Returns:
        See `score_templates`.

    Raises:
        DataError, SettingsError: as `load_ijb` and `embed_faces`. NumericsError: an embedding is not finite.
    """
    ijb = load_ijb(folder, target, protocols)
    kept = EmbeddingCache(*cache, ijb) if cache else None
    if prepare is not None and kept is not None:
        prepare(ijb, kept)
    options = {"use_detector_score": use_detector_score, "use_norm": use_norm, "flip": flip}
    features = embed_faces(embed, ijb, **options, progress=progress, cache=kept, threads=threads)
    templates = template_features(features, ijb.template, ijb.media, len(ijb.template_ids))
    del features  # a gigabyte of IJB-C's
    if kept is not None and kept.damaged:
        print(f"{kept.folder}: {kept.damaged} damaged files were embedded again")
    return score_templates(ijb, templates, curve)


def tables(result: dict[str, Any]) -> str:
    """Figures of both protocols as tables for people, in percent."""
    parts = []
    if "1:1" in result:
        rates = result["1:1"]
        out = PrettyTable(["TAR at FAR", *rates["nearest"]], align="r")
        for reading in ("nearest", "strict"):
            out.add_row([reading, *(_percent(value) for value in rates[reading].values())])
        parts += [f"1:1, {rates['pairs']} pairs, percent", str(out)]
    if "1:N" in result:
        heads = {"rank1": "rank 1", "rank5": "rank 5", "rank10": "rank 10"}
        heads |= {"tpir@0.01": "TPIR at FPIR 0.01", "tpir@0.1": "at 0.1"}
        out = PrettyTable(["gallery", *heads.values(), "mated", "non-mated"], align="r")
        out.align["gallery"] = "l"
        for name, row in result["1:N"].items():
            out.add_row([name, *(_percent(row[key]) for key in heads), row["mated"], row["non_mated"]])
        parts += ["1:N, percent", str(out)]
    return "\n".join(parts)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def main(arguments: Sequence[str]) -> int | None:
    """Evaluate a model on an IJB-B or IJB-C folder, 1:1 and 1:N."""
    options = _parser().parse_args(list(arguments))
    target = find_target(options.folder, options.target)
    protocols, notes = protocols_of(options.folder, target, options.protocol)
    for note in notes:
        print(note)
    if options.plot is not None:
        check_plot_path(options.plot)
        if "1:1" not in protocols:
            raise SettingsError("--plot draws the ROC of 1:1, which is not run")
    if options.no_cache and options.processes > 1:
        raise SettingsError("--processes needs a cache: the processes share it")
    cache, hashes = None, list[str]()
    if options.no_cache:
        embedder = open_model(options)
    else:
        embedder, hashes = open_unchanged(options.model, partial(open_model, options))
        place = options.cache or default_cache(options.model)
        cache = place, model_identity(options.model, embedder.pixels, given_in(options), hashes)
    result = evaluate_ijb(
        embedder.embed,
        options.folder,
        target=target,
        protocols=protocols,
        use_detector_score=options.detector_score,
        use_norm=options.norm,
        flip=options.flip,
        progress=True,
        cache=cache,
        threads=options.threads,
        curve=options.curves or options.plot is not None,
        prepare=_in_processes(options, hashes) if options.processes > 1 else None,
    )
    print(f"{options.folder}: {target}")
    print(tables(result))
    if options.plot is not None:
        write_roc_plot(options.plot, {options.model: result["curve"]["roc"]}, f"{target} 1:1, {options.model}")
    if options.json:
        if not options.curves:
            result.pop("curve", None)
        write_json(options.json, {"folder": str(Path(options.folder).resolve()), **result})
    return None


def _in_processes(options: argparse.Namespace, hashes: list[str]) -> Callable[[IjbSet, EmbeddingCache], None]:
    """What embeds in --processes processes: their share of the processors and one GPU each, as far as there are any.

    hashes: of the model's files, which each process opens for itself.
    """
    import torch  # not above: whoever evaluates an ONNX file in one process does not wait for it

    threads = max(1, (options.threads or available_cpus()) // options.processes)
    gpus = torch.cuda.device_count() if options.device in ("auto", "cuda") else 0
    devices = [f"cuda:{number % gpus}" if gpus else options.device for number in range(options.processes)]
    openers = [partial(load_embedder, options.model, threads, device, given_in(options)) for device in devices]
    models = [partial(_open_same, options.model, opener, hashes) for opener in openers]

    def fill(ijb: IjbSet, cache: EmbeddingCache) -> None:
        fill_cache(models, ijb, cache, flip=options.flip, threads=threads, progress=True)

    return fill


def _open_same(model: str, opener: Callable[[], Embedder], hashes: list[str]) -> Embedder:
    return open_unchanged(model, opener, hashes)[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.ijb", description=main.__doc__)
    add_model_options(parser)
    parser.add_argument("folder", metavar="DIR", help="folder with loose_crop/ and meta/")
    parser.add_argument("--target", choices=TARGETS, help="which lists to use, where DIR holds both")
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, help="default: all that DIR has the lists of")
    parser.add_argument("--json", metavar="OUT", help="write the results there")
    parser.add_argument("--curves", action="store_true", help="add the ROC and the hardest pairs to the JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw the ROC of 1:1 there (.png, .svg, .pdf)")
    where = parser.add_mutually_exclusive_group()
    meaning = "keep embeddings there, a killed run goes on from there (default: in the run's folder, or in ~/.cache)"
    where.add_argument("--cache", metavar="FOLDER", help=meaning)
    where.add_argument("--no-cache", action="store_true", help="keep none")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that embed, a GPU each (default: 1)")
    for option, meaning in {
        "detector-score": "weigh faces by the detector's score",
        "norm": "weigh faces by their embedding's length",
        "flip": "add the mirror image",
    }.items():
        parser.add_argument(f"--{option}", action=argparse.BooleanOptionalAction, default=True, help=meaning)
    return parser


if __name__ == "__main__":
    run_command(main)
