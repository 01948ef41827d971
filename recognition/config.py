"""The settings of a run: frozen dataclasses, config files, typed overrides, and every mistake at once.

A config file is Python with a docstring (source, command, cost, expected scores) and `config()` returning a `Config`;
it may also have `prepare(config)`, which makes the data that the run needs and is called before the ranks start.
`--set a.b=value` replaces one setting, with the type that the dataclass declares. Everything wrong in a file and in
its overrides is reported in one SettingsError (exit status 2), with the nearest valid name.
Proven by tests/recognition/test_config.py.
"""

import dataclasses
import difflib
import importlib.util
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal

from recognition.backbones import BackboneSettings
from recognition.data.dataset import split_roots
from recognition.data.plan import Augmentation
from recognition.errors import SettingsError
from recognition.heads.margins import MARGINS, ArcFace, Margin
from recognition.heads.row_optimizers import ROW_OPTIMIZERS, RowOptimizer
from recognition.heads.sharded import HeadSettings
from recognition.limits import batch_mistakes, type_mistakes, value_mistakes
from recognition.memory import INJECTIONS, Injection
from recognition.optimizer import OptimizerSettings
from recognition.schedule import ScheduleSettings
from recognition.setting_text import parse
from recognition.speed import SpeedSettings


@dataclass(frozen=True)
class DataSettings:
    """What is trained on. root: folder of a RecordIO set, or several (A,B), each with labels of its own.

    weights: of several sets, how often an epoch uses each sample of each; without any, once.
    reader: "stream" reads the files in order, for disks that cannot seek; the others follow one plan.
    decode: where DALI decodes on a GPU; auto measures the ways and keeps the fastest.
    threads: for decoding on each rank; 0: the rank's cores.
    bad_share: share of the images that may turn out undecodable and be replaced by others.
    """

    root: str = ""
    weights: tuple[float, ...] = ()
    reader: Literal["auto", "dali", "fallback", "stream"] = "auto"
    decode: Literal["auto", "cpu", "mixed", "shared"] = "auto"
    threads: int = 0
    bad_share: float = 1e-4
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class EvaluationSettings:
    """What the model is scored on.

    sets: verification files (.bin), each a path or a name of a file beside the training set (`lfw` → `lfw.bin`).
    degrade: sides in pixels to which the sets are also reduced.  ijb: folders in IJB's layout.
    every_epochs: how often the sets are scored while training, with torch; 0: only the exported file at the end.
    """

    sets: tuple[str, ...] = ()
    degrade: tuple[int, ...] = ()
    ijb: tuple[str, ...] = ()
    every_epochs: float = 1.0


@dataclass(frozen=True)
class CheckpointSettings:
    """How often the whole state is saved and which saves are kept.

    every_epochs, every_steps, every_minutes: each by itself, 0: not; there is always one at the end and on a stop.
    keep: so many of the newest, 0: all, e.g. for `eval.quality`.  keep_best: also the one with the highest mean
    accuracy.  keep_every_steps: also those of every so many steps, 0: none.
    asynchronous: training goes on while a copy of the state is written.
    compare_steps: how often the ranks compare their copies of the backbone besides before each save, 0: never.
    """

    every_epochs: float = 1.0
    every_steps: int = 0
    every_minutes: float = 30.0
    keep: int = 2
    keep_best: bool = False
    keep_every_steps: int = 0
    asynchronous: bool = True
    compare_steps: int = 1000


@dataclass(frozen=True)
class StartSettings:
    """What a new run starts from instead of random weights: one of the two, or neither.

    backbone: a model file of this project, a published state dict (.pt, .pth), or a .safetensors file of weights.
    checkpoint: a run's folder, its newest good save, or one save: both backbones, and the centres of the classes that
    the new set shares. Optimiser, memory, norm statistics and margin state start afresh.
    match: which classes are shared, those of one name or, for sets without names, of one number.
    """

    backbone: str = ""
    checkpoint: str = ""
    match: Literal["name", "number"] = "name"


@dataclass(frozen=True)
class LogSettings:
    """How often a step is logged, and where besides train.log and metrics.jsonl.

    tensorboard: curves in RUN/tensorboard.  pictures: also, once an epoch, a batch as the network sees it: it shows
    people.  wandb: project of Weights & Biases that TensorBoard's curves are copied to, without pictures; empty: none.
    """

    every_steps: int = 50
    tensorboard: bool = True
    pictures: bool = True
    wandb: str = ""


