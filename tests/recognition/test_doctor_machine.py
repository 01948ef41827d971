"""What the doctor says of this machine: its loader, and which types its CPU is slow with."""

import importlib
import shlex
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cpu
from recognition import machine
from recognition.config import load
from recognition.doctor import hardware
from recognition.doctor.examine import _tell_settings
from recognition.doctor.report import Report

sys.path.insert(0, str(Path(__file__).parent))

import doctor_runs

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("works", [True, False])
def test_the_loader_of_this_machine_is_told(monkeypatch, works):
    real = importlib.import_module

    def load_module(name: str) -> object:
        if name != "nvidia.dali":
            return real(name)
        if not works:
            raise ImportError("libdali.so: cannot open")
        return object()

    monkeypatch.setattr(importlib, "import_module", load_module)
    report = Report()
    hardware.tell_machine(report, 1)
    (fact,) = [fact for fact in report.sections["this machine"] if fact.name == "DALI"]
    assert fact.kind == ("fact" if works else "warning")
    assert ("loads" if works else "the fallback reads instead") in fact.text


AVX = ["avx2", "avx512f"]


@pytest.mark.parametrize(("precision", "flags", "slow"), [
    ("fp32", AVX, ""),
    ("bf16", AVX, "no instructions"),
    ("bf16", [*AVX, "avx512_bf16"], "measured slower"),
    ("bf16", [*AVX, "avx512_bf16", "amx_bf16"], ""),
    ("bf16", ["asimd", "bf16"], ""),
    ("fp16", [*AVX, "avx512_bf16"], "no instructions"),
    ("fp16", [*AVX, "avx512_bf16", "avx512_fp16"], ""),
    ("fp16", ["asimd", "asimdhp"], ""),
])
def test_a_type_that_this_cpu_is_slow_with_is_told(tmp_path, monkeypatch, precision, flags, slow):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "matrix_instructions", lambda: flags)
    file = doctor_runs.config_file(tmp_path, tmp_path)
    config = load(file, [f"precision={precision}"])
    report = Report()
    report.section("settings")
    _tell_settings(report, config, file, [], 1)
    (fact,) = [fact for fact in report.sections["settings"] if fact.name == "precision"]
    assert fact.kind == ("warning" if slow else "fact")
    assert slow in fact.text


def test_whether_bf16_pays_on_a_cpu():
    assert "fp32 is the fast precision" in hardware.bf16_on_cpu(AVX, 2)
    assert "does not pay: measured slower" in hardware.bf16_on_cpu([*AVX, "avx512_bf16"], 2)
    for flags, cores in (([*AVX, "avx512_bf16", "amx_bf16"], 2), (["asimd", "bf16"], 9), ([*AVX, "amx_bf16"], 1)):
        command = shlex.split(hardware.bf16_on_cpu(flags, cores).partition("measure with ")[2])
        assert (ROOT / command[1]).is_file()
        assert {*command[3:]} <= {variant.name for variant in cpu.variants(cores)}
