"""The scaling benchmark: its formulas against counted steps, its arithmetic, what it prints and writes."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import scaling, scaling_count
from benchmarks.scaling_fit import FORMULA, REGRESSION, fit, foretell, head_row
from benchmarks.scaling_model import (
    FOLLOW_PASSES,
    UPDATE_PASSES,
    Backbone,
    Collective,
    Hardware,
    Step,
    collectives,
    head_flops,
    head_traffic,
    memory,
    modelled,
    seconds,
    state_bytes,
)
from benchmarks.scaling_report import error_table
from recognition.backbones import BackboneSettings, build
from recognition.distributed import Ranks
from recognition.heads.sharded import ShardedHead
from recognition.momentum import MomentumBackbone, follow
from recognition.optimizer import BackboneOptimizer, OptimizerSettings

CLASSES, SIZE = 300, 32
COUNTED = [(1.0, False), (0.1, True)]


def _counts(ranks: Ranks, root: Path) -> list[dict]:
    return [scaling_count.count_steps(ranks, root, _step(ranks.world_size, *kind), "tiny") for kind in COUNTED]


def _seen(ranks: Ranks, root: Path) -> int:
    """Collectives that torch itself has seen in a step with everything on, the third: DDP lays its buckets before."""
    run = scaling_count.build_run(ranks, root, _step(ranks.world_size, 0.1, True), "tiny")
    batch = next(iter(run.loader.batches(0, 1)))
    for _ in range(2):
        scaling_count.train_step(run, batch, 0.0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        figures = scaling_count.train_step(run, batch, 0.0)
        run.guard.post(run.step, figures.bad)
    return sum(event.count for event in profile.key_averages() if event.key.startswith("c10d::"))


def _step(world: int, rate: float, inject: bool) -> Step:
    return Step(CLASSES, 16, world, rate, inject, inject, SIZE)


def _told(step: Step) -> dict:
    return {kind.name: (kind.calls, kind.num_bytes) for kind in collectives(step, _tiny())}


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_is_exchanged_equals_the_formulas_on_every_rank(on_ranks, tmp_path, world):
    root = scaling_count.write_set(tmp_path / "set", CLASSES)
    for found in on_ranks(world, _counts, root):
        assert [each["counted"] for each in found] == [_told(_step(world, *kind)) for kind in COUNTED]


@pytest.mark.slow
def test_no_exchange_escapes_the_count(on_ranks, tmp_path):
    root = scaling_count.write_set(tmp_path / "set", CLASSES)
    told = sum(calls for calls, _ in _told(_step(2, 0.1, True)).values())
    assert on_ranks(2, _seen, root) == [told, told]


@functools.cache
def _tiny() -> Backbone:
    return scaling_count.count_backbone("tiny", SIZE)


def test_one_rank_exchanges_nothing():
    assert collectives(Step(CLASSES, 16, 1), _tiny()) == []


def test_a_backbone_is_counted():
    """IResNet-18: 24.0 M parameters, 2.61 GMAC, as published tables have it; its floors on an H200."""
    found = scaling_count.count_backbone("iresnet18")
    assert found.parameters == pytest.approx(24.0e6, rel=0.002)
    assert found.parameters == sum(p.numel() for p in build(BackboneSettings("iresnet18")).parameters()
                                   if p.requires_grad)
    assert found.macs == pytest.approx(2.61e9, rel=0.001)
    assert sum(found.gradients) == 4 * found.parameters
    step, at_peak = Step(1, 1, 1), Hardware(efficiency=1.0, memory=float("inf"))
    assert 1 / seconds(step, found, at_peak)["backbone"] == pytest.approx(50_400, rel=0.003)
    assert 1 / seconds(step, found, Hardware(efficiency=1.0))["backbone"] == pytest.approx(26_800, rel=0.04)


READ_OR_WRITTEN = {"_foreach_norm": 1, "_foreach_mul_": 2, "_fused_sgd_": 5, "_foreach_zero_": 1, "_foreach_sub": 3,
                   "_foreach_add_": 3, "stack": 0}  # stack: of the norms, a number each


class _Passes(TorchDispatchMode):
    """Counts how often the tensors of all parameters are read or written, and the weights that are folded."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.parameters, self.count, self.folded = parameters, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], list) and len(args[0]) >= self.parameters:
            self.count += READ_OR_WRITTEN[func._schema.name.removeprefix("aten::")]
        self.folded += str(func) == "aten.mul.out"
        return func(*args, **(kwargs or {}))


