"""The turns of the step's contestants: built before any loader begins, timed on drained ones, dropped without room."""

import dataclasses
import itertools
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import step_contestants, step_rounds
from benchmarks.measure import PhaseClock
from benchmarks.step_contestants import ALONE, OURS, USUAL, Contestant, Problem, Supply, Variant
from recognition.assembly import assemble
from recognition.data.fallback import FallbackLoader
from recognition.data.loader import make_loader
from recognition.data.plan import Plan
from recognition.distributed import Ranks


@pytest.fixture
def problem(small_set: Path) -> Problem:
    return Problem("tiny", 8, 12, 1.0, "arcface", "cpu", "fp32", str(small_set), resident=False, workers=0, threads=1,
                   overrides=("backbone.embedding_size=64", "data.reader=fallback"))


def test_the_clock_starts_on_a_drained_loader(monkeypatch):
    """Two batches are ready when a round begins: neither is taken while the clock runs."""
    events: list[Any] = []
    taking = iter(range(100))
    supply = Supply(lambda: (events.append(number) or number for number in taking), ahead=2, resident=False)

    @contextmanager
    def around() -> Iterator[None]:
        events.append("around")
        yield

    def timed(step: Callable[[], object], count: int, device: str) -> tuple[float, float]:
        events.append("clock")
        for _ in range(count):
            step()
        return 1.0, 1.0

    contestant = Contestant(lambda: next(supply), PhaseClock("cpu"), 0, supply.drain, around)
    contestant.step()
    monkeypatch.setattr(step_rounds, "time_steps", timed)
    for _ in range(2):
        step_rounds.time_round(contestant, 2, "cpu")
    assert events == [0, "around", 1, 2, "clock", 3, 4, "around", 5, 6, "clock", 7, 8]


def test_a_resident_batch_is_taken_once():
    begun = itertools.count()
    supply = Supply(lambda: iter(lambda: next(begun), None), ahead=2, resident=True)
    assert next(begun) == 0
    assert [next(supply), next(supply)] == [1, 1]
    supply.drain()
    assert next(begun) == 2


@pytest.mark.parametrize("kind", ["fallback", "dali"])
def test_our_loaders_have_no_more_ready_than_is_drained(problem, monkeypatch, kind):
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    planned, plan_batch = [], Plan.batch
    monkeypatch.setattr(Plan, "batch", lambda plan, number: planned.append(number) or plan_batch(plan, number))
    run = assemble(step_contestants.settings(problem, Variant(OURS)), Ranks())
    batches = make_loader(kind, run.dataset, run.plan, run.ranks.device, 1).batches(0, 100)
    ahead = []
    for taken in range(1, 4):
        next(batches)
        time.sleep(0.2)
        ahead.append(len(planned) - taken)
    batches.close()
    assert 0 < max(ahead) <= step_contestants.AHEAD


@pytest.mark.parametrize("resident", [False, True])
def test_all_are_built_before_a_loader_begins(problem, monkeypatch, resident):
    """What a loader does on a GPU would break the capture of a CUDA graph, which happens in `build`."""
    events: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: events.append(name) or function(*given, **named)

    monkeypatch.setattr(step_rounds, "build", noted("built", step_rounds.build))
    monkeypatch.setattr(FallbackLoader, "batches", noted("begun", FallbackLoader.batches))
    monkeypatch.setattr(step_contestants, "usual_batches", noted("begun", step_contestants.usual_batches))
    variants = [Variant(ALONE), Variant(USUAL), Variant(OURS), Variant(OURS, "qaface")]
    found = step_rounds.time_variants(dataclasses.replace(problem, resident=resident), variants, 1, 0.0)
    assert events == ["built"] * 4 + ["begun"] * 4
    assert [len(times) for times in found] == [1] * 4


class _Crowd:
    """Three contestants that hold a tensor each; the second runs out of memory, in `build` or at a step."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.tensors: list[weakref.ref] = []
        self.alive: list[int] = []
        """Tensors that were there at each step of the third."""

    def build(self, *_: Any) -> Contestant:
        number, steps, tensor = len(self.tensors), itertools.count(), torch.zeros(3)
        self.tensors.append(weakref.ref(tensor))

        def step() -> None:
            tensor.add_(1)
            if number == 1 and next(steps) == self.at:
                raise torch.OutOfMemoryError
            if number == 2:
                self.alive.append(sum(each() is not None for each in self.tensors))

        if number == 1 and self.at < 0:
            raise torch.OutOfMemoryError
        return Contestant(step, PhaseClock("cpu"), 0)


@pytest.mark.parametrize(("at", "alive"), [
    (-1, [2] * 6),  # in `build`
    (0, [2] * 6),  # while it warms up, before the third one does: two steps and one to tell their number
    (4, [3] * 4 + [2] * 2),  # in the second round
])
def test_who_has_no_room_has_no_times_and_leaves_it(problem, monkeypatch, at, alive):
    crowd = _Crowd(at)
    monkeypatch.setattr(step_rounds, "build", crowd.build)
    found = step_rounds.time_variants(problem, [Variant(OURS)] * 3, 3, 0.0)
    assert [len(times) for times in found] == [3, 0, 3]
    assert crowd.alive == alive


def test_each_is_tuned_as_its_own_settings_say(problem, monkeypatch):
    """Not as those of the one that was built last: torch has one switch for all."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    seen, shared = [], {}
    train = step_contestants.train_step
    monkeypatch.setattr(step_contestants, "train_step",
                        lambda *given: seen.append(torch.backends.cudnn.benchmark) or train(*given))
    each = [step_contestants.build(problem, Variant(OURS, overrides=(f"speed.tune={tune}",)), shared)
            for tune in ("true", "false")]
    for contestant in each:
        contestant.step()
    assert seen == [True, False]
