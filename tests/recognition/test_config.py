"""Overrides are typed, mistakes are all listed with the nearest name, every setting is read somewhere."""

import dataclasses
import json
import os
import re
import typing
from pathlib import Path

import pytest

from recognition import config as configuration
from recognition.config import Config, changes, load, settings_of
from recognition.errors import SettingsError
from recognition.heads.margins import CosFace

ROOT = Path(__file__).resolve().parent.parent.parent
HEADER = "from recognition.config import *\nfrom recognition.heads.margins import *\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "with space.py"
    path.write_text(HEADER + "def config():\n    return Config(name='a', data=DataSettings(root='x'))\n")
    return path


def test_overrides_take_the_declared_type(file):
    got = load(file, [
        "epochs=2.5", "batch_size=64", "optimizer.clip_norm=none", "log.tensorboard=false", "precision=bf16",
        "schedule.milestones=1,2", "data.augmentation.crop_area=0.5,1", "head.margin=cosface", "head.margin.m=0.2",
        "evaluation.sets=lfw,cfp_fp", "data.root=/a=b",
    ])
    assert (got.epochs, got.batch_size, got.optimizer.clip_norm, got.log.tensorboard) == (2.5, 64, None, False)
    assert got.precision == "bf16"
    assert got.schedule.milestones == (1.0, 2.0)
    assert got.data.augmentation.crop_area == (0.5, 1.0)
    assert got.head.margin == CosFace(m=0.2)
    assert got.evaluation.sets == ("lfw", "cfp_fp")
    assert got.data.root == "/a=b"


def test_all_mistakes_are_listed_with_the_nearest_name(file):
    wrong = ["epoch=3", "optimiser.lr=0.1", "batch_size=many", "precision=fp61", "head.margin=arcfase", "seed=-1",
             "head.margin.n=0.1", "nothing", "log=3", "head.sample_rate=nan", "backbone.name=iresnet10"]
    with pytest.raises(SettingsError) as caught:
        load(file, wrong)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == len(wrong)
    text = str(caught.value)
    for expected in ("nearest: epochs", "nearest: optimizer", "'many' is not a whole number", "nearest: fp16",
                     "nearest: arcface", "seed: -1", "head.margin.n: no such setting; valid: s", "NAME=VALUE",
                     "is a group", "head.sample_rate: nan", "iresnet100"):
        assert expected in text


@pytest.mark.parametrize(("overrides", "ranks", "expected"), [
    (["batch_size=64", "micro_batches=0"], 1, "micro_batches: 0; expected at least 1"),
    (["batch_size=64", "micro_batches=3"], 1, "micro_batches: 3 parts do not divide a rank's 64 images evenly"),
    (["batch_size=64", "micro_batches=32"], 4,
     "micro_batches: 32 parts do not divide a rank's 16 images (batch_size 64 over 4 ranks) evenly"),
    (["batch_size=66", "micro_batches=2"], 4, "batch_size: 66 is not a positive multiple of the 4 ranks"),
    (["batch_size=64", "micro_batches=16"], 4, "micro_batches: 16 images in 16 parts: one image alone has no batch"),
])
def test_batch_that_cannot_be_cut_is_told_with_the_other_mistakes(file, overrides, ranks, expected):
    with pytest.raises(SettingsError, match=re.escape(expected)) as caught:
        load(file, [*overrides, "seed=-1"], ranks)
    assert "2 mistake(s)" in str(caught.value)
    assert "seed: -1" in str(caught.value)


def test_batch_that_can_be_cut(file):
    got = load(file, ["batch_size=64", "micro_batches=16", "backbone.norm=group"], 4)
    assert (got.batch_size, got.micro_batches) == (64, 16)


def test_nearest_name_is_found_in_another_group(file):
    with pytest.raises(SettingsError, match=r"sample_rate: no such setting; nearest: head\.sample_rate"):
        load(file, ["sample_rate=0.1"])


@pytest.mark.parametrize(("body", "expected"), [
    ("return Config(name='a', epochs='3', data=DataSettings(root='x', threads=1.5))", "epochs: '3' is not a number"),
    ("return Config(name='a', epochs='3', data=DataSettings(root='x', threads=1.5))", "data.threads: 1.5 is not"),
    ("return Config(name='a', batchsize=3)", "batchsize"),
    ("return 3", "returned int"),
    ("return undefined", "NameError"),
    ("return Config(name='../up', data=DataSettings(root='x'))", "plain folder name"),
])
def test_mistakes_in_the_file(tmp_path, body, expected):
    path = tmp_path / "c.py"
    path.write_text(HEADER + f"def config():\n    {body}\n")
    with pytest.raises(SettingsError, match=re.escape(expected)):
        load(path)


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "demo.py").write_text("")
    with pytest.raises(SettingsError, match=r"near: demo\.py"):
        load(tmp_path / "dmo.py")