def test_the_update_s_passes_are_the_optimizer_s():
    network = build(BackboneSettings("tiny", SIZE))
    optimizer = BackboneOptimizer(OptimizerSettings(), network.named_parameters())
    slow = MomentumBackbone(network, 0.99, fold=torch.empty(2, 3, 112, 112, device="meta"))
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    parameters = len(optimizer.named)
    with _Passes(parameters) as passes:
        optimizer.step(0.1, torch.tensor(True))
    assert passes.count == UPDATE_PASSES
    with _Passes(parameters) as passes, torch.no_grad():
        follow(slow._mine, slow._online, torch.tensor(0.01))  # as on a GPU
    assert passes.count + 2 == FOLLOW_PASSES  # and the folded weights, read and written:
    with torch.no_grad():
        slow._mine[0].mul_(2)
    with _Passes(parameters) as passes:
        slow._folded.refresh()
    assert passes.folded == len(slow._folded._folds) > 0


def test_what_a_momentum_backbone_adds():
    """A third of the backbone's time, its update, and two copies; what the update takes is less than activations."""
    backbone, plain, slow = _tiny(), Step(1000, 64, 1), Step(1000, 64, 1, momentum=True)
    one, both = (seconds(step, backbone, Hardware(efficiency=1.0, memory=1e12)) for step in (plain, slow))
    assert both["momentum forward"] == pytest.approx(both["backbone"] / 3)
    assert both["update"] - one["update"] == pytest.approx(4 * 10 * backbone.parameters / 1e12)
    room, slow_room = memory(plain, backbone), memory(slow, backbone)
    assert slow_room["backbone"] - room["backbone"] == 8 * backbone.parameters
    assert slow_room["activations"] == room["activations"]
    assert memory(Step(1000, 0, 1, momentum=True), backbone)["activations"] == 4 * backbone.parameters


def test_half_precision_keeps_about_half():
    fp32 = scaling_count.kept_bytes("tiny", SIZE, torch.float32)
    assert 1.3 * _tiny().kept < fp32 < 2.1 * _tiny().kept


@pytest.mark.parametrize("inject", [False, True])
def test_state_of_the_head_is_the_formula_s(tmp_path, inject):
    root = scaling_count.write_set(tmp_path / "set", CLASSES)
    for stored, name in ((4, "fp32"), (2, "bf16")):
        step = Step(CLASSES, 16, 1, 1.0, inject, inject, SIZE, stored)
        run = scaling_count.build_run(Ranks(), root, step, "tiny", (f"head.storage={name}",))
        assert isinstance(run.head, ShardedHead)
        assert state_bytes(step) == sum(tensor.nbytes for tensor in run.head.state().values())


def test_rows_used_are_the_head_s(tmp_path):
    root = scaling_count.write_set(tmp_path / "set", CLASSES)
    for rate, batch in ((1.0, 16), (0.2, 16), (0.01, 64)):
        step = Step(CLASSES, batch, 1, rate, size=SIZE)
        head = scaling_count.build_run(Ranks(), root, step, "tiny").head
        assert head.rows(torch.zeros(batch, dtype=torch.int64), 0).count == step.used


def test_runs_that_are_counted_are_not_compiled(tmp_path):
    """A thousand epochs would be long enough for speed.compile=auto."""
    root = scaling_count.write_set(tmp_path / "set", CLASSES)
    assert scaling_count.build_run(Ranks(), root, _step(1, 1.0, False), "tiny").config.speed.compile == "off"


def test_bytes_around_a_ring():
    assert Collective("gather_rows_later", 1, 800).moved(8) == 700
    assert Collective("sum of gradients", 1, 800).moved(8) == 1400
    assert Collective("sum of gradients", 1, 800).moved(1) == 0


def test_the_head_s_work_does_not_depend_on_the_number_of_gpus():
    """At the same images a GPU: classes a GPU fall as the global batch grows, 8·C·d flops an image."""
    backbone, hardware = _tiny(), Hardware(memory=float("inf"))
    rows = [modelled(Step(10_000_000, 128 * gpus, gpus), backbone, hardware) for gpus in (1, 8, 64)]
    heads = [row["seconds"]["head"] for row in rows]
    assert heads == pytest.approx([8 * 1e7 * 512 * 128 / 790e12 / 0.7] * 3)
    assert rows[0]["memory"]["classes"] == 64 * rows[2]["memory"]["classes"]
    assert rows[0]["moved"] == 0 < rows[1]["moved"] < rows[2]["moved"]


def test_gradients_hide_behind_the_backward():
    """Only what outlasts two thirds of the backbone is waited for."""
    backbone, step = _tiny(), Step(1000, 64, 2)
    exposed = [seconds(step, backbone, Hardware(link=link, latency=0.0))["exchange"] for link in (1e12, 1e6)]
    waited = sum(kind.moved(2) for kind in collectives(step, backbone) if kind.waited)
    assert exposed[0] == pytest.approx(waited / 1e12)
    every = sum(kind.moved(2) for kind in collectives(step, backbone)) / 1e6
    hidden = 2 / 3 * seconds(step, backbone, Hardware())["backbone"]
    assert exposed[1] == pytest.approx(every - hidden)


