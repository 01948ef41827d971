"""The benchmark of ways to train on a CPU: its variants, and a measurement of two of them."""

import json

import pytest

from benchmarks import cpu
from recognition.config import load
from recognition.cpus import rank_environment
from recognition.errors import SettingsError


def test_one_thing_changes_at_a_time():
    first, *others = cpu.variants(2)
    assert (first.ranks, first.threads, first.overrides, first.malloc, first.flush) == (2, 1, (), True, False)
    for other in others:
        differs = [(other.ranks, other.threads) != (2, 1), bool(other.overrides), not other.malloc, other.flush]
        assert sum(differs) == 1, other
    assert len({variant.name for variant in cpu.variants(16)}) == len(cpu.variants(16))
    assert all(variant.ranks * variant.threads <= 16 for variant in cpu.variants(16))


def test_only_the_variant_that_says_so_is_compiled():
    """Auto may compile a run as long as these, and the first variant is what compiling is compared with."""
    found = {variant.name: load(cpu.CONFIG, ["data.root=x", *cpu.COMMON, *variant.overrides]).speed.compile
             for variant in cpu.variants(2)}
    assert found.pop("compiled blocks") == "blocks"
    assert set(found.values()) == {"off"}


@pytest.mark.parametrize("malloc", [True, False])
def test_malloc_is_as_launched_or_as_it_comes(monkeypatch, malloc):
    """Whatever of malloc's the user has set."""
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX"):
        monkeypatch.setenv(name, "5")
    seen = []

    def on_ranks(*arguments, environment):
        seen.append(environment)
        return [{"seconds": 1.0, "cpu_seconds": 1.0, "faults": 0.0, "start": 1.0}]

    monkeypatch.setattr(cpu, "on_ranks", on_ranks)
    cpu.take(cpu.Variant("one", 1, 1, malloc=malloc), (), 1)
    (environment,) = seen
    unset = {"MALLOC_MMAP_THRESHOLD_": None, "MALLOC_ARENA_MAX": None}
    assert environment == unset | (rank_environment(1, {}) if malloc else {"OMP_NUM_THREADS": "1"})


def test_unknown_variants_are_named():
    with pytest.raises(SettingsError, match="denormals flushed"):
        cpu.main(["--only", "faster"])


@pytest.mark.slow
def test_a_small_measurement(tmp_path, capsys):
    out = tmp_path / "cpu.json"
    names = [cpu.variants(cpu.available_cpus())[0].name, "malloc as it comes"]
    cpu.main(["--backbone", "tiny", "--batch", "16", "--steps", "2", "--rounds", "1", "--only", *names,
              "--json", str(out)])
    result = json.loads(out.read_text())
    assert [row["name"] for row in result["rows"]] == names
    launched, plain = result["rows"]
    assert launched["ratio"] == launched["cpu_ratio"] == 1
    assert all(row["seconds"] > 0 < row["cpu_seconds"] and row["faults"] >= 0 for row in (launched, plain))
    assert "malloc as it comes" in capsys.readouterr().out
