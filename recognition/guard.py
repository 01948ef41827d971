"""One small MAX reduce a step that keeps the ranks together: are all at this step, was it good, who wants to stop.

Every rank posts [step, −step, stop, save, bad, −bad] after each step and reads the maximum over ranks:

    step, −step      their maxima are those of one number where all ranks are at the same step: a rank that skipped a
                     collective, whose exchanges pair with others of its peers, does not go on unnoticed
    stop             number of the signal that asks this rank to stop, or 0: all ranks then stop after the same step
    save             rank 0's clock says that a checkpoint is due
    bad, −bad        the step's loss or gradient was not finite; the ranks must agree on that too

On a CPU a step ends before the next begins, and the verdict is read at once. On CUDA it is read a step late: `bad` is
decided on the device and never waited for there. The six numbers are reduced on the training stream and copied to
pinned memory; the host reads those of the step before, whose event it waits for. So it runs at most one step ahead of
the device, and no kernel waits for the host.
Proven by tests/recognition/test_guard.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recognition.distributed import Ranks, max_over_ranks_later
from recognition.errors import DistributedError


@dataclass(frozen=True)
class Verdict:
    """What all ranks agreed on for one step. stop: signal number, 0 for none."""

    step: int
    stop: int
    save: bool
    bad: bool


class Guard:
    """Posts a step's numbers and reads them at once, or (late) those of the step before; default: late on CUDA."""

    def __init__(self, ranks: Ranks, late: bool | None = None) -> None:
        self.ranks = ranks
        self.late = self._on_gpu if late is None else late
        self._pending: tuple[int, _Reading] | None = None

    def post(self, step: int, bad: Tensor, stop: int = 0, save: bool = False) -> Verdict | None:
        """Send this step's numbers; the verdict on it, or on the step before, of which the first has none.

        step: steps taken, this one counted.  bad: boolean scalar on the device.  Raises DistributedError on every
        rank when the ranks are not at the same step.
        """
        own = torch.tensor([step, -step, stop, int(save)], dtype=torch.int64, pin_memory=self._on_gpu)
        own = own.to(self.ranks.device, non_blocking=True)
        flag = bad.reshape(1).to(torch.int64)
        reading = _Reading(torch.cat([own, flag, -flag]), self.ranks)
        if not self.late:
            return self._judge(step, reading)
        before, self._pending = self._pending, (step, reading)
        return self._judge(*before) if before else None

    def settle(self) -> Verdict | None:
        """The verdict that is still out; None when there is none. All ranks call it after the same step."""
        before, self._pending = self._pending, None
        return self._judge(*before) if before else None

    @property
    def _on_gpu(self) -> bool:
        return self.ranks.device.type == "cuda"

    def _judge(self, step: int, reading: "_Reading") -> Verdict:
        highest, minus_lowest, stop, save, bad, minus_all_bad = reading.numbers()
        if highest != step or -minus_lowest != step:
            raise DistributedError(
                f"the ranks are out of step: rank {self.ranks.rank} is at step {step}, others between "
                f"{-minus_lowest} and {highest}; one of them left out an exchange"
            )
        if bad != -minus_all_bad:
            raise DistributedError(f"the ranks disagree on whether step {step} was finite")
        return Verdict(step, stop, bool(save), bool(bad))


class _Reading:
    """Numbers on their way: reduced over the ranks, and on CUDA copied to the host behind the step's kernels."""

    def __init__(self, numbers: Tensor, ranks: Ranks) -> None:
        self._numbers, self._work = numbers, max_over_ranks_later(numbers, ranks)
        self._copied: torch.cuda.Event | None = None
        if ranks.device.type == "cuda":
            self._wait()  # the stream waits, not the host
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _wait(self) -> None:
        if self._work is not None:
            self._work.wait()

    def numbers(self) -> list[int]:
        if self._copied is not None:
            self._copied.synchronize()
            return self._host.tolist()
        self._wait()
        return self._numbers.tolist()
