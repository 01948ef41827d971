"""What a run says: train.log, metrics.jsonl, TensorBoard, and a progress bar or plain lines; rank 0 alone writes.

metrics.jsonl holds one object a logged step with full float precision, all figures of recognition/watch.py by their
names without the group; those of evaluations carry "verification". A run that goes on from a checkpoint first drops the
lines of later steps, so that every step stands there once. recognition/board.py writes for TensorBoard.
Proven by tests/recognition/test_log.py.
"""

import json
import logging
import math
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recognition.board import Board, score_name
from recognition.config import Config
from recognition.distributed import Ranks, fail_together
from recognition.errors import CheckpointError, SettingsError

logger = logging.getLogger("recognition")

IN_A_LINE = ("train", "injection")
"""Groups whose figures stand in train.log's lines; metrics.jsonl and TensorBoard have all."""

_T = TypeVar("_T")


class _ConsoleHandler(logging.Handler):
    """Lines above the progress bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class RunLog:
    """The log of one run on one rank; on the others nothing is written, and only the clocks run."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        """Open train.log in `folder`, which is made; SettingsError on all ranks when rank 0 cannot."""
        self.is_first, self.folder = ranks.is_first, folder
        self._handlers: list[logging.Handler] = []
        self._metrics: TextIO | None = None
        self._board: Board | None = None
        self._bar: tqdm | None = None
        self._since, self._since_step, self._waited = time.perf_counter(), 0, 0.0
        failure = None
        try:
            if self.is_first:
                self._open()
        except OSError as error:
            failure = SettingsError(f"the run's folder {folder} cannot be written: {error}")
        fail_together(failure, ranks)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._handlers = [logging.FileHandler(self.folder / "train.log"), _ConsoleHandler()]
        for handler in self._handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)

    def begin(self, start_step: int, total_steps: int, config: Config) -> None:
        """Open the metrics where the run goes on, after `start_step` steps, and the progress bar; or again.

        SettingsError where Weights & Biases was asked for and cannot be had.
        """
        self.restart_clock(start_step)
        if not self.is_first:
            return
        self._close_parts()
        self._metrics = _continue_lines(self.folder / "metrics.jsonl", start_step).open("a")
        if config.log.tensorboard:
            self._board = self._board or Board(self.folder, config)
            self._board.open(start_step)
        self._bar = tqdm(
            total=total_steps, initial=start_step, unit="step", disable=None, dynamic_ncols=True, smoothing=0.05
        )
        self.restart_clock(start_step)

    def waiting(self, batches: Iterable[_T]) -> Iterator[_T]:
        """The batches, with the time noted in which the loop waits for them."""
        source = iter(batches)
        while True:
            begin = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._waited += time.perf_counter() - begin
            yield batch

    @property
    def data_wait(self) -> float:
        """Share of this rank's time, since the clock was restarted, in which the loop waited for a batch."""
        return min(1.0, self._waited / max(time.perf_counter() - self._since, 1e-9))

    def advance(self) -> None:
        """Count one step."""
        if self._bar is not None:
            self._bar.update()

    def restart_clock(self, step: int) -> None:
        """Leave the time until now out of the rates: after a logged step, an evaluation or a save."""
        self._since, self._since_step, self._waited = time.perf_counter(), step, 0.0

    def steps(
        self, step: int, epoch: float, batch_size: int, groups: Mapping[str, Mapping[str, float]],
        norms: Mapping[str, np.ndarray] | None = None, image: Tensor | None = None,
    ) -> None:
        """Log the figures of `step` (counted from 1) and the rate since the last logged step.

        groups: group → name → figure (recognition/watch.py).  norms: lengths of embeddings, for histograms.
        image: this rank's part of the batch, uint8 [b, 112, 112, 3], looked at only where its pictures are due.
        """
        rate = (step - self._since_step) * batch_size / max(time.perf_counter() - self._since, 1e-9)
        self.restart_clock(step)
        if self._bar is None:
            return
        machine = {"images_per_second": rate, **groups.get("machine", {})}
        groups = {**groups, "machine": machine}
        self._write({"step": step, "epoch": epoch} | {k: v for values in groups.values() for k, v in values.items()})
        if self._board is not None:
            self._board.step(step, epoch, groups, norms or {}, image)
        shown = {name: value for group in IN_A_LINE for name, value in groups.get(group, {}).items()}
        shown["images_per_second"] = rate
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        # With a bar the line goes to train.log alone.
        line = logger.makeRecord(logger.name, logging.INFO, __file__, 0, "step %d/%s  epoch %.2f  %s",
                                 (step, self._bar.total, epoch, text), None)
        for handler in self._handlers if self._bar.disable else self._handlers[:1]:
            handler.handle(line)
        if not self._bar.disable:
            self._bar.set_postfix_str(f"loss {shown['loss']:.3f}  {rate:.0f} img/s", refresh=False)

    def scores(
        self, step: int, epoch: float, scores: list[dict[str, Any]],
        curves: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        """Log verification results. curves: FAR and TAR by the names of the sets, [P] each."""
        if not self.is_first:
            return
        self._write({"step": step, "epoch": epoch, "verification": scores})
        if self._board is not None:
            self._board.scores(step, scores, curves or {})
        for score in scores:
            logger.info("step %d  epoch %.2f  %s accuracy %.4f ± %.4f", step, epoch, score_name(score),
                        score["accuracy"], score["accuracy_std"])

    def _write(self, entry: dict[str, Any]) -> None:
        assert self._metrics is not None
        try:
            self._metrics.write(json.dumps(_without_nan(entry), allow_nan=False) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise CheckpointError(f"{self.folder / 'metrics.jsonl'}: cannot be written: {error}") from error

    def close(self) -> None:
        """Finish the bar and the files."""
        self._close_parts()
        if self._board is not None:
            self._board.close()
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()

    def _close_parts(self) -> None:
        for part in (self._bar, self._metrics):
            if part is not None:
                part.close()


def _continue_lines(path: Path, last_step: int) -> Path:
    """Drop lines of steps after `last_step` and lines that a crash cut short; the file is replaced in one piece."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= last_step]
    if kept != lines:
        whole = path.with_suffix(".jsonl.new")
        whole.write_text("".join(kept))
        whole.replace(path)
    return path


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinite when it is none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: such a figure becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def provenance() -> dict[str, Any]:
    """The commit of the checkout (with "+" when files differ from it) and the versions of what computes."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent.parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy", "onnx", "onnxruntime"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = git("rev-parse", "HEAD")
    return {"commit": commit + ("+" if commit and git("status", "--porcelain") else ""), "versions": versions}
