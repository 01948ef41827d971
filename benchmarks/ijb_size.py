"""Time and memory of IJB-C's counting, without its pictures: `python benchmarks/ijb_size.py [--json OUT]`.

A set of IJB-C's size from random embeddings (469,375 faces, 23,124 templates, 15,658,489 pairs, two galleries) goes
through what follows a network in `eval.ijb`: templates, pair scores, TAR at FAR, 1:N, and the ROC with its band over
subjects. Embeddings are made block by block and held as float32, 0.9 GiB, as `eval.ijb` holds them. Memory is the
largest this process has had, the set included. CPU seconds tell more than seconds on a busy machine. Threads of matrix
products: OMP_NUM_THREADS.

Proven by tests/benchmarks/test_ijb_size.py.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prettytable import PrettyTable

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval import metrics
from eval.ijb import pair_scores, template_features
from eval.verification import write_json
from recognition.cpus import available_cpus
from recognition.errors import run_command

# Of IJB-C (Maze et al. 2018) and its two galleries.
FACES, SUBJECTS, PROBES, SAME, DIFFERENT = 469_375, 3_531, 19_593, 19_557, 15_638_932
SIGNAL = 6.0  # length of a subject's part of an embedding; its noise has √d: TAR between 0.3 and 1
FACES_AT_ONCE = 2**14
RANKS, FPIRS = (1, 5, 10), (0.01, 0.1)


@dataclass(frozen=True)
class RandomSet:
    """Lists like IJB-C's. Templates 0 .. subjects − 1 are the galleries, one a subject; the others are probes."""

    subject: np.ndarray  # int64 [T]
    template: np.ndarray  # int64 [F]
    media: np.ndarray  # int64 [F]
    first: np.ndarray  # int32 [P]
    second: np.ndarray  # int32 [P]
    same: np.ndarray  # bool [P]


def make_set(scale: float, generator: np.random.Generator) -> RandomSet:
    """Lists with IJB-C's numbers times `scale`: uneven templates, one to three faces a media, pairs in no order."""
    subjects, probes, faces = (max(20, int(count * scale)) for count in (SUBJECTS, PROBES, FACES))
    templates = subjects + probes
    subject = np.r_[np.arange(subjects), generator.integers(0, subjects, probes)]
    extra = generator.choice(templates, max(0, faces - templates), p=generator.dirichlet(np.full(templates, 0.5)))
    template = np.sort(np.r_[np.arange(templates), extra])
    media = np.cumsum(generator.random(len(template)) < 0.5)
    mate = generator.permutation(np.arange(subjects, templates))[: max(1, int(SAME * scale))]
    different = max(1, int(DIFFERENT * scale))
    gallery = generator.integers(0, subjects, different, dtype=np.int32)
    probe = generator.integers(subjects, templates, different, dtype=np.int32)
    clash = subject[probe] == gallery
    gallery[clash] = (gallery[clash] + 1) % subjects
    first, second = np.r_[subject[mate].astype(np.int32), gallery], np.r_[mate.astype(np.int32), probe]
    order = generator.permutation(len(first))
    return RandomSet(subject, template, media, first[order], second[order], order < len(mate))


def make_features(lists: RandomSet, dim: int, generator: np.random.Generator) -> np.ndarray:
    """Embeddings of all faces, float32 [F, dim]: the subject's direction and noise."""
    directions = generator.standard_normal((lists.subject.max() + 1, dim), np.float32)
    directions *= SIGNAL / np.linalg.norm(directions, axis=1, keepdims=True)
    features = np.empty((len(lists.template), dim), np.float32)
    for start in range(0, len(features), FACES_AT_ONCE):
        rows = slice(start, start + FACES_AT_ONCE)
        generator.standard_normal(dtype=np.float32, out=features[rows])
        features[rows] += directions[lists.subject[lists.template[rows]]]
    return features


def search(lists: RandomSet, templates: np.ndarray) -> dict[str, Any]:
    """Rank-k and TPIR at FPIR of both galleries and of the two as one."""
    subjects = int(lists.subject.max()) + 1
    half = subjects // 2
    probes = slice(subjects, None)
    result: dict[str, Any] = {}
    for name, part in {"G1": slice(0, half), "G2": slice(half, subjects), "merged": slice(0, subjects)}.items():
        found = metrics.search_gallery(templates[probes], templates[part], lists.subject[probes], lists.subject[part])
        result[name] = {f"rank{k}": metrics.rank_k(found, k) for k in RANKS}
        result[name] |= {f"tpir@{x}": metrics.tpir_at_fpir(found, x, name == "merged") for x in FPIRS}
    return result


def peak_bytes() -> int:
    """The most this process has had in memory (not by benchmarks.measure, whose torch takes 0.3 GB itself)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(scale: float, dim: int, seed: int) -> dict[str, Any]:
    """All of it: {"faces", …, "stages": [{"stage", "seconds", "cpu_seconds", "peak_mib"}], "1:1", "1:N", "roc"}."""
    stages: list[dict[str, Any]] = []

    def stage(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work(*arguments)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        stages.append({"stage": name, "seconds": wall, "cpu_seconds": cpu, "peak_mib": peak_bytes() >> 20})
        return result

    generator = np.random.default_rng(seed)
    lists = make_set(scale, generator)
    features = make_features(lists, dim, generator)
    faces, count = len(features), len(lists.subject)
    templates = stage("templates", template_features, features, lists.template, lists.media, count)
    del features
    scores = stage("pair scores", pair_scores, templates, lists.first, lists.second)
    rates = stage("TAR at FAR", metrics.tar_at_far, scores, lists.same)
    found = stage("1:N", search, lists, templates)
    groups = lists.subject[lists.first].astype(np.int32), lists.subject[lists.second].astype(np.int32)
    summary = stage("ROC with band", metrics.roc_summary, scores, lists.same, groups)
    return {
        "faces": faces, "templates": count, "pairs": len(scores), "dim": dim, "cpus": available_cpus(),
        "stages": stages, "seconds": sum(entry["seconds"] for entry in stages), "peak_mib": peak_bytes() >> 20,
        "1:1": rates, "1:N": found, "roc": summary,
    }  # fmt: skip


def main(arguments: Sequence[str]) -> int | None:
    """Measure the counting behind IJB-C on random embeddings of its size."""
    parser = argparse.ArgumentParser(prog="python benchmarks/ijb_size.py", description=main.__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of IJB-C's numbers (default: 1)")
    parser.add_argument("--dim", type=int, default=512, help="numbers of an embedding (default: 512)")
    parser.add_argument("--seed", type=int, default=0, help="of the random set (default: 0)")
    parser.add_argument("--json", metavar="OUT", help="write the results there")
    options = parser.parse_args(list(arguments))
    result = measure(options.scale, options.dim, options.seed)
    print(f"{result['faces']} faces, {result['templates']} templates, {result['pairs']} pairs, {result['cpus']} CPUs")
    out = PrettyTable(["stage", "seconds", "CPU seconds", "largest memory so far, MiB"], align="r")
    for entry in result["stages"]:
        out.add_row([entry["stage"], f"{entry['seconds']:.1f}", f"{entry['cpu_seconds']:.1f}", entry["peak_mib"]])
    print(out)
    rates = ", ".join(f"{100 * rate:.2f} at {far}" for far, rate in result["1:1"]["strict"].items())
    print(f"{result['seconds']:.1f} s in all; TAR in percent, strict: {rates}")
    if options.json:
        write_json(options.json, result)
    return None


if __name__ == "__main__":
    run_command(main)
