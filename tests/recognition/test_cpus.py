"""What is known of the processors, and what ranks start with."""

import os
import subprocess
import sys

import pytest

from recognition.cpus import available_cpus, libc_version, rank_environment


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


@pytest.mark.parametrize("libc", ["glibc 2.28", "glibc 2.34", "glibc 2.35", "glibc 3.0", "", None])
def test_ranks_start_with_their_share_of_the_threads_and_a_malloc_that_keeps(libc):
    """A threshold that a glibc refuses may not be set: without it the other one makes malloc give all back."""
    environment = rank_environment(3, {}, libc)
    assert environment.pop("OMP_NUM_THREADS") == "3"
    old = libc in ("glibc 2.28", "glibc 2.34")
    assert environment == {"MALLOC_MMAP_MAX_" if old else "MALLOC_MMAP_THRESHOLD_": "0" if old else str(1 << 30),
                           "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}


@pytest.mark.parametrize("libc", ["glibc 2.34", "glibc 2.36"])
@pytest.mark.parametrize("given", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_"])
def test_what_the_user_has_set_goes_before(libc, given):
    """Also where both say what is mapped: that nothing is would leave a threshold without a meaning."""
    environment = rank_environment(3, {given: "1000000", "OMP_NUM_THREADS": "1", "PATH": "/bin"}, libc)
    assert environment == {"MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
    assert "MALLOC_TRIM_THRESHOLD_" not in rank_environment(3, {"MALLOC_TRIM_THRESHOLD_": "5"}, libc)


@pytest.mark.skipif(not libc_version(), reason="another malloc than glibc's")
@pytest.mark.parametrize("libc", ["glibc 2.34", None], ids=["old", "this"])
def test_malloc_keeps_large_pieces(libc):
    """Page faults of memory that is given back and taken again: as it comes all its pages, as launched hardly any."""
    code = "import resource\n" \
           "def use():\n" \
           "    for _ in range(5): del [b'1' * (100 << 20), b'2' * (100 << 20)][:]\n" \
           "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n" \
           "print(-use() + use())"
    faults = []
    for variables in ({}, rank_environment(1, {}, libc)):
        bare = {name: value for name, value in os.environ.items()
                if not name.startswith("MALLOC_") and name not in ("LD_PRELOAD", "GLIBC_TUNABLES")}
        result = subprocess.run([sys.executable, "-c", code], env=bare | variables, capture_output=True, text=True,
                                check=True)
        faults.append(int(result.stdout))
    if not faults[0]:
        pytest.skip("the system does not count page faults")
    assert faults[1] < faults[0] / 20
