"""run.sh when ranks hang, leave out an exchange, or are lost: who is named, and what is started again."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import fault_runs as runs

from recognition.status import read_status

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FAULT = """
# In one rank alone, and not in the launcher: a fault of the program.
import os
import recognition.train as _train
if os.environ.get("RANK") == "1":
    import __main__ as _main
    _step = _main.train_step
    def _faulty(run, batch, lr):
        if run.step == {step}:
            {action}
        return _step(run, batch, lr)
    _main.train_step = _faulty
"""


@pytest.fixture
def start(tmp_path, small_set):
    """Start `run.sh` on the small set; everything it leaves behind is killed at the end."""
    root, started = tmp_path / "set", []
    shutil.copytree(small_set, root)

    def begin(*arguments: str, step: int = 0, action: str = "", name: str = "config.py",
              **environment: str) -> subprocess.Popen[str]:
        config = runs.write_config(tmp_path, root)
        if action:
            config.write_text(config.read_text() + FAULT.format(step=step, action=action))
        config = config.rename(tmp_path / name)
        clean = {key: value for key, value in os.environ.items() if key not in ("MASTER_ADDR", "MASTER_PORT", "DEBUG")}
        active = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        process = subprocess.Popen(
            ["bash", str(ROOT / "run.sh"), str(config), *arguments], text=True, cwd=tmp_path, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=clean | active | {"NPROC": "2", "OMP_NUM_THREADS": "1"} | environment,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _alive(folder: Path) -> list[str]:
    """Processes that train this folder's run."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "recognition.train" in line and str(folder) in line]


def test_a_rank_that_hangs_is_named(start, tmp_path):
    process = start("--set", "timeout_seconds=6", step=7, action="import time; time.sleep(1000)")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 6, errors
    assert errors.count("error:") == 1
    assert re.search(r"rank 1 did not come: at step 7 it is in a step since \d+ s; the others wait", errors), errors
    assert _alive(tmp_path) == []
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_status"]) == ("failed", 6)


def test_a_rank_that_leaves_out_an_exchange_is_found(start, tmp_path):
    skip = "import recognition.heads.sharded as s; g = s.gather_rows; " \
           "s.gather_rows = lambda x, r: (setattr(s, 'gather_rows', g), x.repeat(2, *[1] * (x.ndim - 1)))[1]"
    process = start("--set", "timeout_seconds=6", step=7, action=skip)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 6, errors
    assert "rank " in errors
    assert _alive(tmp_path) == []


def test_an_unexpected_failure_is_started_again_and_a_known_one_is_not(start, tmp_path, small_set):
    once = f"import pathlib; p = pathlib.Path({str(tmp_path / 'met')!r}); p.exists() or (p.touch(), os._exit(9))"
    process = start("--max-restarts", "2", step=13, action=once)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "rank 1 ended with status 9" in errors
    assert errors.count("starting again") == 1
    assert re.findall(r"from step (\d+)", output)[-1] in ("5", "10")
    again = start("--max-restarts", "2", "--set", "seed=6", step=3,
                  action="raise _main.NumericsError('a known cause')", name="other.py")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 2, errors  # another seed than the run's
    assert "starting again" not in errors


def test_a_known_cause_is_never_started_again(start, tmp_path):
    process = start("--max-restarts", "3", step=3, action="raise _main.NumericsError('a known cause')")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 5, errors
    assert errors.count("a known cause") == 1
    assert "starting again" not in errors


def test_two_machines_one_is_lost_and_the_other_goes_on(start, tmp_path):
    """Two agents with a rank each; one's whole process tree is killed, and the run ends on what is left."""
    port = str(runs.free_port())
    shared = {"NNODES": "1:2", "NPROC": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    arguments = ("--max-restarts", "3", "--set", "timeout_seconds=15", "epochs=40", "checkpoint.every_steps=5")
    first = start(*arguments, NODE_RANK="0", **shared)
    second = start(*arguments, NODE_RANK="1", name="config.py", **shared)
    saves = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(saves.glob("step-0000000[1-9]*")):
        assert time.monotonic() < deadline, "no checkpoint"
        assert first.poll() is None, first.communicate()
        time.sleep(0.2)
    lost = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parents = {int(line.split()[0]): int(line.split()[1]) for line in lost.splitlines()[1:]}
    for process in (*(pid for pid, parent in parents.items() if parent == second.pid), second.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    output, errors = first.communicate(timeout=240)
    assert first.returncode == 0, errors
    assert "starting again" in errors or "machines joined or left" in errors
    assert re.findall(r"(\d+) ranks on cpu", output)[0] == "2"
    assert re.findall(r"(\d+) ranks on cpu", output)[-1] == "1"
    assert int(re.findall(r"from step (\d+)", output)[-1]) >= 10
    assert read_status(tmp_path / "run")["state"] == "finished"


def test_a_launcher_that_is_killed_takes_its_ranks_along(start, tmp_path):
    """They save and leave; meanwhile nobody else may write into the folder."""
    process = start("--set", "epochs=200")
    _until_saved(tmp_path, process)
    other = start("--set", "epochs=200")
    _, errors = other.communicate(timeout=120)
    assert other.returncode == 2, errors
    assert "another run is using this folder" in errors
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while _alive(tmp_path):
        assert time.monotonic() < deadline, _alive(tmp_path)
        time.sleep(0.2)
    assert read_status(tmp_path / "run")["state"] == "stopped"


def test_a_save_that_fails_at_a_stop_is_no_clean_stop(start, tmp_path):
    blocked = f"import pathlib; p = pathlib.Path({str(tmp_path / 'run' / 'checkpoints')!r}); p.touch(); " \
              "import signal; os.kill(os.getppid(), signal.SIGTERM)"
    process = start("--set", "checkpoint.every_steps=0", step=7, action=blocked)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 4, errors
    assert "checkpoints" in errors


def test_a_hangup_saves_too(start, tmp_path):
    process = start("--set", "epochs=200")
    _until_saved(tmp_path, process)
    os.kill(process.pid, signal.SIGHUP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 129, errors
    assert read_status(tmp_path / "run")["state"] == "stopped"


def test_a_port_that_is_taken_ends_with_6(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start(NNODES="2", NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(taken.getsockname()[1]))
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 6, errors
    assert "Traceback" not in errors


def _until_saved(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list((folder / "run" / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline, "no checkpoint"
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
