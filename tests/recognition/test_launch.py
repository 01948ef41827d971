"""run.sh from outside: the whole chain on a small set, and the exit status of each kind of failure."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from recognition import launch
from recognition.launch import put_aside
from recognition.machine import processor_key

ROOT = Path(__file__).resolve().parent.parent.parent

CONFIG = """
import os
from recognition.backbones import BackboneSettings
from recognition.config import *
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.optimizer import OptimizerSettings

def config():
    return Config(
        name="small", output={output!r}, batch_size=16, epochs=2, timeout_seconds=60,
        data=DataSettings({root!r}), backbone=BackboneSettings("tiny", 32), head=HeadSettings(ArcFace(s=16.0, m=0.3)),
        optimizer=OptimizerSettings(lr=0.05),
        evaluation=EvaluationSettings(("pairs",), degrade=(16,), every_epochs=1), log=LogSettings(every_steps=3),
    )

{more}
"""

CRASH = """
# In one rank alone, and not in the launcher: what a fault of the program would do.
if os.environ.get("RANK") == "1":
    import __main__ as train
    def assemble(*_):
        {action}
    train.assemble = assemble
"""


@pytest.fixture
def run(tmp_path, small_set):
    """Run `run.sh` on a config beside a copy of the small set, in folders with spaces; its finished process."""
    root = tmp_path / "a set"
    shutil.copytree(small_set, root)

    def begin(*arguments: str, more: str = "", **environment: str) -> subprocess.Popen[str]:
        config = tmp_path / "a config.py"
        config.write_text(CONFIG.format(output=str(tmp_path / "the runs"), root=str(root), more=more))
        clean = {key: value for key, value in os.environ.items() if key not in ("MASTER_ADDR", "MASTER_PORT", "DEBUG")}
        active = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        return subprocess.Popen(
            ["bash", str(ROOT / "run.sh"), str(config), *arguments], text=True, cwd=tmp_path, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=clean | active | {"NPROC": "2", "OMP_NUM_THREADS": "1"} | environment,
        )

    def start(*arguments: str, more: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        process = begin(*arguments, more=more, **environment)
        try:
            output, errors = process.communicate(timeout=240)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # nothing of a run outlives its test
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    start.begin = begin
    start.root, start.folder = root, tmp_path / "the runs" / "small"
    return start


@pytest.mark.timeout(600)
def test_whole_chain_and_going_on(run):
    first = run()
    assert first.returncode == 0, first.stderr
    assert "Traceback" not in first.stderr
    assert "FutureWarning" not in first.stderr
    for name in ("config.json", "metrics.jsonl", "train.log", "checkpoints", "model.onnx", "model_last.pt",
                 "model_best.pt", "evaluation.json"):
        assert (run.folder / name).exists(), name
    session = onnxruntime.InferenceSession(str(run.folder / "model.onnx"))
    for batch in (1, 7):
        images = np.zeros((batch, 3, 112, 112), np.float32)
        assert session.run(None, {session.get_inputs()[0].name: images})[0].shape == (batch, 32)
    results = json.loads((run.folder / "evaluation.json").read_text())
    assert [(row["set"], row["degrade"]) for row in results["verification"]] == [("pairs", None), ("pairs", 16)]
    assert results["parity"]["min_cosine"] > 0.99999
    assert results["sha256"] == _digests(run.folder)
    assert "accuracy, 20 pairs" in first.stdout
    # The same command again has nothing left to train, and exports and evaluates again.
    again = run()
    assert again.returncode == 0, again.stderr
    assert "from step 12" in again.stdout
    results["sha256"] = _digests(run.folder)  # the model file is written again: the same weights, not the same bytes
    assert json.loads((run.folder / "evaluation.json").read_text()) == results


def _digests(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.onnx", "model_last.pt")}


def test_settings_mistakes_end_with_2_before_anything_starts(run):
    result = run("--set", "epoch=3", "head.margin=arcfase")
    assert result.returncode == 2
    assert "nearest: epochs" in result.stderr
    assert "nearest: arcface" in result.stderr
    assert "Traceback" not in result.stderr
    assert not run.folder.exists()


def test_missing_evaluation_set_ends_with_2(run):
    result = run("--set", "evaluation.sets=pairs,lwf")
    assert result.returncode == 2
    assert "lwf" in result.stderr


@pytest.mark.parametrize(("damage", "status", "said"), [
    ("record", 3, "train.rec"), ("batch", 2, "not a positive multiple"),
])
def test_failure_of_the_ranks_keeps_its_status_and_is_told_once(run, damage, status, said):
    if damage == "record":
        data = bytearray((run.root / "train.rec").read_bytes())
        data[len(data) // 2 :] = b"\0" * (len(data) - len(data) // 2)
        (run.root / "train.rec").write_bytes(data)
    result = run(*(["--set", "batch_size=17"] if damage == "batch" else []))
    assert result.returncode == status, result.stderr
    assert result.stderr.count("error:") == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("action", "status", "said"), [
    ("raise RuntimeError('a bug')", 6, "rank 1: RuntimeError: a bug"),
    ("raise train.NumericsError('step 3: a known cause')", 5, "a known cause"),
    ("os._exit(9)", 6, "rank 1 ended with status 9"),
])
def test_one_rank_that_fails_ends_all_and_is_named(run, action, status, said):
    result = run(more=CRASH.format(action=action))
    assert result.returncode == status, result.stderr
    assert said in result.stderr
    assert result.stderr.count("error:") == 1
    assert "closed by peer" not in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_interrupted_run_goes_on_from_its_checkpoint(run):
    """As Ctrl-C does: a signal to the whole process group, in the middle of training."""
    arguments = ["--set", "epochs=40", "evaluation.every_epochs=0", "evaluation.degrade="]
    process = run.begin(*arguments)
    saves = run.folder / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(saves.glob("step-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on from step" in errors
    assert "Traceback" not in errors
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    started_from = int(re.findall(r"from step (\d+)", again.stdout)[-1])
    assert 0 < started_from < 240
    steps = [json.loads(line)["step"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 240


def test_fresh_puts_the_old_run_aside_without_deleting(tmp_path):
    folder = tmp_path / "run"
    for number in (1, 2):
        folder.mkdir()
        (folder / "x").write_text(str(number))
        put_aside(folder)
    assert [(tmp_path / f"run.old-{n}" / "x").read_text() for n in (1, 2)] == ["1", "2"]
    put_aside(folder)


def test_help_and_unknown_config(tmp_path):
    def sh(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "recognition.launch", *arguments], cwd=ROOT, capture_output=True,
                              text=True, check=False)

    usage = subprocess.run(["bash", "run.sh", "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--set" in usage
    assert "NPROC" in usage
    assert "wf4m_r100.py" in usage
    missing = sh("configs/dmo.py")
    assert missing.returncode == 2
    assert "near: demo.py" in missing.stderr
    assert sh("configs/lfw_tiny.py").returncode == 2  # data.root has to be given


@pytest.mark.parametrize("machines", [1, 2])
def test_ranks_keep_what_was_compiled_with_the_checkout_of_one_machine(monkeypatch, machines):
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "7"})
    monkeypatch.setattr(launch, "run_ranks", lambda *_: (0, ""))
    assert launch.launch(["-m", "nothing"], launch.Machines(machines, machines, 0, "", ""), 1, 0) == (0, "")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    kept = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    assert kept == (str(ROOT / "build" / "compiled" / processor_key()) if machines == 1 else None)
