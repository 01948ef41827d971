"""The weights of backbones: arithmetic by hand on small ones, and what the documented table says is held."""

import json
import re
from pathlib import Path

import pytest
from torch import nn

from benchmarks import backbones
from recognition.backbones import BACKBONES
from recognition.config import Config, settings_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"
ROWS = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", PAGE.read_text(), re.M)


def test_held_bytes_by_hand():
    """Of a linear map in bf16: its input, once, however often it is read; not its weight."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 112 * 112, 2, bias=False))
    assert backbones.held_bytes(module, 3) - backbones.held_bytes(module, 2) == 2 * 3 * 112 * 112


def test_the_table_names_all_backbones():
    assert [name for name, *_ in ROWS] == [*BACKBONES]


@pytest.mark.parametrize(("name", "held", "checkpointing"), [
    pytest.param(name, *rest, marks=[pytest.mark.slow] if name != "tiny" else []) for name, _, _, *rest in ROWS
    if name in ("tiny", "mobilefacenet", "iresnet50", "vit_t")
])
def test_the_table_says_what_is_held(name, held, checkpointing):
    row = backbones.figures(name)
    assert row["held"] / 1e6 == pytest.approx(float(held), rel=0.02)
    assert row["held_checkpointing"] / 1e6 == pytest.approx(float(checkpointing), rel=0.05)


def test_the_page_names_settings_that_there_are():
    known = settings_of(Config("run"))
    named = re.findall(r"`((?:backbone|optimizer)\.\w+)`", PAGE.read_text())
    assert len(named) > 10
    assert set(named) <= known.keys()


def test_the_command_writes_its_figures(tmp_path, capsys):
    assert backbones.main(["tiny", "--json", str(tmp_path / "out.json")]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["backbones"]
    assert row["backbone"] == "tiny"
    assert row["held_checkpointing"] < row["held"]
    assert "tiny" in capsys.readouterr().out
