"""Ranks of the benchmarks: on the CPU whatever the machine has, in an environment that is put back."""

import os

import pytest

from benchmarks.ranks import environment_of, on_ranks

TOLD = """
import os

def told(ranks, name):
    return os.environ["CUDA_VISIBLE_DEVICES"], ranks.device.type, ranks.rank, os.environ.get(name)
"""


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ranks_see_no_gpu(tmp_path, monkeypatch, world):
    """Where there are GPUs, gloo ranks would be NCCL's, and a rank alone would train on the first."""
    (tmp_path / "what_ranks_see.py").write_text(TOLD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    from what_ranks_see import told

    found = on_ranks(world, told, "GIVEN", environment={"GIVEN": "too"})
    assert found == [("", "cpu", rank, "too") for rank in range(world)]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("FIRST", "1")
    monkeypatch.delenv("SECOND", raising=False)
    with environment_of({"FIRST": None, "SECOND": "2"}):
        assert "FIRST" not in os.environ
        assert os.environ["SECOND"] == "2"
    assert os.environ["FIRST"] == "1"
    assert "SECOND" not in os.environ
