"""Which saves stay: the newest, the best, and every so many steps one.

Removing is the last thing that a save does, after it was read back.
Proven by tests/recognition/checkpoint/test_keep.py.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from recognition.checkpoint.layout import STATE, STEP, read_json, unfinished_folder
from recognition.checkpoint.saved import saves
from recognition.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keep:
    """What stays of the saves of a run.

    last: so many of the newest, 0: all.  best: also the one with the highest score, the first of equals.
    every_steps: k; of the saves from step k on, the first in each k steps stays for good; 0: none does.
    """

    last: int = 2
    best: bool = True
    every_steps: int = 0

    def steps(self, scores: Mapping[int, float | None]) -> set[int]:
        """The steps whose saves stay, of all: their scores by step, None where a save has none."""
        steps = sorted(scores)
        if not self.last:
            return set(steps)
        kept = set(steps[-self.last :])
        if self.best:
            known = {step: score for step in steps if (score := scores[step]) is not None}
            kept |= {max(known, key=lambda step: (known[step], -step))} if known else set()
        if self.every_steps:
            first_in: dict[int, int] = {}
            for step in steps:
                first_in.setdefault(step // self.every_steps, step)
            kept |= {step for interval, step in first_in.items() if interval}
        return kept


def prune(folder: Path, keep: Keep, newest: int, removing: Callable[[], None]) -> None:
    """Remove the saves that `keep` does not, of those up to step `newest`, which was just read back; by one rank.

    Later ones, which a run that fell back has passed over, are left alone.  removing: called before each removal.
    """
    by_step = {step: path for path in saves(folder) if (step := _step(path)) <= newest}
    for step in sorted(by_step.keys() - keep.steps({step: score_of(path) for step, path in by_step.items()})):
        removing()
        try:
            # One that is killed half removed must not look like a save that was damaged.
            shutil.rmtree(by_step[step].rename(unfinished_folder(folder, step)))
        except OSError as error:
            log.warning("%s: an old checkpoint cannot be removed: %s", by_step[step], error)


def score_of(save: Path) -> float | None:
    """The score that was given with a save; None when it has none, or cannot be read."""
    try:
        score = read_json(save / STATE).get("score")
    except CheckpointError:
        return None
    return float(score) if isinstance(score, int | float) and not isinstance(score, bool) else None


def _step(path: Path) -> int:
    match = STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1])