def test_memory_of_half_precision_rows():
    backbone = _tiny()
    full, half = (memory(Step(1_000_000, 64, 1, memory=True, stored=stored), backbone)["classes"] for stored in (4, 2))
    assert (full, half) == (6152e6, 3080e6)  # docs/heads.md: bytes a class, times a million


def test_a_fit_finds_the_constants_and_never_a_negative_one():
    terms = [[b * c, c, 1.0] for b in (8, 16, 32) for c in (1e3, 2e3, 4e3)]
    truth = np.array([2e-6, 5e-5, 0.25])
    np.testing.assert_allclose(fit(terms, np.asarray(terms) @ truth), truth, rtol=1e-9)
    assert (fit([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]], [1.0, 1.9, 2.7]) >= 0).all()
    falling = fit([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]], [3.0, 2.0, 1.0])
    assert falling[0] == 0 < falling[1]


def test_only_what_is_not_held_out_is_fitted():
    rows = [{"part": "it", "terms": {FORMULA: [x]}, "t": 2.0 * x, "held_out": x > 2} for x in (1.0, 2.0, 4.0)]
    rows[2]["t"] = 10.0
    last = foretell(rows, FORMULA, "t")[2]
    assert last["constants"] == pytest.approx([2.0])
    assert last["model"] == pytest.approx(8.0)
    assert last["error"] == pytest.approx(-0.2)
    assert last["what"] == "it: modelled formula"
    assert "model" not in rows[2]


def test_the_modelled_formula_is_judged_by_itself():
    """Of the head it has the two constants of the GPUs' table, however well a regression with more terms foretells."""
    steps = [Step(classes, batch, 1, memory=inject) for classes in (1000, 2000, 8000) for batch in (16, 32)
             for inject in (False, True)]
    flop, byte = 2e-12, 3e-11
    rows = [head_row(step, flop * head_flops(step) + byte * head_traffic(step) + 0.001, step.classes > 2000)
            for step in steps]
    rows += [head_row(step, 0.5, held_out=True, part="head among ranks") for step in steps[:1]]
    formula, regression = foretell(rows, FORMULA), foretell(rows, REGRESSION)
    assert [len(each[0]["constants"]) for each in (formula, regression)] == [2, 7]
    assert max(abs(row["error"]) for row in regression[:-1]) < 1e-6
    assert max(abs(row["error"]) for row in formula[:-1]) > 0.01  # it has no term for a call's millisecond
    table = error_table(formula + regression)
    assert [(row[0], row[1:4]) for row in table.rows] == [
        ("head: modelled formula", [2, 8, 4]), ("head among ranks: modelled formula", [2, 0, 1]),
        ("head: regression", [7, 8, 4]), ("head among ranks: regression", [7, 0, 1])]
    exact = [row | {"seconds": row["seconds"] - 0.001} for row in rows[:-1]]
    assert foretell(exact, FORMULA)[0]["constants"] == pytest.approx([flop, byte])


def test_the_model_alone(tmp_path, capsys):
    out = tmp_path / "out.json"
    scaling.main(["--no-measure", "--backbones", "tiny", "--classes", "1000000", "100000000", "--json", str(out)])
    result = json.loads(out.read_text())
    assert {row["is"] for row in result["modelled"]} == {"modelled"}
    assert len(result["modelled"]) == 2 * 3 * 2 * 2
    assert result["hardware"] == dataclasses.asdict(Hardware())
    printed = capsys.readouterr().out
    assert "MODELLED" in printed
    assert "MEASURED" not in printed


@pytest.mark.slow
def test_a_small_measurement(tmp_path, capsys):
    out, picture = tmp_path / "out.json", tmp_path / "plot.png"
    scaling.main(["--quick", "--repeats", "1", "--ranks", "2", "--size", "64", "--backbones", "tiny",
                  "--measured-backbone", "tiny", "--json", str(out), "--plot", str(picture)])
    assert picture.stat().st_size > 10_000
    measured = json.loads(out.read_text())["measured"]
    assert all(row["exact"] for row in measured["exchange"])
    assert {row["ranks"] for row in measured["exchange"]} == {2}
    assert all(row["state"] == row["formula"] for row in measured["head_memory"])
    for row in measured["times"]:
        assert row["seconds"] > 0 < row["model"]
    assert {row["what"] for row in measured["times"] if row["held_out"]} == {
        f"{part}: {kind}" for part in ("head", "head among ranks", "backbone") for kind in (FORMULA, REGRESSION)}
    printed = capsys.readouterr().out
    assert printed.count("MEASURED") == 4
    assert "what the fit had not seen" in printed
