"""A profiled run learns the same, and leaves a trace and a page; the page's arithmetic on traces made by hand."""

import gzip
import itertools
import json
from pathlib import Path

import pytest
import torch

from recognition.backbones import BackboneSettings
from recognition.config import CheckpointSettings, Config, DataSettings, EvaluationSettings, LogSettings
from recognition.distributed import Ranks
from recognition.errors import DataError, SettingsError
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.launch import main as launch
from recognition.memory import QAFace
from recognition.phases import PHASES
from recognition.profile_summary import BETWEEN, DATA_WAIT, covered, page, read_trace, self_times, summarise
from recognition.profile_summary import main as print_page
from recognition.profiling import WARM_UP, Profile
from recognition.status import write_status
from recognition.train import train

STEPS = 3


def _config(output: Path, root: Path, epochs: float = 2.5) -> Config:
    return Config(
        "run", output=str(output), batch_size=16, epochs=epochs, data=DataSettings(str(root), reader="fallback"),
        backbone=BackboneSettings("tiny", 32, dropout=0.2),
        head=HeadSettings(ArcFace(s=16.0), inject=QAFace(start_epoch=0.5)),
        evaluation=EvaluationSettings(every_epochs=0), log=LogSettings(every_steps=5, tensorboard=False),
        checkpoint=CheckpointSettings(every_epochs=1.5),
    )


