"""docs/migrating.md names settings, configs and backbones that exist, with values that they take."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from recognition.backbones import BACKBONES
from recognition.config import VARIANTS, Config, derived
from recognition.limits import type_mistakes
from tools.import_checkpoint import NETWORKS

ROOT = Path(__file__).resolve().parent.parent
LINES = (ROOT / "docs" / "migrating.md").read_text().splitlines()
SETTING = re.compile(r"[a-z][a-z_0-9]*(?:\.[a-z_0-9]+)*=\S+")
NAMES = {field.name for field in fields(Config)}


def _settings(line: str) -> list[str]:
    """The settings of a line, as `name=value`: in backquotes, or in a command."""
    found = [span for span in re.findall(r"`([^`]+)`", line) if SETTING.fullmatch(span)]
    if "--set " in line:
        found += SETTING.findall(line.split("--set ", 1)[1].split("#")[0])
    return [setting for setting in found if setting.split("=")[0].split(".")[0] in NAMES]


def _lines() -> list[str]:
    return [line for line in LINES if _settings(line)]


@pytest.mark.parametrize("line", _lines(), ids=lambda line: line[:40])
def test_settings_exist_and_take_these_values(line):
    config = derived(str(ROOT / "configs" / "any.py"), "published/ms1mv3_r50.py", *_settings(line))
    assert type_mistakes(config, VARIANTS) == []


def test_the_page_is_about_settings():
    assert len(_lines()) > 30
    assert len({setting.split("=")[0] for line in _lines() for setting in _settings(line)}) > 40


def test_configs_and_backbones_exist():
    text = "\n".join(LINES)
    configs = set(re.findall(r"bash run\.sh (configs/\S+\.py)", text))
    assert configs
    assert all((ROOT / config).is_file() for config in configs)
    named = set(re.findall(r"--backbone (\w+)|`(\w+)` `backbone|backbone\.name=(\w+)", text))
    assert {name for names in named for name in names if name} <= BACKBONES.keys()
    assert set(NETWORKS.values()) <= BACKBONES.keys()
