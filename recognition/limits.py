"""What a setting may be: its declared type, its range, and which settings do not go together.

Every function returns mistakes, one line each, and an empty list when there are none: recognition.config reports those
of all settings at once. Proven by tests/recognition/test_config.py.
"""

import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recognition import backbones
from recognition.data.dataset import split_roots
from recognition.memory import VPL
from recognition.setting_text import Variants, describe

if TYPE_CHECKING:  # which asks for this file
    from recognition.config import Config


def type_mistakes(settings: Any, variants: Variants, prefix: str = "") -> list[str]:
    """Values in a config file whose type is not the declared one: the file is Python, nothing else checks it."""
    problems = []
    for name, kind in typing.get_type_hints(type(settings)).items():
        value, path = getattr(settings, name), prefix + name
        if not _has_type(value, kind):
            problems.append(f"{path}: {value!r} is not {describe(kind, variants)}")
        elif is_dataclass(value):
            problems += type_mistakes(value, variants, path + ".")
    return problems


def _has_type(value: Any, kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, a) for a in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[1:] == (Ellipsis,):
            return all(_has_type(v, arguments[0]) for v in value)
        return len(value) == len(arguments) and all(map(_has_type, value, arguments))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def batch_mistakes(config: "Config", ranks: int) -> list[str]:
    """What keeps the batch from being cut over ranks and micro-batches, one line each; empty when nothing does."""
    batch, parts = config.batch_size, config.micro_batches
    if batch < 1 or parts < 1:
        return []  # said elsewhere
    if batch % ranks:
        return [f"batch_size: {batch} is not a positive multiple of the {ranks} ranks"]
    share = batch // ranks
    if share % parts:
        of = f" (batch_size {batch} over {ranks} ranks)" if ranks > 1 else ""
        return [f"micro_batches: {parts} parts do not divide a rank's {share} images{of} evenly"]
    if share == parts > 1 and config.backbone.norm == "batch":
        return [f"micro_batches: {share} images in {parts} parts: one image alone has no batch statistics"]
    return []


