"""Weights & Biases is asked for by name; with the real package, offline, no key, path or picture is where it goes.

The package gets an environment of its own, build/wandb, which also sees this one's packages, by the first slow test
that asks for it (pip, about 60 MB).
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.roc_plot import roc_picture
from recognition.config import load
from recognition.errors import SettingsError

ROOT = Path(__file__).resolve().parents[2]
WANDB = "wandb==0.31.0"
KEY = "0123456789abcdef0123456789abcdef01234567"

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


@pytest.fixture(scope="module")
def wandb_python() -> str:
    """An interpreter that has wandb, and what this one has."""
    folder = ROOT / "build" / "wandb"
    python = str(folder / "bin" / "python")
    works = [python, "-c", f"import torch, wandb; assert 'wandb==' + wandb.__version__ == {WANDB!r}"]
    if not Path(python).exists() or subprocess.run(works, capture_output=True, check=False).returncode:
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", folder], capture_output=True, check=False)
        if made.returncode == 0:
            packages = next((folder / "lib").glob("python*/site-packages"))
            (packages / "trainer.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", WANDB]
        for command in (install, works):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no wandb: {' '.join(command)}: {done.stderr.strip()[-300:]}")
    return python


CONFIG = """
from recognition.backbones import BackboneSettings
from recognition.config import *
def config():
    return Config(name="run", output={output!r}, batch_size=16, epochs=1,
                  data=DataSettings({root!r}, reader="fallback"), backbone=BackboneSettings("tiny", 16),
                  log=LogSettings(2, wandb="faces"), evaluation=EvaluationSettings(("pairs",)))
"""


@pytest.mark.slow
def test_no_key_no_path_and_no_picture_leaves(wandb_python, tmp_path, small_set):
    """A run of 6 steps, twice in one folder, as a run that goes on: one id, and nothing that should stay here."""
    (tmp_path / "c.py").write_text(CONFIG.format(output=str(tmp_path), root=str(small_set)))
    environment = os.environ | {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline", "HOME": str(tmp_path / "home"),
                                "PYTHONPATH": str(ROOT)}
    said = ""
    for number in range(2):
        done = subprocess.run([wandb_python, "-m", "recognition.train", tmp_path / "c.py"], capture_output=True,
                              text=True, cwd=tmp_path, env=environment, check=False, timeout=240)
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
        runs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
        assert len(runs) == number + 1
        (tmp_path / "run" / "checkpoints").rename(tmp_path / f"aside-{number}")  # so that it trains once more
    identity = (tmp_path / "run" / "wandb_id").read_text().strip()
    assert all(run.name.endswith(identity) for run in runs)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [str(path) for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in said
    sent = b"".join(path.read_bytes() for run in runs for path in run.glob("*.wandb"))
    assert b"head/embedding_norm_mean" in sent
    assert b"verification/roc" in sent
    assert b"head.margin" in sent
    assert str(small_set).encode() not in sent
    pictures = [path.name for path in (tmp_path / "run" / "pictures").iterdir()]
    curves = [path.name for path in (tmp_path / "run" / "tensorboard").iterdir()]
    curve = roc_picture({"a": {"far": np.array([0.1, 1]), "tar": np.array([0.5, 1])}}, "")
    for run in runs:  # event files are copied whole where the run's folder lies below the working directory
        copied = [path for path in run.rglob("*") if path.is_file()]
        assert not any(path.name in pictures for path in copied)
        assert any(path.name in curves for path in copied)
        assert [cv2.imread(str(path)).shape for path in copied if path.suffix == ".png"] == [curve.shape]
