"""Weights & Biases is asked for by name, and a package that is not there is a setting's mistake."""

import importlib.util

import pytest

from recognition.config import load
from recognition.errors import SettingsError

FILE = "from recognition.config import *\ndef config():\n    return Config(name='a', data=DataSettings(root='x'))\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(FILE)
    return path


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed here")
def test_a_missing_package_is_told_before_anything_starts(file):
    with pytest.raises(SettingsError, match=r"log\.wandb: 'faces'; expected the package wandb: pip install wandb"):
        load(file, ["log.wandb=faces"])


def test_it_copies_tensorboard_and_needs_it(file):
    with pytest.raises(SettingsError, match=r"log\.wandb: 'faces'; expected log\.tensorboard=true"):
        load(file, ["log.wandb=faces", "log.tensorboard=false"])
