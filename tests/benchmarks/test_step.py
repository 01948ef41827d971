"""The step's benchmark: an opponent that trains the same, figures that add up, a result with every field."""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import step, step_contestants, step_report
from benchmarks.baseline.step import UsualStep
from benchmarks.measure import PhaseClock
from benchmarks.step_contestants import ALONE, OURS, USUAL, Contestant, Problem, Variant, settings
from benchmarks.step_figures import add_figures, dense_peak
from recognition.assembly import Run, assemble
from recognition.backbones import build
from recognition.config import Config
from recognition.cpus import rank_environment
from recognition.data.batch import Batch, normalise
from recognition.data.recordio import RecordReader
from recognition.distributed import Ranks, gather_uneven_rows
from recognition.errors import SettingsError
from recognition.folding import pairs
from recognition.phases import PHASES
from recognition.train import train_step

SMALL = ("backbone.embedding_size=256", "data.reader=fallback")
LEARNING_RATE = 0.02


@pytest.fixture
def problem(small_set: Path) -> Problem:
    return Problem("tiny", 8, 12, 1.0, "arcface", "cpu", "fp32", str(small_set), resident=True, workers=0, threads=1,
                   overrides=SMALL)


def _run(ranks: Ranks, config: Config) -> tuple[Run, list[Batch]]:
    run = assemble(config, ranks)
    run.head.weight.mul_(30)
    return run, list(run.loader.batches(0, 3))


def _both(ranks: Ranks, config: Config) -> list[list[np.ndarray]]:
    """Losses of three steps, then the first one's gradients, as momenta, and weights: ours, then the usual step's."""
    run, batches = _run(ranks, config)
    other, _ = _run(ranks, config)
    usual = UsualStep(other.backbone, other.head.weight.clone(), other.dataset.num_classes, "arcface", ranks)
    losses: list[list[float]] = [[], []]
    tensors: list[list[np.ndarray]] = []
    for batch in batches:
        losses[0].append(train_step(run, batch, LEARNING_RATE).loss.item())
        losses[1].append(usual.step(normalise(batch.image), batch.label, LEARNING_RATE))
        tensors = tensors or [_mine(run), _theirs(usual)]
    return [[np.array(values), *those] for values, those in zip(losses, tensors, strict=True)]


def _mine(run: Run) -> list[np.ndarray]:
    state, momenta = run.head.state(), run.optimizer.state()
    head = [gather_uneven_rows(state[name], run.ranks) for name in ("weight", "velocity")]
    named = {name: p.detach() for name, p in run.backbone.named_parameters() if p.requires_grad}
    gradients = [momenta[f"{name}.momentum_buffer"] for name in named]
    return [x.numpy().copy() for x in (*head, _joined(named.values()), _joined(gradients))]


def _theirs(usual: UsualStep) -> list[np.ndarray]:
    head = [gather_uneven_rows(x.detach(), usual.ranks) for x in (usual.head.weight, usual.head.momentum)]
    trained = [p for p in usual.backbone.parameters() if p.requires_grad]
    momenta = [usual.sgd.state[p]["momentum_buffer"] for p in trained]
    return [x.numpy().copy() for x in (*head, _joined(trained), _joined(momenta))]


