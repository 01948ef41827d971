"""No operation of a step needs a value on the host, which would wait for a GPU: watched on a CPU, where all can run.

On a GPU tests/recognition/test_graphs.py has torch itself raise where a step waits.
"""

import dataclasses
import traceback

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recognition.assembly import assemble
from recognition.backbones import BackboneSettings
from recognition.config import Config, DataSettings
from recognition.distributed import ALONE
from recognition.heads import shard
from recognition.heads.margins import AdaCos, AdaFace, ArcFace, BroadFace, CurricularFace, SphereFace2, SubCenter
from recognition.heads.row_optimizers import RowAdagrad, RowAdamW
from recognition.heads.sharded import HeadSettings
from recognition.memory import VPL, QAFace
from recognition.optimizer import OptimizerSettings
from recognition.speed import SpeedSettings
from recognition.train import train_step

# Their result, or its shape, depends on values; lift_fresh makes a tensor of numbers of the host's, a copy that waits.
READERS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal",
           "is_nonzero", "repeat_interleave", "bincount", "lift_fresh"}


# These are no operations where the tensor is on the CPU already.
METHODS = ("tolist", "numpy", "cpu", "__array__")


class Readers(TorchDispatchMode):
    """Notes the project's line for each operation that reads values, and for each method that hands them over."""

    def __init__(self):
        super().__init__()
        self.found = set()
        self._methods = {name: getattr(torch.Tensor, name) for name in METHODS}

    def __enter__(self):
        for name, method in self._methods.items():
            setattr(torch.Tensor, name, self._watched(name, method))
        return super().__enter__()

    def __exit__(self, *error):
        for name, method in self._methods.items():
            setattr(torch.Tensor, name, method)
        return super().__exit__(*error)

    def _watched(self, name, method):
        def read(tensor, *args, **kwargs):
            self._note(name)
            return method(tensor, *args, **kwargs)
        return read

    def _note(self, name):
        lines = [f"{frame.filename} {frame.line}" for frame in traceback.extract_stack() if "recognition" in
                 frame.filename and "tests" not in frame.filename]
        self.found.add(f"{name}: {lines[-1] if lines else ''}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        by_mask = name.startswith("index") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if isinstance(args[1], list | tuple) else [])
        )
        if name in READERS or by_mask:
            self._note(name)
        return func(*args, **(kwargs or {}))


RUNS = {
    "sgd, qaface": {},
    "parts": {"micro_batches": 2},
    "adamw, adaface, vpl": {"optimizer": OptimizerSettings("adamw"),
                            "head": HeadSettings(AdaFace(), 0.5, RowAdamW(), inject=VPL())},
    "batch norm of the batch": {"head": HeadSettings(ArcFace(), inject=QAFace(momentum_batch_norm="train"))},
    "foreach": {"optimizer": OptimizerSettings(implementation="foreach")},
    "folded, fp16": {"precision": "fp16", "speed": SpeedSettings(fold="on")},
    "vit": {"backbone": BackboneSettings("vit_t", 32, drop_path=0.1, mask=0.2)},
    "curricularface, decay": {"head": HeadSettings(CurricularFace(), catch_up_decay=True)},
    "adacos, hardest": {"head": HeadSettings(AdaCos(), 0.5, inject=QAFace(duplicates="hardest", start_epoch=0))},
    "sphereface2, adagrad, bf16": {"head": HeadSettings(SphereFace2(), 0.5, RowAdagrad(), storage="bf16")},
    "broadface": {"head": HeadSettings(BroadFace(queue=40))},
    "subcenter, dropping": {"head": HeadSettings(SubCenter(drop_degrees=80.0, drop_epoch=0.2))},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("folded, fp16", "vit"))) for name in RUNS]
)
def test_a_step_reads_no_value(small_set, name, monkeypatch):
    monkeypatch.setattr(shard, "can_count", lambda _: False)  # as on a GPU
    config = Config(
        "waits", batch_size=8, epochs=2, data=DataSettings(str(small_set), reader="fallback"),
        backbone=BackboneSettings("tiny", 32, dropout=0.2),
        head=HeadSettings(ArcFace(), 0.5, inject=QAFace(start_epoch=0.0)),
    )
    run = assemble(dataclasses.replace(config, **RUNS[name]), ALONE)
    first, second = run.loader.batches(0, 2)
    train_step(run, first, 0.05)
    with Readers() as readers:
        train_step(run, second, 0.05)
    # What the momentum backbone does here instead of `follow`: on a CPU there is nothing to wait for.
    known = {line for line in readers.found if "torch._foreach_lerp_(self._mine, self._online, step.item())" in line}
    assert readers.found - known == set()


def test_what_reads_a_value_is_found():
    with Readers() as readers:
        x = torch.ones(3)
        x[x > 0].sum().item()
        torch.tensor(1.0)
        x.tolist()
        x.cpu()
        np.asarray(x)
    assert {line.split(":")[0] for line in readers.found} == {
        "index", "_local_scalar_dense", "lift_fresh", "tolist", "cpu", "__array__", "numpy"}
    assert torch.Tensor.cpu.__name__ == "cpu"  # as torch has it
