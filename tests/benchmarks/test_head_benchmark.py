"""The head's benchmark measures what it says."""

import json

import pytest
import torch

from benchmarks import head, measure
from recognition.errors import SettingsError

PROBLEM = head.Problem(classes=300, batch=8, size=256, device="cpu", product="float32", threads=None)


def test_one_thing_changes_at_a_time():
    options = head.parse(["--rates", "0.1", "1", "--margins", "cosface", "normface", "--injections", "none", "vpl",
                          "--tiles-mib", "8"])
    named = [(variant.rate, variant.name) for variant in head.variants(options)]
    ours = ["ours, cosface", "ours, normface", "ours, cosface, vpl", "ours, cosface, tiles of 8 MiB"]
    assert named == [(rate, name) for rate, other in ((1, "full softmax"), (0.1, "plain, dense"))
                     for name in ["plain, cosface", f"{other}, cosface", *ours]]


def test_all_variants_run_on_the_same_centers():
    options = head.parse(["--injections", "none", "vpl", "qaface"])
    contestants = list(head.variants(options))
    shared: dict[str, torch.Tensor] = {}
    ready = [head.build(variant, PROBLEM, shared) for variant in contestants]
    for variant, contestant in zip(contestants, ready, strict=True):
        assert {contestant.state[name].data_ptr() for name in ("weight", "velocity")} == {
            shared[name].data_ptr() for name in ("weight", "velocity")
        }
        before = shared["velocity"].clone()
        contestant.step()
        assert not torch.equal(shared["velocity"], before), variant


def test_every_class_is_fresh():
    """Otherwise the time of injection would be that of doing nothing."""
    plain = head.build(head.Variant("ours"), PROBLEM)
    injected = head.build(head.Variant("ours", inject="vpl"), PROBLEM)
    assert (injected.state["stamp"] == 0).all()
    assert (injected.state["memory"] != 0).any(dim=1).all()
    injected.state["weight"].copy_(plain.state["weight"])
    plain.step()
    injected.step()
    assert not (plain.state["velocity"] == injected.state["velocity"]).all(dim=1).any()
    assert (injected.state["stamp"] == 1).any()


def test_peak_is_what_was_in_use_for_a_moment():
    before = measure.memory_now("cpu")
    measure.restart_high_water("cpu")
    torch.ones(48 << 20, dtype=torch.uint8)
    assert 47 << 20 < measure.high_water("cpu") - before < 56 << 20
    assert measure.memory_now("cpu") - before < 8 << 20


@pytest.mark.slow
def test_writes_json_and_a_plot(tmp_path, capsys):
    out = tmp_path / "head.json"
    head.main(["--classes", "20000", "--batch", "128", "--size", "64", "--rates", "1", "--margins", "arcface",
               "--injections", "none", "--tiles-mib", "--kinds", "plain", "ours", "--repeats", "1",
               "--json", str(out), "--plot", str(tmp_path / "head.png")])
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == ["plain, arcface", "ours, arcface"]
    assert all(row["milliseconds"] > 0 and row["state_mib"] == 20000 * 64 * 8 / 2**20 for row in rows)
    logits = 20000 * 128 * 4 / 2**20
    assert rows[0]["time_ratio"] == 1
    assert rows[0]["peak_mib"] > 2 * logits
    assert (tmp_path / "head.png").stat().st_size > 1000
    assert "ours, arcface" in capsys.readouterr().out


def test_says_when_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="no GPU"):
        head.parse(["--device", "cuda"])