def value_mistakes(config: "Config", flat: Mapping[str, Any]) -> list[str]:
    """Values of the right type that no run can have; `flat`: all settings by their dotted names.

    Comparisons are written so that NaN fails them.
    """
    c, inject = config, config.head.inject
    rules: list[tuple[str, Any, Callable[[Any], bool], str]] = [
        ("name", c.name, lambda v: bool(v) and v == Path(v).name and not v.startswith("."), "a plain folder name"),
        ("seed", c.seed, lambda v: 0 <= v < 1 << 62, "0 ≤ seed < 2^62"),
        ("batch_size", c.batch_size, lambda v: v >= 1, "at least 1"),
        ("micro_batches", c.micro_batches, lambda v: v >= 1, "at least 1"),
        ("epochs", c.epochs, lambda v: 0 < v < 1e6, "above 0"),
        ("timeout_seconds", c.timeout_seconds, lambda v: 1 <= v < 1e7, "at least 1"),
        ("data.root", c.data.root, bool, "the folder of a RecordIO set; give --set data.root=FOLDER"),
        ("data.weights", c.data.weights, lambda v: all(0 < weight <= 1e6 for weight in v)
         and len(v) in (0, len(split_roots(c.data.root))), "one number above 0 for each set of data.root"),
        ("data.bad_share", c.data.bad_share, lambda v: 0 <= v <= 1, "0 to 1"),
        ("data.threads", c.data.threads, lambda v: 0 <= v <= 1024, "0 to 1024"),
        ("head.sample_rate", c.head.sample_rate, lambda v: 0 < v <= 1, "above 0, at most 1"),
        ("head.optimizer.momentum", getattr(c.head.optimizer, "momentum", 0.0), lambda v: 0 <= v < 1,
         "0 ≤ momentum < 1"),
        ("head.optimizer.weight_decay", getattr(c.head.optimizer, "weight_decay", 0.0), lambda v: 0 <= v < 1,
         "0 ≤ weight decay < 1"),
        ("head.optimizer.beta1", getattr(c.head.optimizer, "beta1", 0.0), lambda v: 0 <= v < 1, "0 ≤ beta1 < 1"),
        ("head.optimizer.beta2", getattr(c.head.optimizer, "beta2", 0.0), lambda v: 0 <= v < 1, "0 ≤ beta2 < 1"),
        ("head.optimizer.epsilon", getattr(c.head.optimizer, "epsilon", 1.0), lambda v: 0 < v <= 1,
         "above 0, at most 1"),
        ("head.lr_scale", c.head.lr_scale, lambda v: 0 <= v < 1e6, "0 or more"),
        ("head.tile_bytes", c.head.tile_bytes, lambda v: v == 0 or v >= 1 << 16, "0, or at least 65536"),
        ("head.ignore_above", c.head.ignore_above, lambda v: v is None or -1 <= v <= 1, "-1 to 1, or none"),
        ("head.margin.s", c.head.margin.s, lambda v: 0.01 <= v <= 1000, "0.01 to 1000"),
        ("head.margin.m", getattr(c.head.margin, "m", 0.0), lambda v: 0 <= v < 3, "0 to 3"),
        ("head.inject.strength", inject.strength, lambda v: 0 <= v <= (1 if isinstance(inject, VPL) else 100),
         "0 to 1 for VPL, to 100 for QAFace"),
        ("head.inject.max_age", inject.max_age, lambda v: v >= 0, "0 or more (steps)"),
        ("head.inject.max_age_samples", inject.max_age_samples, lambda v: not v or v >= c.batch_size,
         f"0, none, or at least a batch ({c.batch_size}): smaller ages never inject"),
        ("head.inject.start_epoch", inject.start_epoch, lambda v: 0 <= v < 1e6, "0 or more"),
        ("head.inject.momentum", inject.momentum, lambda v: 0 <= v <= 1, "0 to 1"),
        ("head.inject.tau", getattr(inject, "tau", 0.0), lambda v: abs(v) <= 80, "−80 to 80"),
        ("head.inject.stat_momentum", getattr(inject, "stat_momentum", 0.0), lambda v: 0 <= v <= 1, "0 to 1"),
        ("optimizer.lr", c.optimizer.lr, lambda v: 0 < v < 1e6, "above 0"),
        ("optimizer.momentum", c.optimizer.momentum, lambda v: 0 <= v < 1, "0 ≤ momentum < 1"),
        ("optimizer.weight_decay", c.optimizer.weight_decay, lambda v: 0 <= v < 1, "0 ≤ weight decay < 1"),
        ("optimizer.beta1", c.optimizer.beta1, lambda v: 0 <= v < 1, "0 ≤ beta1 < 1"),
        ("optimizer.beta2", c.optimizer.beta2, lambda v: 0 <= v < 1, "0 ≤ beta2 < 1"),
        ("optimizer.epsilon", c.optimizer.epsilon, lambda v: 0 < v <= 1, "above 0, at most 1"),
        ("optimizer.clip_norm", c.optimizer.clip_norm, lambda v: v is None or v > 0, "above 0, or none"),
        ("schedule.warmup_epochs", c.schedule.warmup_epochs, lambda v: 0 <= v < c.epochs or not c.epochs > 0,
         f"below epochs ({c.epochs}); 0: no warm-up"),
        ("schedule.milestones", c.schedule.milestones, lambda v: all(a < b for a, b in pairwise((0, *v, c.epochs))),
         f"rising numbers of epochs below {c.epochs}"),
        ("schedule.factor", c.schedule.factor, lambda v: 0 < v <= 1, "above 0, at most 1"),
        ("schedule.power", c.schedule.power, lambda v: 0 < v <= 10, "above 0, at most 10"),
        ("evaluation.every_epochs", c.evaluation.every_epochs, lambda v: 0 <= v < 1e6, "0 or more"),
        ("evaluation.degrade", c.evaluation.degrade, lambda v: all(1 <= side <= 112 for side in v), "sides 1 to 112"),
        ("checkpoint.every_epochs", c.checkpoint.every_epochs, lambda v: 0 <= v < 1e6, "0 or more"),
        ("checkpoint.every_steps", c.checkpoint.every_steps, lambda v: v >= 0, "0 or more"),
        ("checkpoint.every_minutes", c.checkpoint.every_minutes, lambda v: 0 <= v < 1e6, "0 or more"),
        ("checkpoint.keep", c.checkpoint.keep, lambda v: v >= 0, "0 (all) or more"),
        ("checkpoint.keep_every_steps", c.checkpoint.keep_every_steps, lambda v: v >= 0, "0 or more"),
        ("checkpoint.compare_steps", c.checkpoint.compare_steps, lambda v: v >= 0, "0 or more"),
        ("speed.graphs", c.speed.graphs, lambda v: not (v and c.speed.compile == "whole"),
         "false with speed.compile=whole, or compile=blocks"),
        ("log.every_steps", c.log.every_steps, lambda v: v >= 1, "at least 1"),
        ("log.wandb", c.log.wandb, lambda v: not v or c.log.tensorboard, "log.tensorboard=true, which it copies"),
        ("log.wandb", c.log.wandb, lambda v: not v or find_spec("wandb") is not None,
         "the package wandb: pip install wandb"),
    ]
    problems = [f"{name}: {value!r}; expected {hint}" for name, value, good, hint in rules if not good(value)]
    named = {name for name, *_ in rules}
    problems += [
        f"{name}: {value!r}; expected a finite number"
        for name, value in flat.items()
        if isinstance(value, float) and not math.isfinite(value) and name not in named
    ]
    problems += [f"head.margin.{mistake}" for mistake in c.head.margin.mistakes()]
    if c.head.margin.centers_per_class > 1 and inject.is_on:
        problems.append("head.inject: does not go together with sub-centres: which of a class's rows would be meant?")
    if hasattr(c.head.margin, "queue") and c.head.sample_rate < 1:
        problems.append("head.sample_rate: BroadFace's past embeddings meet all classes; expected 1")
    if c.start.backbone and c.start.checkpoint:
        problems.append("start: both start.backbone and start.checkpoint; a checkpoint brings its backbone")
    return problems + backbones.mistakes(c.backbone)