def _joined(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize("world", [1, 2])
def test_the_usual_step_trains_the_same(on_ranks, world, problem):
    """Loss, and in norm the weights and gradients of centres and backbone, to 1e-5."""
    config = settings(problem, Variant(OURS))
    for ours, theirs in on_ranks(world, _both, config):
        assert len(ours) == 5
        for mine, other in zip(ours, theirs, strict=True):
            assert np.linalg.norm(mine - other) <= 1e-5 * np.linalg.norm(other)


@pytest.mark.parametrize("allowed", [False, True])
def test_the_usual_step_takes_tf32_where_ours_does(monkeypatch, allowed):
    """In fp32 a run forbids it; the baseline's convolutions must not be another precision's."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    backbone, seen = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 8)), []
    backbone.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    backbone.register_full_backward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    image = torch.randn(3, 4, requires_grad=True)  # for the hook of the backward
    UsualStep(backbone, torch.randn(5, 8), 5).step(image, torch.arange(3), LEARNING_RATE)
    assert seen == [allowed, allowed]
    assert torch.backends.cudnn.allow_tf32 == allowed


def test_rows_have_every_field_and_add_up(problem, tmp_path):
    variants = [Variant(ALONE), Variant(USUAL), Variant(OURS), Variant(OURS, "qaface"),
                Variant(OURS, overrides=("optimizer.implementation=foreach",))]
    times = step.time_variants(problem, variants, rounds=2, seconds=0.0)
    rows = [step.row(problem, variant, rounds, (3 << 20, 1 << 20))
            for variant, rounds in zip(variants, times, strict=True)]
    add_figures(rows, peak=1.0)
    for row in rows:
        parts = row["breakdown_ms"]
        assert set(parts) - {"data wait", "other"} <= set(PHASES)
        assert min(parts.values()) >= 0
        assert parts["other"] < 0.5 * row["milliseconds"]
        assert sum(parts.values()) == pytest.approx(max(row["rounds_ms"]), rel=1e-3)  # of two rounds the slower one
        assert row["images_per_second"] == pytest.approx(8e3 / row["milliseconds"])
        assert (row["peak_mib"], row["state_mib"]) == (3, 1)
    alone, usual, ours, injected, changed = rows
    assert (usual["speed_over_baseline"], alone["time_over_alone"], ours["time_over_no_injection"]) == (1, 1, 1)
    assert injected["time_over_no_injection"] == pytest.approx(
        np.median(np.divide(injected["rounds_ms"], ours["rounds_ms"])))
    assert changed["name"] == "ours, optimizer.implementation=foreach"
    assert alone["breakdown_ms"]["head"] < ours["breakdown_ms"]["head"] < ours["milliseconds"]
    assert injected["breakdown_ms"]["momentum forward"] > 0 < injected["breakdown_ms"]["memory write"]
    result = {"date": "", "command": "step.py", "commit": "0123456789", "versions": {"torch": "2"}, "device": "CPU",
              "threads": 1, "precision": "fp32", "peak_tflops": 1.0, "peak_source": "given", "rows": rows}
    table = [line for line in step_report.markdown(result).splitlines() if line.startswith("| tiny")]
    assert len(table) == 2 * len(rows)
    step_report.plot(rows, tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 1000


@pytest.mark.parametrize(("name", "peak"), [
    ("NVIDIA H200", 790), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L40S", 362),
    ("Tesla V100-SXM2-16GB", 125),
    ("NVIDIA GH200 480GB", None), ("NVIDIA L40", None), ("CPU, 2 cores", None),  # other models
    ("NVIDIA H100 PCIe", None), ("NVIDIA A100-PCIE-40GB", None), ("NVIDIA H100 NVL", None),  # cards
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
])
def test_a_gpus_peak_is_found_by_its_name(name, peak):
    assert dense_peak(name) == peak


def test_the_head_counts_as_operations_and_injection_as_a_forward(problem):
    rows = [step.row(problem, variant, [], (None, None))
            for variant in (Variant(ALONE), Variant(OURS), Variant(OURS, "vpl"), Variant(OURS, "qaface"))]
    add_figures(rows, peak=2.0)
    alone, ours, vpl, qaface = (row["giga_flops_per_image"] for row in rows)
    assert alone == pytest.approx(6 * rows[0]["giga_macs"])
    assert ours - alone == pytest.approx(6 * 12 * 256 / 1e9)
    assert vpl == ours
    assert qaface - ours == pytest.approx(2 * rows[0]["giga_macs"])
    assert rows[0]["floor_images_per_second"] == pytest.approx(2000 / alone)
    assert rows[0]["images_per_second"] is None
    assert "no room" in step_report.steps_table(rows)[2]


def test_a_floor_is_of_the_settings_that_are_measured(problem):
    """Of --each too: another embedding size has other operations, and injection without a momentum backbone fewer."""
    online = ("head.inject.source=online", "head.inject.norm_source=online")
    short = Variant(OURS, overrides=("backbone.embedding_size=64",))
    variants = (Variant(OURS), short, Variant(OURS, "qaface", online))
    rows = [step.row(problem, variant, [], (None, None)) for variant in variants]
    add_figures(rows, peak=1.0)
    plain, short_row, online_row = rows
    assert (plain["embedding_size"], short_row["embedding_size"]) == (256, 64)
    assert short_row["giga_macs"] < plain["giga_macs"]
    assert short_row["giga_flops_per_image"] == pytest.approx(6 * short_row["giga_macs"] + 6 * 12 * 64 / 1e9)
    assert online_row["giga_flops_per_image"] == plain["giga_flops_per_image"]


@pytest.mark.parametrize("override", [
    "batch_size=64", "backbone.name=tiny", "precision=bf16", "head.margin=cosface", "head.sample_rate=0.1",
    "head.inject=vpl", "data.root=folder", " data.threads=3",
])
@pytest.mark.parametrize("option", ["--set", "--each"])
def test_what_has_an_option_is_refused_elsewhere(problem, option, override):
    """The row would say what the option says, and the floor and the baseline go by it."""
    name = override.strip().partition("=")[0]
    said = f"{name} has an option of its own.*use {step_contestants.OPTIONS[name]}"
    with pytest.raises(SettingsError, match=said):
        step.parse([option, "micro_batches=2", override])
    with pytest.raises(SettingsError, match=said):
        settings(problem, Variant(OURS, overrides=(override,)))


def test_all_other_settings_may_be_given(problem):
    each = ("micro_batches=2", "speed.fold=on", "head.inject.strength=0.5", "head.margin.m=0.4",
            "optimizer.implementation=foreach", "backbone.embedding_size=64")
    assert step.parse(["--set", *each]).overrides == list(each)
    found = settings(problem, Variant(OURS, "qaface", each))
    assert (found.micro_batches, found.backbone.embedding_size, found.head.inject.strength) == (2, 64, 0.5)


def test_nothing_is_compiled_on_a_cpu_but_where_it_is_asked_for(problem):
    """Auto goes by the length of a run; a GPU's row is what a run there does."""
    blocks = Variant(OURS, overrides=("speed.compile=blocks",))
    assert [settings(problem, variant).speed.compile for variant in (Variant(OURS), blocks)] == ["off", "blocks"]
    asked = dataclasses.replace(problem, overrides=("speed.compile=whole",))
    assert settings(asked, Variant(OURS)).speed.compile == "whole"
    assert settings(dataclasses.replace(problem, device="cuda"), Variant(OURS)).speed.compile == "auto"
    rows = [step.row(problem, each, [], (None, None)) for each in (blocks, dataclasses.replace(blocks, kind=USUAL))]
    assert [row["compile"] for row in rows] == ["blocks", "off"]


def test_the_state_has_the_folded_weights_too(problem):
    """Once: the folded copy shares every other tensor with the momentum backbone."""
    on, off = (step_contestants.build(problem, Variant(OURS, "qaface", (f"speed.fold={fold}",))).state
               for fold in ("on", "off"))
    backbone = build(settings(problem, Variant(OURS)).backbone)
    sizes = [backbone.get_submodule(read).weight.numel() + backbone.get_submodule(norm).bias.numel()
             for read, norm in pairs(backbone, torch.empty(2, 3, 112, 112, device="meta"))]
    assert on - off == 4 * sum(sizes) > 0


@pytest.mark.parametrize(("variant", "expected"), [
    (Variant(OURS), 900 - 300), (Variant(OURS, overrides=("speed.graphs=true",)), 9000 - 3000),
    (Variant(USUAL, overrides=("speed.graphs=true",)), 900 - 300),
])
def test_a_peak_with_graphs_is_what_the_allocator_holds(problem, monkeypatch, variant, expected):
    """Their activations count as freed, so that tensors alone would leave them out."""
    events: list[str] = []
    for name, value in (("memory_allocated", 300), ("max_memory_allocated", 900), ("memory_reserved", 3000),
                        ("max_memory_reserved", 9000), ("reset_peak_memory_stats", None), ("empty_cache", None)):
        monkeypatch.setattr(torch.cuda, name, lambda name=name, value=value: events.append(name) or value)
    contestant = Contestant(lambda: events.append("step"), PhaseClock("cpu"), 7)
    monkeypatch.setattr(step, "build", lambda *_: events.append("built") or contestant)
    on_gpu = dataclasses.replace(problem, device="cuda")
    assert step.peak_of(on_gpu, variant, 2) == (expected, 7)
    kind = "reserved" if expected > 900 else "allocated"
    assert events == ["empty_cache", f"memory_{kind}", "built", "empty_cache", "reset_peak_memory_stats", "step",
                      "step", f"max_memory_{kind}"]


def test_presets_and_options():
    options = step.parse(["--preset", "gpu", "--batch", "64"])
    cases = list(step.cases(options))
    assert {case.batch for case in cases} == {64}
    assert {(case.backbone, case.classes) for case in cases if case.inject == "both"} >= {
        (name, step_report.TARGET_CLASSES) for name, _ in step_report.TARGETS}
    options = step.parse(["--preset", "cpu", "--backbone", "iresnet18", "--classes", "10000", "--each",
                          "micro_batches=2"])
    assert [case[2:] for case in step.cases(options)] == [(10_000, "both", ("speed.compile=blocks", "micro_batches=2"))]
    options = step.parse(["--backbone", "tiny", "--classes", "10", "20", "--inject", "both", "--injection", "vpl",
                          "--each", "micro_batches=2", "--kinds", "ours"])
    assert [case.classes for case in step.cases(options)] == [10, 20]
    names = [variant.name for variant in step.variants(next(iter(step.cases(options))), options)]
    assert names == ["ours", "ours, micro_batches=2", "ours, vpl", "ours, vpl, micro_batches=2"]
    with pytest.raises(SettingsError, match="its own classes"):
        step.parse(["--data", "folder", "--classes", "10"])


def test_made_pictures_have_the_classes_asked_for():
    with step.pictures("synthetic", 10_000_000, 20) as (folder, classes):
        reader = RecordReader(folder / "train.rec")
        assert classes == 10_000_000
        assert reader.size > 20 * 1000
        assert step.open_dataset(folder).num_classes == classes
        assert len(set(step.open_dataset(folder).labels.tolist())) == 20


@pytest.mark.slow
def test_the_command_writes_everything(tmp_path, capsys):
    out = tmp_path / "folder" / "step.json"
    step.main(["--backbone", "tiny", "--batch", "8", "--classes", "300", "--rounds", "1", "--seconds", "0", "--threads",
               "1", "--workers", "1", "--kinds", "baseline", "ours", "--inject", "off", "--set", *SMALL, "--json",
               str(out), "--markdown", str(tmp_path / "step.md"), "--plot", str(tmp_path / "step.png")])
    result = json.loads(out.read_text())
    assert {"date", "command", "commit", "versions", "device", "threads", "precision", "peak_tflops", "peak_source",
            "rows"} == set(result)
    assert [row["name"] for row in result["rows"]] == ["baseline", "ours"]
    weights = 300 * 256 * 4 / 2**20
    assert all(row["state_mib"] > 2 * weights and row["peak_mib"] > 1 for row in result["rows"])
    assert (tmp_path / "step.md").read_text().strip() in capsys.readouterr().out
    assert (tmp_path / "step.png").stat().st_size > 1000


def test_times_are_taken_as_ranks_are_launched(problem, monkeypatch):
    """What the user has set goes before it. Peaks count with malloc as it comes."""
    launched = rank_environment(1, {})
    for name in launched:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    seen = {}

    def in_this_process(function, *arguments):
        seen[function.__name__] = {name: os.environ.get(name) for name in launched}
        return function(*arguments)

    monkeypatch.setattr(step, "in_fresh_process", in_this_process)
    options = step.parse(["--rounds", "1", "--seconds", "0", "--threads", "1"])
    (row,) = step.measure(problem, [Variant(OURS)], options)
    bare = dict.fromkeys(launched) | {"OMP_NUM_THREADS": "7"}
    assert seen == {"time_variants": launched | {"OMP_NUM_THREADS": "7"}, "peak_bytes": bare}
    assert row["state_mib"] is not None


@pytest.mark.parametrize(("classes", "share"), [(1_000_000, 0.0315), (10_000, 0.9592)])
def test_the_memory_is_as_a_run_leaves_it(classes, share):
    """As 32,000 draws among the classes leave it."""
    drawn = len(set(np.random.default_rng(0).integers(0, classes, 32_000).tolist())) / classes
    assert step_contestants.fresh_share(32, classes, 1000) == pytest.approx(share, abs=1e-4)
    assert share == pytest.approx(drawn, rel=0.01)
    stamp = torch.zeros(classes, dtype=torch.int64)
    step_contestants.age(stamp, share)
    assert (stamp == 0).float().mean().item() == pytest.approx(share, rel=0.02)
    assert set(stamp.tolist()) == {0, -1}
