"""What makes a step fast without changing what it learns: settings, torch.compile, Python's garbage collector.

Modules are compiled in place: keys of state dicts, checkpoints and model files are those of the modules as written. A
switch changes the rounding of a step at most, but for `compress`, which rounds gradients on purpose. So a run may go on
with other values of all the others.
Nothing here that needs CUDA has run on a GPU yet: docs/experiments.md says what was measured.
Proven by tests/recognition/test_speed.py and, that a run learns the same, tests/recognition/test_fast_path.py.
"""

import contextlib
import gc
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn

from recognition.distributed import Ranks, all_values
from recognition.errors import SettingsError

logger = logging.getLogger("recognition")

Compile = Literal["off", "blocks", "whole"]

# Blocks of all sizes, in training and in evaluation, of two backbones share one function that is compiled: torch's own
# limit of 8 forms of it would leave the rest uncompiled.
_FORMS = 64

WORTH_COMPILING = 2e14
"""Operations of a run's backbone on one rank above which `auto` compiles convolutions on a CPU. Compiling takes one to
three minutes; this much a core computes in 27 to 80 minutes, compiled in a twenty-fifth to a fifth less."""

COLLECT_STEPS = 1000
"""Garbage is collected after so many steps at the latest, however rarely a run logs and saves."""


@dataclass(frozen=True)
class SpeedSettings:
    """How a step is computed; what it learns is the same.

    compile: the backbones by torch.compile, each repeated block by itself (blocks: a short start, and gradients are
    exchanged while the backward runs) or in one piece (whole); auto: blocks on a GPU, and on a CPU blocks of
    convolutions where the whole schedule is long enough to make up for the start; where that fails none.
    graphs: the backbones as CUDA graphs: less work for the host at small batches.
    fold: the momentum backbone runs with its BatchNorm folded into its convolutions; auto: on a GPU.
    prefetch: the next batch goes to the GPU while a step runs.  tune: cuDNN tries its algorithms on the first batch.
    hold_garbage: Python's garbage is collected between steps that log or save, not within others.
    compress: gradients are exchanged in bf16, half the bytes; for several machines.
    """

    compile: Literal["auto", "off", "blocks", "whole"] = "auto"
    graphs: bool = False
    fold: Literal["auto", "on", "off"] = "auto"
    prefetch: bool = True
    tune: bool = True
    hold_garbage: bool = True
    compress: Literal["none", "bf16"] = "none"


def way_to_compile(speed: SpeedSettings, device: torch.device, pays: bool) -> Compile:
    """How the backbones are compiled on this device: what `compile` says, or what auto stands for.

    pays: on a CPU, see `pays_on_cpu`.
    """
    if speed.compile != "auto":
        return speed.compile
    return "blocks" if device.type == "cuda" or pays else "off"


def pays_on_cpu(backbone: nn.Module, operations: float) -> bool:
    """Whether compiling makes up for itself; what it gains was measured (docs/performance.md): transformers lose by it.

    operations: of the backbones on a rank over the whole schedule, so that a run that goes on, on as many ranks, goes
    on as it began.
    """
    is_convolutional = all(any(isinstance(part, nn.Conv2d) for part in block.modules()) for block in regions(backbone))
    return is_convolutional and operations >= WORTH_COMPILING


def folds(speed: SpeedSettings, device: torch.device) -> bool:
    """Whether the momentum backbone runs folded."""
    return speed.fold == "on" or (speed.fold == "auto" and device.type == "cuda")


def regions(module: nn.Module) -> list[nn.Module]:
    """The modules with parts of their own that stand in a row: blocks, which repeat; outermost ones only."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and any(True for part in child for _ in part.children()):
            found += [part for part in child if any(True for _ in part.children())]
        else:
            found += regions(child)
    return found


def compile_in_place(module: nn.Module, way: Compile) -> None:
    """Have a module's blocks, or all of it, compiled at the first forward of each kind; "off" undoes it.

    Shapes are taken as they come: batches have one size. Others should run under `as_written`. Copy a module before,
    not after.
    """
    for part in module.modules():
        part._compiled_call_impl = None  # as nn.Module.compile leaves it; there is no way back otherwise
    # Else inductor draws dropout's masks its own way, and a run that goes on uncompiled would draw others.
    options: dict[str, Any] = {"dynamic": False, "options": {"fallback_random": True}}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = _FORMS
    else:  # torch before 2.12
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _FORMS)
    for part in {"off": [], "blocks": regions(module) or [module], "whole": [module]}[way]:
        part.compile(**options)
    stem = getattr(type(module), "_stem", None)
    module.__dict__.pop("_stem", None)
    if way == "blocks" and stem is not None:  # an IResNet's, whose maps are the largest of all
        module.__dict__["_stem"] = torch.compile(MethodType(stem, module), **options)


def as_written(module: nn.Module) -> contextlib.AbstractContextManager:
    """Where a compiled module runs as it is written: for shapes that come rarely, which would be compiled anew."""
    if any(part._compiled_call_impl for part in module.modules()):
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()  # the line above imports the compiler, which takes seconds


def try_compiled(
    way: Compile, networks: list[nn.Module], passes: Callable[[], None], ranks: Ranks, asked: bool
) -> Compile:
    """Compile networks in place and run `passes`, so that what fails fails here; the way taken.

    asked: the settings name this way, and a failure raises SettingsError; else all ranks go on without, and a warning
    says so. Memory that does not do would not do without either: that is raised as it is.
    """
    if way == "off":
        return way
    failure = ""
    if ranks.is_first:
        logger.info("compiling the backbones (speed.compile=%s): a minute or two, less when it was done before", way)
    for network in networks:
        compile_in_place(network, way)
    try:
        passes()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in too many ways to list
        failure = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    failures = [(rank, text) for rank, text in enumerate(all_values(failure, ranks)) if text]
    if not failures:
        return way
    rank, failure = failures[0]
    said = f"speed.compile={way} fails here (rank {rank}: {failure})"
    if asked:
        raise SettingsError(f"{said}; choose auto or off")
    for network in networks:
        compile_in_place(network, "off")
    if ranks.is_first:
        logger.warning("%s; going on without", said)
    return "off"


class Garbage:
    """Python's collector, held off while steps run: it stops the host for as long as there are objects to visit.

    What exists on entering is never visited again. `after_step` collects what has come up since.
    """

    def __init__(self, held: bool) -> None:
        self.held, self._was_on, self._since = held, False, 0

    def __enter__(self) -> "Garbage":
        if self.held:
            self._was_on = gc.isenabled()
            gc.collect()
            gc.freeze()
            gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        if self.held:
            gc.unfreeze()
            if self._was_on:
                gc.enable()

    def after_step(self, is_pause: bool) -> None:
        """Collect after a step that logs or saves, and after COLLECT_STEPS others."""
        self._since += 1
        if self.held and (is_pause or self._since >= COLLECT_STEPS):
            gc.collect()
            self._since = 0