def _train(ranks: Ranks, config: Config, profiled: int) -> list[float]:
    run = train(config, ranks, Profile(profiled))
    assert type(run.phases).__name__ == "Phases"
    lines = [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_profiled_run_learns_the_same_and_goes_on(on_ranks, tmp_path, small_set, world):
    plain = on_ranks(world, _train, _config(tmp_path / "plain", small_set), 0)[0]
    profiled = on_ranks(world, _train, _config(tmp_path / "profiled", small_set), STEPS)[0]
    assert profiled == plain
    assert len(plain) == 3
    assert not (tmp_path / "plain/run/profile").exists()
    folder = tmp_path / "profiled/run/profile"
    assert sorted(path.name for path in folder.iterdir()) == ["summary.json", "summary.txt", "trace_rank0.json.gz"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == STEPS
    shares = {phase["name"]: phase["share"] for phase in summary["phases"]}
    assert list(shares) == [DATA_WAIT, *PHASES, BETWEEN]
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values())
    assert summary["exchanges"]["calls"] == (0 if world == 1 else pytest.approx(9, abs=1))
    assert summary["device"] is None
    assert any("convolution" in row["name"] for row in summary["operators"])
    text = (folder / "summary.txt").read_text()
    assert text == page(summary)
    assert f"{STEPS} steps on rank 0" in text
    assert max(map(len, text.splitlines())) < 160 > len(text.splitlines())


def test_too_few_steps_left_end_before_anything_is_trained(tmp_path, small_set):
    config = _config(tmp_path, small_set, epochs=2)  # 12 steps
    with pytest.raises(SettingsError, match=rf"needs {WARM_UP + 3} steps.*has 12 left"):
        train(config, Ranks(), Profile(3))
    assert not (config.folder / "checkpoints").exists()


@pytest.mark.parametrize("steps", [-1, 1001])
def test_impossible_numbers(steps):
    with pytest.raises(SettingsError, match="expected 1 to 1000"):
        Profile(steps)


def test_a_finished_run_is_refused(tmp_path, small_set):
    config = tmp_path / "config.py"
    config.write_text(f"""
from recognition.config import *
def config():
    return Config("run", output={str(tmp_path)!r}, batch_size=16, data=DataSettings({str(small_set)!r}))
""")
    (tmp_path / "run").mkdir()
    write_status(tmp_path / "run", "finished")
    with pytest.raises(SettingsError, match="trained to its end"):
        launch([str(config), "--profile", "5"])
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "finished"
    with pytest.raises(SettingsError, match="a single run"):
        launch([str(config), "--seeds", "1", "2", "--profile", "5"])


def _event(name: str, cat: str, ts: float, dur: float, tid: int = 1, **args: object) -> dict:
    return {"ph": "X", "name": name, "cat": cat, "ts": ts, "dur": dur, "tid": tid, "args": args}


def _gpu_trace() -> list[dict]:
    """Two steps of 100 µs. The host launches early, the device ends 10 µs before the step."""
    correlation = itertools.count()
    events = []
    for begin in (1000.0, 1100.0):
        events += [_event(f"ProfilerStep#{begin:.0f}", "user_annotation", begin, 100),
                   _event(DATA_WAIT, "user_annotation", begin, 10),
                   _event("backbone forward", "user_annotation", begin + 10, 20),
                   _event("backward", "user_annotation", begin + 40, 20)]
        for host, start, dur, name in ((12, 20, 30, "conv"), (45, 60, 25, "conv"), (47, 85, 5, "Memcpy DtoH")):
            number = next(correlation)
            launched_by = 2 if host > 40 else 1  # autograd's own thread launches the backward
            events += [_event("cudaLaunchKernel", "cuda_runtime", begin + host, 1, launched_by, correlation=number),
                       _event(name, "gpu_memcpy" if "Memcpy" in name else "kernel", begin + start, dur, 7,
                              correlation=number)]
        events += [_event("cudaStreamSynchronize", "cuda_runtime", begin + 70, 20),
                   _event("aten::item", "cpu_op", begin + 68, 24),
                   _event("aten::_local_scalar_dense", "cpu_op", begin + 69, 22)]
    events += [_event("conv", "kernel", 500, 100, 7), _event("aten::item", "cpu_op", 1300, 5)]  # outside the steps
    return events


def test_a_gpu_s_trace():
    summary = summarise(_gpu_trace())
    assert (summary["steps"], summary["milliseconds"]) == (2, pytest.approx(0.1))
    phases = {phase["name"]: phase for phase in summary["phases"]}
    assert phases[DATA_WAIT]["share"] == pytest.approx(0.1)
    assert phases[BETWEEN]["share"] == pytest.approx(0.5)
    assert phases["backbone forward"]["device_milliseconds"] == pytest.approx(0.030)
    assert phases["backward"]["device_milliseconds"] == pytest.approx(0.030)
    device = summary["device"]
    assert (device["busy"], device["idle_share"]) == (pytest.approx(0.060), pytest.approx(0.4))
    assert device["longest_gap"] == pytest.approx(0.030)  # from 90 of the first step to 20 of the second
    assert device["launches"] == 3
    assert summary["waits_for_the_device"] == {"cudaStreamSynchronize": 1}
    assert (summary["copies_to_the_host"], summary["values_read"]) == (1, 1)
    assert [(row["name"], row["calls"]) for row in summary["kernels"]] == [("conv", 2), ("Memcpy DtoH", 1)]
    assert summary["kernels"][0]["milliseconds"] == pytest.approx(0.055)
    own = {row["name"]: row["milliseconds"] for row in summary["operators"]}
    assert own == {"aten::_local_scalar_dense": pytest.approx(0.022), "aten::item": pytest.approx(0.002)}
    assert "idle 0.04 ms (40%)" in page(summary)


def test_a_kernel_that_waits_for_other_ranks_is_no_work():
    """In each step 10 µs beside convolutions and 10 beside nothing: not idle, and not busy either."""
    waits = [_event("ncclDevKernel_AllReduce", "kernel", begin + 45, 20, 8) for begin in (1000.0, 1100.0)]
    waits += [_event("nccl:all_reduce", "user_annotation", begin + 42, 1) for begin in (1000.0, 1100.0)]
    before, summary = summarise(_gpu_trace()), summarise([*_gpu_trace(), *waits])
    assert summary["device"]["busy"] == before["device"]["busy"]
    assert summary["device"]["only_exchanging"] == pytest.approx(0.010)
    assert summary["device"]["idle"] == pytest.approx(before["device"]["idle"] - 0.010)
    assert summary["exchanges"] == {"calls": 1, "milliseconds": pytest.approx(0.020)}


def test_self_times_leave_out_what_was_called():
    events = [_event("a", "cpu_op", 0, 100), _event("b", "cpu_op", 10, 30), _event("c", "cpu_op", 20, 10),
              _event("b", "cpu_op", 50, 50), _event("a", "cpu_op", 5, 10, tid=2)]
    total: dict[str, float] = {}
    for name, own in self_times(events):
        total[name] = total.get(name, 0) + own
    assert total == {"a": 20 + 10, "b": 20 + 50, "c": 10}


def test_time_covered_counts_once():
    events = [_event("", "", ts, dur) for ts, dur in ((0, 10), (5, 10), (30, 5), (31, 1), (90, 20))]
    assert covered(events, 2, 100) == 13 + 5 + 10


def test_the_page_of_any_trace(tmp_path, capsys):
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": [*_gpu_trace(), {"ph": "M"}]}).encode()))
    print_page([str(path)])
    assert "2 steps on rank 0" in capsys.readouterr().out
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(path.read_bytes()[:50])
    for bad in (cut, tmp_path / "missing.json"):
        with pytest.raises(DataError, match="no trace"):
            read_trace(bad)
    with pytest.raises(DataError, match="no annotated steps"):
        summarise([_event("aten::mm", "cpu_op", 0, 1)])


@pytest.mark.gpu
def test_a_run_on_a_gpu_shows_its_kernels(tmp_path, small_set):
    config = _config(tmp_path, small_set)
    train(config, Ranks(device=torch.device("cuda")), Profile(STEPS))
    summary = json.loads((config.folder / "profile/summary.json").read_text())
    assert summary["kernels"]
    assert 0 < summary["device"]["busy"] < summary["milliseconds"]
    busy = {phase["name"]: phase["device_milliseconds"] for phase in summary["phases"]}
    assert min(busy["backbone forward"], busy["backward"], busy["head"]) > 0
    assert sum(busy.values()) == pytest.approx(sum(row["milliseconds"] for row in summary["kernels"]), rel=0.5)
