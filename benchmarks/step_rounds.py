"""The turns that the contestants of benchmarks/step.py take: who is built when, warms up, and is timed.

All are built before any loader begins, since a CUDA graph cannot be captured while another thread uses the GPU. The
clock of a round starts on a drained loader: what it made while others had their turns is thrown away, or short rounds
would not wait for data. Who does not fit into a GPU's memory, in whatever turn, has no times, and leaves its room to
the others.
Proven by tests/benchmarks/test_step_rounds.py.
"""

import gc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import time_steps
from benchmarks.step_contestants import Contestant, Problem, Variant, build

WARM_UP = {"cpu": 2, "cuda": 12}
"""Steps before the first round: of a GPU some more, on which kernels are chosen, compiled and recorded."""
Ready = list[Contestant | None]
"""Contestants in their places; None in that of one that memory did not do for. Nothing else may hold one."""


def time_variants(
    problem: Problem, variants: list[Variant], rounds: int, seconds: float
) -> list[list[dict[str, float]]]:
    """Seconds of a step, of CPU time and of its parts, of each variant in each round; none where memory did not do."""
    shared: dict[str, Tensor] = {}
    ready: Ready = [built(problem, variant, shared) for variant in variants]
    places = range(len(ready))
    counts = [in_turn(ready, place, steps_a_round, seconds, problem.device) for place in places]
    found = [[in_turn(ready, place, time_round, counts[place], problem.device) for place in places]
             for _ in range(rounds)]
    return [[each[place] for each in found] if ready[place] else [] for place in places]


def built(problem: Problem, variant: Variant, shared: dict[str, Tensor]) -> Contestant | None:
    """The variant ready to run, or None where the GPU's memory does not do."""
    try:
        return build(problem, variant, shared)
    except torch.OutOfMemoryError:
        pass
    give_back_memory()
    return None


def in_turn(ready: Ready, place: int, turn: Callable[..., Any], *arguments: Any) -> Any:
    """`turn(contestant, *arguments)` of the one in this place; None where it has no room, or had none before."""
    if ready[place] is None:
        return None
    try:
        return turn(ready[place], *arguments)
    except torch.OutOfMemoryError:
        ready[place] = None
    give_back_memory()  # out here, where the error, whose traceback holds what the step had, is gone
    return None


def give_back_memory() -> None:
    """Free what nobody holds any more, for whoever comes next."""
    gc.collect()
    torch.cuda.empty_cache()


def steps_a_round(contestant: Contestant, seconds: float, device: str) -> int:
    """How many steps fill so many seconds, once it is warm."""
    time_steps(contestant.step, WARM_UP[device], device)
    return max(1, math.ceil(seconds / time_steps(contestant.step, 1, device)[0]))


def time_round(contestant: Contestant, count: int, device: str) -> dict[str, float]:
    """Seconds of a step, CPU seconds and seconds of its parts, means over `count` steps; "other" is what no part is."""
    contestant.clock.seconds()
    with contestant.around():
        contestant.drain()
        wall, cpu = time_steps(contestant.step, count, device)
    parts = {name: value / count for name, value in contestant.clock.seconds().items()}
    return {"step": wall, "cpu": cpu, **parts, "other": max(0.0, wall - sum(parts.values()))}
