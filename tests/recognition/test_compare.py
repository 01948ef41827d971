"""Comparisons: which runs they are, what the table says, and that the same command survives a stop."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recognition.compare import machine_shares, members, summary, tables
from recognition.errors import DataError, SettingsError
from recognition.finish import evaluated_run

ROOT = Path(__file__).resolve().parent.parent.parent

CONFIG = """
from recognition.backbones import BackboneSettings
from recognition.config import *
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings

def config():
    return Config(
        name={name!r}, output={output!r}, batch_size=16, epochs={epochs}, timeout_seconds=60,
        data=DataSettings({root!r}), backbone=BackboneSettings("tiny", 32), head=HeadSettings(ArcFace(s=16.0, m=0.3)),
        evaluation=EvaluationSettings(("pairs",), degrade=(8,), every_epochs=0), log=LogSettings(every_steps=3),
    )

{more}
"""
VARIANTS = """
def variants():
    return {"plain": (), "vpl": ("head.inject=vpl", "head.inject.start_epoch=0")}
"""


def _config(folder: Path, root: str | Path, name: str = "small", epochs: float = 2, more: str = "") -> str:
    path = folder / f"{name}.py"
    path.write_text(CONFIG.format(name=name, output=str(folder / "runs"), root=str(root), epochs=epochs, more=more))
    return str(path)


def _finish(member, accuracy: float) -> None:
    """Leave what a finished run leaves, and figures that an earlier evaluation may have asked for."""
    folder = member.config.folder
    folder.mkdir(parents=True)
    rows = [{"set": "pairs", "degrade": side, "accuracy": accuracy - (0.1 if side else 0)} for side in (None, 8, 4)]
    results = {"run": evaluated_run(member.config), "verification": rows, "ijb": {}}
    (folder / "evaluation.json").write_text(json.dumps(results))


def test_members_are_configs_by_variants_by_seeds_seed_by_seed(tmp_path):
    paths = [_config(tmp_path, "x", more=VARIANTS), _config(tmp_path, "x", name="other", epochs=3)]
    names = [member.config.name for member in members(paths, [3, 4], [])]
    assert names == [f"{label}_seed{seed}" for seed in (3, 4) for label in ("small_plain", "small_vpl", "other")]
    first, second, *_ = members(paths, [3], ["batch_size=8"])
    assert (first.config.seed, first.config.batch_size, first.config.head.inject.is_on) == (3, 8, False)
    assert second.config.head.inject.is_on
    assert [member.config.name for member in members(paths[1:], [], [])] == ["other"]
    assert [member.label for member in members(paths, [1], [], single=True)] == ["small", "other"]


def test_runs_that_would_share_a_folder_are_refused(tmp_path):
    path = _config(tmp_path, "x")
    with pytest.raises(SettingsError, match="share a folder"):
        members([path, path], [0], [])


def test_an_override_that_undoes_the_variants_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="small_vpl_seed0 would train the same as small_plain_seed0"):
        members([_config(tmp_path, "x", more=VARIANTS)], [0], ["head.inject=none"])


def test_a_member_is_finished_when_exactly_its_settings_were_evaluated(tmp_path, small_set):
    path = _config(tmp_path, small_set)
    (member,) = members([path], [0], [])
    assert not member.is_finished
    _finish(member, 0.9)
    assert member.is_finished

    def finished(*overrides: str) -> bool:
        return members([path], [0], list(overrides))[0].is_finished

    assert finished("log.every_steps=9", "evaluation.degrade=")
    assert not finished("epochs=3")
    assert not finished("evaluation.degrade=8,16")
    copied = tmp_path / "copy"
    shutil.copytree(small_set, copied)
    assert not finished(f"data.root={copied}")  # its pairs.bin is another file
    assert finished(f"data.root={copied}", f"evaluation.sets={small_set / 'pairs.bin'}")
    with (copied / "pairs.bin").open("ab") as file:
        file.write(b" ")
    assert not finished(f"evaluation.sets={copied / 'pairs.bin'}")


def test_table_is_mean_and_deviation_over_seeds_and_paired_differences(tmp_path, small_set):
    paths = [_config(tmp_path, small_set), _config(tmp_path, small_set, name="other", epochs=3)]
    every = members(paths, [0, 1, 2], [])
    of_first, of_other = [0.80, 0.84, 0.91], [0.82, 0.87, 0.92]
    for member in every:
        _finish(member, (of_first if member.label == "small" else of_other)[member.config.seed])
    result = summary(every, [member.config.name for member in every])
    figure = result["figures"]["small"]["pairs"]
    assert figure["mean"] == pytest.approx(np.mean(of_first))
    assert figure["deviation"] == pytest.approx(np.std(of_first, ddof=1))
    assert set(result["figures"]["other"]) == {"pairs", "pairs 8×8"}
    assert result["figures"]["other"]["pairs 8×8"]["mean"] == pytest.approx(np.mean(of_other) - 0.1)
    gain = result["differences"]["other"]["pairs"]
    assert gain["mean"] == pytest.approx(0.02)
    assert gain["error"] == pytest.approx(0.01 / np.sqrt(3))
    assert gain["seeds"] == 3
    means, gains = map(str, tables(result))
    assert "0.8500 ± 0.0557" in means
    assert "+0.0200 ± 0.0058" in gains


def test_one_seed_has_no_deviation_and_unfinished_runs_leave_a_gap(tmp_path, small_set):
    paths = [_config(tmp_path, small_set), _config(tmp_path, small_set, name="other", epochs=3)]
    every = members(paths, [], [])
    _finish(every[0], 0.75)
    means, *more = tables(summary(every, ["small"]))
    assert "0.7500 |" in str(means)
    assert "–" in str(means)
    assert more == []


def test_gpus_are_shared_by_their_visible_names(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7,-1,5")
    assert [share["CUDA_VISIBLE_DEVICES"] for share in machine_shares(2)] == ["4,7", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [share["NPROC"] for share in machine_shares(2)] == ["2", "1"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_shares_split_the_cores():
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    shares = machine_shares(2)
    assert sorted(int(core) for share in shares for core in share["cores"].split(",")) == cores
    with pytest.raises(SettingsError, match="expected 1 to the number"):
        machine_shares(len(cores) + 1)


def _begin(*arguments: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("MASTER_ADDR", "MASTER_PORT", "DEBUG")}
    return subprocess.Popen(
        [sys.executable, "-m", "recognition.launch", *arguments], text=True, cwd=ROOT, start_new_session=True,
        env=clean | {"NPROC": "1", "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )


def test_comparison_is_stopped_goes_on_and_is_not_repeated(tmp_path, small_set):
    """A stop after the first member; the same command then runs the second alone and writes one table."""
    path = _config(tmp_path, small_set, more=VARIANTS)
    process = _begin(path)
    first, second = tmp_path / "runs" / "small_plain", tmp_path / "runs" / "small_vpl"
    try:
        deadline = time.monotonic() + 200
        while not (second / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143
    stamp = (first / "evaluation.json").stat().st_mtime_ns

    again = _begin(path, "--side-by-side", "1")
    output, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert "2 runs, 1 of them finished already" in output
    assert (first / "evaluation.json").stat().st_mtime_ns == stamp
    result = json.loads((tmp_path / "runs" / "small_plain+small_vpl.comparison.json").read_text())
    assert set(result["figures"]) == {"small_plain", "small_vpl"}
    assert set(result["figures"]["small_vpl"]) == {"pairs", "pairs 8×8"}
    assert result["failed"] == {}


def test_a_failing_member_does_not_keep_the_others_from_running(tmp_path, small_set):
    damaged = tmp_path / "damaged"
    shutil.copytree(small_set, damaged)
    (damaged / "train.rec").write_bytes(b"no records at all")
    bad = _config(tmp_path, damaged, name="bad")
    good = _config(tmp_path, small_set, name="good", epochs=0.5)
    process = _begin(bad, good, "--side-by-side", str(min(2, len(os.sched_getaffinity(0)))))
    output, errors = process.communicate(timeout=240)
    assert process.returncode == DataError.status
    assert "bad: failed with status 3" in errors
    assert (tmp_path / "runs" / "good" / "evaluation.json").exists()
    if len(os.sched_getaffinity(0)) > 1:
        assert "bad: failed, status 3: error: " in output


def test_what_is_missing_is_told_once_and_spares_earlier_results(tmp_path, small_set):
    path = _config(tmp_path, small_set, more=VARIANTS)
    process = _begin(path, "--set", "evaluation.sets=nope")
    output, errors = process.communicate(timeout=100)
    assert process.returncode == SettingsError.status
    assert errors.count("nope") == 3  # the places where it was looked for
    assert "runs" not in output
    assert not list(tmp_path.glob("runs/*.comparison.json"))


@pytest.mark.parametrize(
    "made", ["{}", "['a', 'b']", "{'a': 'seed=1'}", "{1: ()}", "1 / 0"],
)
def test_variants_that_are_none_are_a_settings_error(tmp_path, made):
    path = _config(tmp_path, "x", more=f"def variants():\n    return {made}")
    with pytest.raises(SettingsError, match=r"variants\(\)"):
        members([path], [], [])


def test_a_seed_given_twice_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="given twice"):
        members([_config(tmp_path, "x")], [1, 1], [])
