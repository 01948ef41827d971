"""The figures of a logged step, in the groups that TensorBoard shows, read from the device only here.

    train      loss, lr, gradient_norm; loss_scale with fp16; bad_samples where there are any
    head       embedding_norm_{mean,std,min,max} of the global batch, momentum_norm_… of the momentum backbone's;
               margin_…: what the margin learnt (recognition/heads/margins), e.g. margin_t
    injection  what injection does (recognition/memory.py)
    machine    images_per_second; data_wait, the share of the time in which the loop waited for a batch; memory_gb of a
               rank's process; gpu_memory_gb, the most that tensors took so far; gpu_utilization with pynvml

Between logged steps nothing is computed for the log and the host waits for nothing: a step leaves references. Nothing
here draws a random number or writes to a tensor that trains. Of the machine's figures the worst rank's are shown, of
utilisation the mean. Proven by tests/recognition/test_watch.py.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recognition.assembly import Run
from recognition.distributed import Ranks, gather_rows
from recognition.machine import gpu_utilization, resident_bytes

if TYPE_CHECKING:  # which asks for this file
    from recognition.train import StepFigures

Groups = dict[str, dict[str, float]]
"""Group → name → figure; names are unique over groups."""


class Logged(NamedTuple):
    """What a logged step tells. norms: "embedding" and "momentum" → lengths [B] over the global batch, float64."""

    groups: Groups
    norms: dict[str, np.ndarray]


def read_step(run: Run, step: "StepFigures", lr: float, data_wait: float) -> Logged:
    """Figures of the step just taken. A collective, and the host waits for the device.

    data_wait: this rank's share of the time since the last logged step.
    """
    scalars = {"loss": step.loss, "gradient_norm": step.gradient_norm}
    if run.optimizer.scaled:
        scalars["loss_scale"] = run.optimizer.scale
    state = {f"margin_{name}": value for name, value in run.head.margin_state.items()}
    lengths = {"embedding": torch.linalg.vector_norm(step.embedding, dim=1)}
    if step.momentum_embedding is not None:
        own = torch.linalg.vector_norm(step.momentum_embedding.float(), dim=1)
        lengths["momentum"] = gather_rows(own, run.ranks)
    read = _read_together({**scalars, **state, **lengths})
    train = {name: float(read[name][0]) for name in scalars}
    head: dict[str, float] = {}
    for name in lengths:
        head |= {f"{name}_norm_{figure}": value for figure, value in spread(read[name]).items()}
    head |= {name: float(read[name][0]) for name in state}
    groups = {
        "train": {"loss": train.pop("loss"), "lr": lr, **train},
        "head": head,
        "injection": run.head.injection_figures(run.step),
        "machine": machine_figures(run.ranks, data_wait),
    }
    return Logged(groups, {name: read[name] for name in lengths})


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, least and largest of [n] numbers; NaN where one of them is not finite."""
    if not len(values) or not np.isfinite(values).all():
        return dict.fromkeys(("mean", "std", "min", "max"), math.nan)
    return {"mean": float(values.mean()), "std": float(values.std()), "min": float(values.min()),
            "max": float(values.max())}


def machine_figures(ranks: Ranks, data_wait: float) -> dict[str, float]:
    """What the machine does, over ranks. A collective."""
    own = {"data_wait": data_wait, "memory_gb": resident_bytes() / 1e9}
    if ranks.device.type == "cuda":
        used = gpu_utilization(ranks.device)
        own["gpu_memory_gb"] = torch.cuda.max_memory_allocated(ranks.device) / 1e9
        own["gpu_utilization"] = math.nan if used is None else used
    every = gather_rows(torch.tensor([list(own.values())], dtype=torch.float64, device=ranks.device), ranks)
    columns = dict(zip(own, every.cpu().numpy().T, strict=True))
    if "gpu_utilization" in columns and not np.isfinite(columns["gpu_utilization"]).all():
        del columns["gpu_utilization"]
    return {name: float(values.mean() if name == "gpu_utilization" else values.max())
            for name, values in columns.items()}


def _read_together(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The values of tensors, each flat in float64, with one copy to the host."""
    flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors.values()]).cpu().numpy()
    bounds = np.cumsum([tensor.numel() for tensor in tensors.values()])[:-1]
    return dict(zip(tensors, np.split(flat, bounds), strict=True))