def test_a_setting_in_a_configs_place_is_told_where_it_belongs():
    with pytest.raises(SettingsError, match=r"epochs=2: no such config file; settings stand behind --set"):
        configuration.read_file("epochs=2")


def test_changes_ignore_what_does_not_train():
    old = Config(name="a")
    new = dataclasses.replace(old, name="b", seed=3, log=configuration.LogSettings(every_steps=7))
    stored = json.loads(json.dumps(settings_of(old)))
    assert changes(stored, settings_of(old)) == []
    assert changes(stored, settings_of(new)) == ["seed: 0 → 3"]
    margin = dataclasses.replace(old.head, margin=CosFace())
    assert "head.margin: arcface → cosface" in changes(stored, settings_of(dataclasses.replace(old, head=margin)))


def _all_settings() -> set[tuple[str, str]]:
    """(class, field) of every settings dataclass that a config can hold, all variants included."""
    seen: set[type] = set()
    kinds = [Config, *(kind for names in configuration.VARIANTS.values() for kind in names.values())]
    while kinds:
        kind = kinds.pop()
        if kind not in seen:
            seen.add(kind)
            kinds += [hint for hint in typing.get_type_hints(kind).values() if dataclasses.is_dataclass(hint)]
    return {(kind.__name__, field.name) for kind in seen for field in dataclasses.fields(kind)}


def test_every_setting_is_read_somewhere():
    """A setting that nothing reads is a lie to the user: each is an attribute of something that holds its group."""
    code = "\n".join(
        path.read_text() for folder in ("recognition", "eval", "tools") for path in (ROOT / folder).rglob("*.py")
    )
    holders = {
        "Config": "(?:config|self)", "DataSettings": "data", "EvaluationSettings": "evaluation", "LogSettings": "log",
        "CheckpointSettings": "(?:settings|checkpoint)", "StartSettings": "start", "HeadSettings": "(?:settings|head)",
        "BackboneSettings": "(?:settings|backbone)",
        "SpeedSettings": "speed", "OptimizerSettings": "(?:settings|optimizer)", "ScheduleSettings": "settings",
        "Augmentation": "augmentation",
        "Injection": "(?:inject|injection)", "VPL": "(?:inject|injection|self)", "QAFace": "(?:inject|injection|self)",
    }
    unread = []
    for kind, name in _all_settings():
        holder = holders.get(kind, "(?:margin|self)")
        literal = f'getattr\\({holder}, "{name}"'
        if not re.search(rf"\b{holder}\.{name}\b|{literal}", code):
            unread.append(f"{kind}.{name}")
    assert sorted(unread) == []


def test_a_derived_config_changes_what_it_names_and_its_name(tmp_path):
    base = ROOT / "configs" / "wf4m_r100.py"
    file = tmp_path / "other.py"
    file.write_text(
        "from recognition.config import *\ndef config():\n"
        f"    return derived(__file__, {os.path.relpath(base, tmp_path)!r}, 'head.inject.tau=3', 'epochs=30')\n"
    )
    different = {"name": ("wf4m_r100", "other"), "head.inject.tau": (2.0, 3.0), "epochs": (24, 30.0)}
    old, new = (configuration.settings_of(load(path)) for path in (base, file))
    assert {name: (old[name], new[name]) for name in old if old[name] != new[name]} == different


@pytest.mark.parametrize("name", ["age_0500", "tau_3"])
def test_an_ablation_changes_one_thing(name):
    base = configuration.settings_of(load(ROOT / "configs" / "wf4m_r100.py"))
    settings = configuration.settings_of(load(ROOT / "configs" / "ablations" / f"{name}.py"))
    assert len([key for key in base if base[key] != settings[key]]) == 2  # and its name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda path: path.stem)
def test_every_config_file_loads_and_documents_itself(path):
    module = configuration.read_file(path)
    assert f"bash run.sh {path.relative_to(ROOT)}" in (module.__doc__ or "")
    overrides = [] if module.config().data.root else ["data.root=x"]
    assert load(path, overrides).name == path.stem
