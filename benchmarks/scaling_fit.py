"""What benchmarks/scaling.py measures of compute and memory, and how well the formulas foretell it.

Two kinds of formulas are fitted to the small problems and asked for the large ones, which were left out:
    modelled formula    scaling_model.py's, which the table of GPUs goes by, with its constants alone: of the head the
                        time of a flop and of a byte, of the backbone that of an image
    regression          with terms for what the model leaves out: drawn rows, the batch, the call itself
Times are CPU seconds of one thread, so that other work on the machine counts little; on a GPU, seconds. A fit minimises
the relative errors, without negative constants.
Proven by tests/benchmarks/test_scaling.py.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import head
from benchmarks.measure import high_water, in_fresh_process, memory_now, restart_high_water, time_steps
from benchmarks.scaling_model import Step, head_flops, head_traffic, state_bytes
from recognition.backbones import BackboneSettings, build
from recognition.data.plan import IMAGE_SIDE

REGRESSION, FORMULA = "regression", "modelled formula"


def fit(terms: Sequence[Sequence[float]], values: Sequence[float]) -> np.ndarray:
    """Constants ≥ 0 of the terms, [points, terms] → [terms], with the least squares of relative errors."""
    matrix = np.asarray(terms, np.float64) / np.asarray(values, np.float64)[:, None]
    best, error = np.zeros(matrix.shape[1]), np.inf
    for chosen in range(1, 1 << matrix.shape[1]):  # a few terms: all subsets of them that can be positive
        columns = [number for number in range(matrix.shape[1]) if chosen >> number & 1]
        found, *_ = np.linalg.lstsq(matrix[:, columns], np.ones(len(matrix)), rcond=None)
        left = float(np.square(matrix[:, columns] @ found - 1).sum())
        if (found >= 0).all() and left < error:
            best, error = np.zeros(matrix.shape[1]), left
            best[columns] = found
    return best


def foretell(rows: Sequence[dict[str, Any]], kind: str, key: str = "seconds") -> list[dict[str, Any]]:
    """The rows with what a formula of this kind, fitted to those not held out, says of `key`, and how far it is off."""
    known = [row for row in rows if not row["held_out"]]
    constants = fit([row["terms"][kind] for row in known], [row[key] for row in known])
    told = [float(np.dot(row["terms"][kind], constants)) for row in rows]
    return [row | {"what": f"{row['part']}: {kind}", "measured": row[key], "model": model,
                   "error": model / row[key] - 1, "constants": constants.tolist()}
            for row, model in zip(rows, told, strict=True)]


def head_rows(
    steps: Sequence[Step], largest: tuple[int, int], repeats: int, device: str, product: str
) -> list[dict[str, Any]]:
    """Seconds a step of the head. largest: classes and batch above which a step is held out."""
    seconds = in_fresh_process(_head_seconds, steps, repeats, device, product)
    return [head_row(step, found, step.classes > largest[0] or step.batch > largest[1])
            for step, found in zip(steps, seconds, strict=True)]


def head_row(step: Step, seconds: float, held_out: bool, part: str = "head") -> dict[str, Any]:
    """A measured step of the head on one rank, with the terms that its time is made of."""
    return {
        "part": part, "classes": step.classes, "batch": step.batch, "ranks": step.ranks, "rate": step.rate,
        "inject": step.memory, "seconds": seconds, "held_out": held_out,
        "terms": {REGRESSION: head_terms(step), FORMULA: [head_flops(step), head_traffic(step)]},
    }


def head_terms(step: Step) -> list[float]:
    """Flops; elements of rows, of those injected, of those that were drawn, which are copied; of the batch; calls."""
    rows = float(step.used * step.size)
    drawn = step.used < step.shard
    return [head_flops(step), rows, rows * step.memory, rows * drawn, float(step.batch * step.size), 1.0,
            float(step.memory)]


def _head_seconds(steps: Sequence[Step], repeats: int, device: str, product: str) -> list[float]:
    """Medians over rounds in which the problems take turns, so that a busy minute is everybody's."""
    rounds: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for step, found in zip(steps, rounds, strict=True):
            contestant = head.build(_variant(step), _problem(step, device, product))
            contestant.step()
            wall, cpu = time_steps(contestant.step, 2, device)
            found.append(wall if device == "cuda" else cpu)
    return [statistics.median(found) for found in rounds]


def _variant(step: Step) -> head.Variant:
    return head.Variant("ours", step.rate, inject="qaface" if step.memory else "none")


def _problem(step: Step, device: str, product: str) -> head.Problem:
    return head.Problem(step.classes, step.batch, step.size, device, product, 1)


def head_memory(steps: Sequence[Step], device: str, product: str) -> list[dict[str, Any]]:
    """State, counted and by formula, and the peak above it, of a step of the head in a process of its own."""
    rows = []
    for step in steps:
        peak, state = in_fresh_process(head.peak_bytes, _problem(step, device, product), _variant(step))
        rows.append({"classes": step.classes, "batch": step.batch, "rate": step.rate, "inject": step.memory,
                     "state": state, "formula": state_bytes(step), "peak": peak})
    return rows


def backbone_rows(
    name: str, batches: Sequence[int], largest: int, repeats: int, device: str, size: int
) -> list[dict[str, Any]]:
    """Seconds of a forward and a backward, of a forward alone, and bytes at the peak, for each number of images."""
    rounds = [in_fresh_process(_backbone_steps, name, batches, device, size) for _ in range(repeats)]
    peaks = [in_fresh_process(_backbone_peak, name, batch, device, size) for batch in batches]
    rows = []
    for batch, peak, found in zip(batches, peaks, zip(*rounds, strict=True), strict=True):
        both, forward = (statistics.median(kind) for kind in zip(*found, strict=True))
        rows.append({"part": "backbone", "backbone": name, "batch": batch, "seconds": both, "forward": forward,
                     "bytes": peak, "terms": {REGRESSION: [float(batch), 1.0], FORMULA: [float(batch)]},
                     "held_out": batch > largest})
    return rows


def _backbone_steps(name: str, batches: Sequence[int], device: str, size: int) -> list[tuple[float, float]]:
    counted = 0 if device == "cuda" else 1
    found = []
    for batch in batches:
        both, alone = _backbone(name, batch, device, size)
        both()
        found.append((time_steps(both, 2, device)[counted], time_steps(alone, 2, device)[counted]))
    return found


def _backbone_peak(name: str, batch: int, device: str, size: int) -> int:
    _backbone(name, 2, device, size)[0]()  # loads the code that a step needs
    both, _ = _backbone(name, batch, device, size)
    before = memory_now(device)
    restart_high_water(device)
    both()
    return high_water(device) - before


def _backbone(name: str, batch: int, device: str, size: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A forward with its backward, and a forward alone."""
    if device == "cpu":
        torch.set_num_threads(1)
    network: Any = build(BackboneSettings(name, size)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.randn(batch, 3, IMAGE_SIDE, IMAGE_SIDE, device=device).to(memory_format=torch.channels_last)

    def forward() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            result: torch.Tensor = network(image)
            return result

    def alone() -> None:
        with torch.no_grad():
            forward()

    return lambda: forward().sum().backward(), alone
