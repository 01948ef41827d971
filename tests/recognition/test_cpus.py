"""What is known of the processors, and what ranks start with."""

import os
import subprocess
import sys

import pytest

from recognition.cpus import available_cpus, rank_environment


def test_only_processors_that_may_be_used_count():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " \
           "from recognition.cpus import available_cpus; print(available_cpus())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1"


@pytest.mark.parametrize(("text", "expected"), [("max 100000\n", 3), ("150000 100000\n", 2), ("20000 100000\n", 1),
                                                ("900000 100000\n", 3), ("broken", 3), (None, 3)])
def test_a_container_s_quota_counts(tmp_path, monkeypatch, text, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 5})
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    assert available_cpus(tmp_path / "cpu.max") == expected


def test_ranks_start_with_their_share_of_the_threads():
    environment = rank_environment(3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert int(environment["MALLOC_MMAP_THRESHOLD_"]) >= 1 << 30
