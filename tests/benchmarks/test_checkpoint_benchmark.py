"""The benchmark of saves: what it writes, and its arithmetic on paper."""

import json

import pytest

from benchmarks import checkpoint


def test_a_small_measurement(tmp_path, capsys):
    out = tmp_path / "out.json"
    checkpoint.main(["--classes", "50", "--size", "8", "--backbone", "100", "--saves", "2", "--folder", str(tmp_path),
                     "--interval", "100", "--json", str(out)])
    result = json.loads(out.read_text())
    waited, beside = result["measured"]
    assert (waited["asynchronous"], beside["asynchronous"]) == (False, True)
    assert waited["bytes"] == beside["bytes"] > 50 * (3 * 8 * 4 + 8) + 3 * 100 * 4
    assert waited["slowdown"] == 0
    assert waited["share"] == pytest.approx(waited["stall"] / (100 + waited["stall"]))
    assert list(tmp_path.iterdir()) == [out], "the saves are removed"
    assert "10,000,000" in capsys.readouterr().out


def test_on_paper():
    rates = {"hash": 1e9, "link": 20e9, "disk": 4e9}
    waited, beside = (checkpoint.on_paper(4, asynchronous, 512, rates, 600) for asynchronous in (False, True))
    assert waited["bytes"] == 10_000_000 * (3 * 2048 + 8)
    assert beside["stall"] == pytest.approx(61.52 / 4 / 20)
    assert waited["stall"] == pytest.approx(61.52 / 4 / 20 + 2 * 61.52 / 4)
    slow = checkpoint.on_paper(2, False, 512, rates, 600)  # hashing 30 GB a rank takes longer than the disk
    assert slow["stall"] == pytest.approx(61.52 / 2 / 20 + 2 * 61.52 / 2)
    assert waited["share"] == pytest.approx(waited["stall"] / (600 + waited["stall"]))
