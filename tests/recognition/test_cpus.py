"""What is known of the processors, and what ranks start with."""

import os
import subprocess
import sys

import pytest

from recognition.cpus import available_cpus, bf16_instructions, rank_environment


def test_only_processors_that_may_be_used_count():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " \
           "from recognition.cpus import available_cpus; print(available_cpus())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1"
    assert available_cpus() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("flags", "expected"), [
    ("fpu avx512f avx512_bf16 amx_tile amx_bf16", "amx_bf16"),
    ("fpu avx512f avx512_bf16", "avx512_bf16"),
    ("fpu avx2 avx512f", ""),
])
def test_bf16_is_told_by_the_cpu_s_flags(tmp_path, flags, expected):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: a CPU\nflags\t\t: {flags}\nbugs\t\t: avx512_bf16\n")
    assert bf16_instructions(path) == expected


def test_an_unknown_cpu_has_none(tmp_path):
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert bf16_instructions(tmp_path / "arm") == bf16_instructions(tmp_path / "missing") == ""


def test_ranks_start_with_their_share_of_the_threads():
    environment = rank_environment(3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert int(environment["MALLOC_MMAP_THRESHOLD_"]) >= 1 << 30