@dataclass(frozen=True)
class Config:
    """One run. batch_size is that of the whole optimiser step, over all ranks; epochs may be a fraction.

    micro_batches: parts in which a rank's share of the batch goes through the backbone, so that one part's activations
    fit; about 4/3 of the backbone's compute. Batch and head stay what they are; BatchNorm normalises part by part.
    precision: of the backbone and of the head's products. auto: bf16 on GPUs that have it, fp16 with loss scaling on
    those that do not, fp32 on CPUs.  timeout_seconds: a collective that takes longer is a failure.
    """

    name: str
    output: str = "runs"
    seed: int = 0
    batch_size: int = 1024
    micro_batches: int = 1
    epochs: float = 20.0
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    timeout_seconds: float = 600.0
    data: DataSettings = field(default_factory=DataSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    head: HeadSettings = field(default_factory=lambda: HeadSettings(ArcFace()))
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    start: StartSettings = field(default_factory=StartSettings)
    log: LogSettings = field(default_factory=LogSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)

    @property
    def folder(self) -> Path:
        """Where the run leaves its files."""
        return Path(self.output) / self.name


VARIANTS: dict[type, dict[str, type]] = {
    Margin: dict(MARGINS),
    Injection: dict(INJECTIONS),
    RowOptimizer: dict(ROW_OPTIMIZERS),
}
"""Settings that come in several kinds, chosen by name: `--set head.margin=cosface`, then `--set head.margin.m=0.35`."""

FREE_TO_CHANGE = ("name", "output", "timeout_seconds", "evaluation", "checkpoint", "log", "data.root", "data.decode",
                  "data.threads", "data.bad_share", "head.tile_bytes", "backbone.checkpointing", "speed.compile",
                  "speed.graphs", "speed.fold", "speed.prefetch", "speed.tune", "speed.hold_garbage")
"""Settings that do not change what is trained, so that a run may go on with other values. The data is compared by its
fingerprint, not by its place. Those of `speed` round otherwise, and with rows in bf16 other tiles round other rows up:
as good, but not the same bits."""


A_RANKS_OWN = ("output", "data.root", "data.decode", "data.threads")
"""Settings that may differ between the ranks of a run: places on their machines, and how they read."""

READER = "data.reader"  # may differ among those that take the plan's order, which all but `stream` do


def load(path: str | Path, overrides: Sequence[str] = (), ranks: int = 1) -> Config:
    """The config of a file with `a.b=value` overrides applied; SettingsError lists all that is wrong with either.

    ranks: how many will train, where that is known; the batch has to divide over them.
    """
    config = read_file(path).config()
    if not isinstance(config, Config):
        raise SettingsError(f"{path}: config() returned {type(config).__name__}, expected Config")
    problems: list[str] = []
    # A kind (head.margin=cosface) goes before its settings (head.margin.m=0.3), however they were written.
    for override in sorted(overrides, key=lambda override: override.partition("=")[0].count(".")):
        try:
            config = _override(config, override)
        except SettingsError as error:
            problems.append(str(error))
    problems += type_mistakes(config, VARIANTS) or (
        value_mistakes(config, settings_of(config)) + batch_mistakes(config, ranks)
    )
    if problems:
        raise SettingsError(f"{path}: {len(problems)} mistake(s) in the settings\n  " + "\n  ".join(problems))
    return config


def derived(file: str, base: str, *overrides: str) -> Config:
    """The config of another file with `a.b=value` overrides, named like the file that it is written for.

    file: the `__file__` of the config that asks.  base: the other file, from the first one's folder.
    """
    config: Config = read_file(Path(file).parent / base).config()
    for override in (*overrides, f"name={Path(file).stem}"):
        config = _override(config, override)
    return config


def read_file(path: str | Path) -> types.ModuleType:
    """A config file as a module. SettingsError when it is missing, does not run, or has no config()."""
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=3)
        hint = "; settings stand behind --set" if "=" in path.name else f"; near: {', '.join(near)}" if near else ""
        raise SettingsError(f"{path}: no such config file{hint}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SettingsError(f"{path}: a config file ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "config", None)):
            raise SettingsError(f"{path}: has no function config()")
        module.config()
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def _override(config: Config, override: str) -> Config:
    name, equals, text = override.partition("=")
    if not equals:
        raise SettingsError(f"--set {override}: expected NAME=VALUE")
    return _replace(config, name.strip().split("."), text, name.strip())


