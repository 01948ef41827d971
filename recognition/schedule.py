"""The learning rate of every step, as an array made once: schedule[step] is all a run needs, and a resume too.

Convention: warm-up and milestones are in epochs, so that a recipe does not change with the batch size.
Proven by tests/recognition/test_schedule.py.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate moves after a linear warm-up from 0.

    step: × `factor` at each of `milestones` (epochs).  polynomial: lr·(1 − t)^power down to 0, t from 0 to 1 after
    warm-up (power 1 is the linear decay of the published recipes).  cosine: lr·(1 + cos πt)/2 down to 0; with its
    warm-up, the usual one-cycle.
    """

    kind: Literal["step", "polynomial", "cosine"] = "polynomial"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    power: float = 1.0


def learning_rates(settings: ScheduleSettings, peak: float, epochs: float, steps_per_epoch: int) -> np.ndarray:
    """Learning rates of all steps, float64 [round(epochs · steps_per_epoch)], the peak being `peak`."""
    total = round(epochs * steps_per_epoch)
    step = np.arange(total, dtype=np.float64)
    warmup = settings.warmup_epochs * steps_per_epoch
    t = np.clip((step - warmup) / max(total - warmup, 1), 0, 1)
    if settings.kind == "step":
        passed = np.searchsorted(np.asarray(settings.milestones), step / steps_per_epoch, side="right")
        share = settings.factor ** passed.astype(np.float64)
    elif settings.kind == "polynomial":
        share = (1 - t) ** settings.power
    else:
        share = (1 + np.cos(np.pi * t)) / 2
    return peak * share * np.minimum(1.0, (step + 1) / max(warmup, 1))
