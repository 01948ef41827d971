"""One save on disk, phase by phase, on all ranks together.

    rank 0: remove leftovers, make the folder → all: write files, hashing; fsync; read back → rank 0: state, manifest,
    fsync, rename, fsync → rank 0: `after`, remove old saves

Between phases the ranks tell each other how it went; what fails on one fails on all, and the folder is removed. Until
the rename there is no save; killed at any point, the saves before are what they were.
Proven by tests/recognition/checkpoint/test_saver.py and test_kill.py.
"""

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from recognition.checkpoint.keep import Keep, prune
from recognition.checkpoint.layout import (
    FORMAT,
    LABELS,
    MANIFEST,
    REPLICATED,
    STATE,
    UNFINISHED,
    json_bytes,
    row_file,
    step_folder,
    sync_folder,
    unfinished_folder,
)
from recognition.checkpoint.saved import damaged
from recognition.checkpoint.snapshot import Content
from recognition.checkpoint.tensor_file import Blocks, NewFile, write_tensors
from recognition.distributed import Ranks, all_values, fail_together
from recognition.errors import CheckpointError, DistributedError, TrainerError

POINTS = (
    "snapshot",  # before anything is copied; on training's thread
    "folder made",  # rank 0; what a crash left is removed by then
    "rows begun", "rows written",
    "replicated begun", "replicated written",  # rank 0
    "read back",
    "state written", "manifest written", "renamed",  # rank 0
    "after",  # rank 0, when `after` has returned
    "pruning",  # rank 0, before each removal
    "done",
)
"""Where a save tells how far it is, on the ranks said: `sys.audit("recognition.checkpoint", point, step)`."""


@dataclass(frozen=True)
class Published:
    """A save that is complete, for `after`. replicated: its tensors, on the CPU, not to be kept or changed."""

    folder: Path
    step: int
    replicated: Mapping[str, Tensor]
    state: Mapping[str, Any]


def audit(point: str, step: int) -> None:
    """Tell how far the save of a step is."""
    assert point in POINTS, point
    sys.audit("recognition.checkpoint", point, step)


class Writing:
    """One save being written by all ranks: `run` does it."""

    def __init__(
        self, folder: Path, content: Content, ranks: Ranks, keep: Keep, labels: bytes | None = None,
        after: Callable[[Published], None] | None = None,
    ) -> None:
        self.folder, self.content, self.ranks, self.keep, self.labels = folder, content, ranks, keep, labels
        self.after = after
        self.final = step_folder(folder, content.step)
        self.unfinished = unfinished_folder(folder, content.step)

    def run(self) -> Path:
        """Write it; its folder. CheckpointError on all ranks when any of them cannot."""
        self.content.ready()
        try:
            self._together(self._prepare, f"{self.unfinished}: cannot start a save")
            files = self._together(self._write, f"{self.unfinished}: cannot write")
            self._together(lambda: self._publish(files), f"{self.final}: cannot finish the save")
        except TrainerError:
            if self.ranks.is_first:  # a full disk should not stay full of it
                shutil.rmtree(self.unfinished, ignore_errors=True)
            raise
        self._together(self._conclude, f"{self.final}: saved, but")
        self._point("done")
        return self.final

    def _point(self, point: str) -> None:
        audit(point, self.content.step)

    def _prepare(self) -> dict[str, Any]:
        if self.ranks.is_first:
            for leftover in self.folder.glob(UNFINISHED):
                shutil.rmtree(leftover)
            self.unfinished.mkdir(parents=True)
            self._point("folder made")
        return {}

    def _write(self) -> dict[str, Any]:
        """This rank's files; their facts by name, once they were read back from the disk."""
        facts = {}
        for start, stop, tensors in self.content.row_files:
            path = self.unfinished / row_file(start, stop)
            facts[path.name] = write_tensors(path, tensors, lambda: self._point("rows begun"))
            self._point("rows written")
        if self.ranks.is_first:
            tensors = {name: Blocks.of(tensor) for name, tensor in self.content.replicated.items()}
            path = self.unfinished / REPLICATED
            facts[path.name] = write_tensors(path, tensors, lambda: self._point("replicated begun"))
            self._point("replicated written")
            if self.labels is not None:
                facts[LABELS] = _write_file(self.unfinished / LABELS, self.labels)
        if wrong := damaged(self.unfinished, facts, from_disk=True):
            raise CheckpointError(f"{self.unfinished}: just written, but {'; '.join(wrong)}")
        self._point("read back")
        return facts

    def _publish(self, files: dict[str, Any]) -> dict[str, Any]:
        if self.ranks.is_first:
            files[STATE] = _write_file(self.unfinished / STATE, json_bytes(self.content.state))
            self._point("state written")
            _write_file(self.unfinished / MANIFEST, json_bytes({"format": FORMAT, "files": files}))
            self._point("manifest written")
            sync_folder(self.unfinished)
            if self.final.exists():
                shutil.rmtree(self.final)  # a damaged or repeated save of the same step
            self.unfinished.rename(self.final)
            sync_folder(self.folder)
            self._point("renamed")
        return {}

    def _conclude(self) -> dict[str, Any]:
        if self.ranks.is_first:
            if self.after is not None:
                content = self.content
                on_cpu = {name: tensor.detach().cpu() for name, tensor in content.replicated.items()}
                self.after(Published(self.final, content.step, on_cpu, content.state))
            self._point("after")
            prune(self.folder, self.keep, self.content.step, lambda: self._point("pruning"))
        return {}

    def _together(self, action: Callable[[], dict[str, Any]], what: str) -> dict[str, Any]:
        """Run an action on all ranks and join their results; what fails on any is raised on all."""
        outcome: dict[str, Any] = {}
        failure: TrainerError | None = None
        try:
            outcome = action()
        except TrainerError as error:
            failure = error
        except OSError as error:
            failure = CheckpointError(f"{what} on rank {self.ranks.rank}: {error}")
        except Exception as error:  # a fault of the program: the others must not wait for this rank
            failure = DistributedError(f"{what} on rank {self.ranks.rank}: {type(error).__name__}: {error}")
            failure.__cause__ = error
        fail_together(failure, self.ranks)
        return {name: value for other in all_values(outcome, self.ranks) for name, value in other.items()}


def _write_file(path: Path, content: bytes) -> dict[str, Any]:
    with NewFile(path) as file:
        file.write(content)
    return file.facts