def _replace(settings: Any, path: list[str], text: str, name: str) -> Any:
    hints = typing.get_type_hints(type(settings))
    if path[0] not in hints:
        raise SettingsError(f"{name}: no such setting{_nearest(name, path[0], hints)}")
    value = getattr(settings, path[0])
    if len(path) > 1:
        if not is_dataclass(value):
            raise SettingsError(f"{name}: {path[0]} has no settings below it")
        new = _replace(value, path[1:], text, name)
    else:
        new = parse(text, hints[path[0]], name, VARIANTS)
    return dataclasses.replace(settings, **{path[0]: new})


def _nearest(name: str, wrong: str, valid: typing.Iterable[str]) -> str:
    """The nearest valid names: among the neighbours, else anywhere in the tree by the last part."""
    near = difflib.get_close_matches(wrong, list(valid), n=1)
    prefix = name.rpartition(".")[0]
    if near:
        return f"; nearest: {prefix + '.' if prefix and name.endswith(wrong) else ''}{near[0]}"
    group = name.partition(".")[0] if "." in name else ""  # elsewhere in the tree the same word means another thing
    known = (path for path in settings_of(Config(name="")) if path != name and path.startswith(group))
    everywhere = {path.rpartition(".")[2]: path for path in known}
    near = difflib.get_close_matches(name.rpartition(".")[2], list(everywhere), n=1)
    return f"; nearest: {everywhere[near[0]]}" if near else f"; valid: {', '.join(valid)}"


def settings_of(settings: Any, prefix: str = "") -> dict[str, Any]:
    """All settings as {dotted name: value}; a variant also under its own name with its kind."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(settings):
        value, name = getattr(settings, item.name), prefix + item.name
        if is_dataclass(value):
            for key, kind in (pair for names in VARIANTS.values() for pair in names.items()):
                if type(value) is kind:
                    flat[name] = key
            flat |= settings_of(value, name + ".")
        else:
            flat[name] = value
    return flat


def find_sets(config: Config) -> list[Path]:
    """The verification files of a run: each a path as given, or `NAME.bin` beside the training set.

    Raises SettingsError that lists all that are missing.
    """
    found, missing = [], []
    roots = split_roots(config.data.root)
    for root in roots:
        if not root.exists():
            raise SettingsError(f"data.root: no such folder: {root.absolute()}")
    for name in config.evaluation.sets:
        places = places_of(name, roots)
        place = next((p for p in places if p.is_file()), None)
        if place is None:
            missing.append(f"evaluation.sets: no file {' or '.join(map(str, places))}")
        else:
            found.append(place)
    missing += [f"evaluation.ijb: no folder {name}" for name in config.evaluation.ijb if not Path(name).is_dir()]
    stems = [path.stem for path in found]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    missing += [f"evaluation.sets: two sets are called {stem}" for stem in twice]
    if missing:
        raise SettingsError("\n  ".join(missing))
    return found


def places_of(name: str, roots: Sequence[Path]) -> list[Path]:
    """Where a verification set of this name may be: the path itself, or a file beside a training set."""
    return [Path(name), *(root / file for root in roots for file in (name, f"{name}.bin"))]


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Settings that differ between two runs and change what is trained, as `name: old → new`. JSON or live values.

    A setting that the old run did not know yet had its default.
    """
    plain_old, plain_new = json.loads(json.dumps(settings_of(Config(name="")) | old)), json.loads(json.dumps(new))
    plain_old = {name: value for name, value in plain_old.items() if name in old or name in new}
    plain_old, plain_new = _with_order(plain_old), _with_order(plain_new)
    return [
        f"{name}: {plain_old.get(name)} → {plain_new.get(name)}"
        for name in sorted(plain_old.keys() | plain_new.keys())
        if plain_old.get(name) != plain_new.get(name) and not _is_free(name)
    ]


def decisive_settings(config: Config) -> dict[str, Any]:
    """The settings that decide what is trained: a run goes on only with the same."""
    return {name: value for name, value in _with_order(settings_of(config)).items() if not _is_free(name)}


def agreed_settings(config: Config) -> dict[str, Any]:
    """The settings that all ranks must share, since they decide what is computed and when ranks exchange anything."""
    return {name: value for name, value in _with_order(settings_of(config)).items() if name not in A_RANKS_OWN}


def _with_order(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the reader replaced by what it decides."""
    if READER not in settings:
        return settings
    return settings | {READER: "stream" if settings[READER] == "stream" else "in the plan's order"}


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(free + ".") for free in FREE_TO_CHANGE)
