"""SIGKILL of one rank and of all, in every phase of a save and at random steps: the same command goes on.

After each kill the run is started again and has to end as one that nothing interrupted: losses to the bit, every
tensor and number of the last save to the byte, and no more than one save interval done twice.
FAULT_STEPS in the environment asks for more random steps, FAULT_SEED for others.
"""

import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recognition.checkpoint import POINTS

sys.path.append(str(Path(__file__).parent))  # also for the processes that it starts
import fault_runs as runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SAVED = 15  # the save that is cut short: the third, which is the first to remove one
EVERYWHERE = ("snapshot", "rows begun", "rows written", "read back", "done")  # rank 0 alone comes by the others


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, small_set) -> Path:
    """A run on two ranks that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    ranks = runs.Ranks(runs.write_config(folder, small_set), 2)
    assert ranks.wait() == [0, 0], ranks.said()
    return folder


def _goes_on(folder: Path, config: Path, whole: Path, reached: int) -> int:
    """Run the same command again to the end; the step that it went on from."""
    (folder / "run" / "train.log").unlink(missing_ok=True)
    again = runs.Ranks(config, 2)
    assert again.wait() == [0, 0], again.said()
    start = int(re.findall(r"from step (\d+)", (folder / "run" / "train.log").read_text())[-1])
    # A save is begun every SAVED_EVERY steps and is done before the next one begins.
    assert start > reached - 2 * runs.SAVED_EVERY
    assert runs.steps_of(folder) == runs.steps_of(whole)
    assert runs.newest_state(folder) == runs.newest_state(whole)
    return start


@pytest.mark.parametrize(("point", "killed"), [
    *((point, (0,)) for point in POINTS), *((point, (1,)) for point in EVERYWHERE),
    *((point, (0, 1)) for point in ("rows begun", "read back", "done")),
])
def test_a_kill_in_every_phase_of_a_save(tmp_path, small_set, whole, point, killed):
    config = runs.write_config(tmp_path, small_set)
    ranks = runs.Ranks(config, 2, kill=runs.Kill(point, SAVED, killed))
    codes = ranks.wait()
    assert -signal.SIGKILL in codes, ranks.said()
    assert None not in codes, "a rank that outlived its peer did not end"
    _goes_on(tmp_path, config, whole, SAVED)


def _random_kills() -> list[tuple[int, int, float]]:
    """Seed, step and share of a step after it, from FAULT_STEPS (10) numbers."""
    count, seed = int(os.environ.get("FAULT_STEPS", 10)), int(os.environ.get("FAULT_SEED", 0))
    generator = np.random.default_rng(seed)
    return [(i, int(generator.integers(1, runs.STEPS - 1)), float(generator.uniform(0, 0.1))) for i in range(count)]


@pytest.mark.parametrize(("number", "step", "seconds"), _random_kills())
def test_a_kill_at_a_random_moment(tmp_path, small_set, whole, number, step, seconds):
    config = runs.write_config(tmp_path, small_set)
    ranks = runs.Ranks(config, 2)
    ranks.until(step)
    time.sleep(seconds)
    killed = [(0,), (1,), (0, 1)][number % 3]
    ranks.signal(signal.SIGKILL, killed)
    codes = ranks.wait()
    assert None not in codes, ranks.said()
    start = _goes_on(tmp_path, config, whole, step)
    print(f"step {step} + {1000 * seconds:.0f} ms, ranks {killed}: went on from {start}")
