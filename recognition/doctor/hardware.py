"""What this machine has, and what would be slow on it and why. Proven by tests/recognition/test_doctor_machine.py."""

import importlib
import os
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata

import torch

from recognition import machine
from recognition.cpus import available_cpus
from recognition.doctor.report import Report, amount, plural

CORES_A_GPU = 4
"""With fewer a GPU is likely to wait: a core decodes and augments 3,500 images a second (docs/data.md), and it is
also the one that starts kernels."""
SHARED_MEMORY = 1 << 30


def tell_machine(report: Report, ranks: int) -> None:
    """The section on the machine; `ranks`: processes that would train on it."""
    report.section("this machine")
    report.fact("Python", f"{platform.python_version()}, torch {torch.__version__}, {platform.system()} "
                f"{platform.machine()}")
    _devices(report)
    _processor(report, ranks)
    _memory(report)
    _loader(report)
    _packages(report)
    _exchange(report, ranks)


def _devices(report: Report) -> None:
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPUs"
        report.warning("devices", f"no CUDA device ({built}): training runs on the CPU, which suits the demo and small "
                       "backbones, not millions of images")
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        report.judge(free > 0.9 * total, f"GPU {number}", f"{facts.name}, {amount(total)} ({amount(free)} free), "
                     f"compute capability {facts.major}.{facts.minor}")
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        report.warning("bf16", "the GPU has none: precision=auto takes fp16 with loss scaling, whose first steps are "
                       "skipped while the scale finds its level")


def _processor(report: Report, ranks: int) -> None:
    cores, flags = available_cpus(), machine.matrix_instructions()
    name = machine.cpu_model() or platform.processor() or platform.machine()
    every = os.cpu_count() or cores
    told = f"{name}, {plural(cores, 'core')}" + (f" of {every} (the others are not ours)" if cores < every else "")
    report.figures["cores"] = cores
    if torch.cuda.is_available():
        share = cores / ranks
        advice = "" if share >= CORES_A_GPU else (
            f": {share:.1f} for each of {ranks} GPUs, which may wait for images; data.decode=auto lets them help")
        report.judge(not advice, "processor", told + advice)
    else:
        report.judge(cores >= ranks, "processor", told + ("" if cores >= ranks else f" for {ranks} ranks: set NPROC"))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5 * cores:
        report.warning("busy", f"{load:.1f} processes compute on average: times are of a machine shared with others")
    advice = "" if torch.cuda.is_available() else f"; {bf16_on_cpu(flags, cores)}"
    report.fact("instructions", ", ".join(flags or ["none of those known here"]) + advice)


def bf16_on_cpu(flags: Sequence[str], cores: int) -> str:
    """Whether bf16 would pay on a CPU with these instructions, and what measures it where nothing has."""
    if not any("bf16" in flag for flag in flags):
        return "no bf16: on this CPU fp32 is the fast precision"
    if (slow := slow_on_cpu("bfloat16", flags)):
        return f"precision=bf16 does not pay: {slow}"
    has = "amx_bf16 has tiles for it" if "amx_bf16" in flags else "this kind of CPU was not measured"
    return (f"precision=bf16 may pay ({has}): measure with python benchmarks/cpu.py --only \"2 ranks × "
            f"{max(1, cores // 2)}\" bf16")


def slow_on_cpu(precision: str, flags: Sequence[str]) -> str:
    """Why products of a torch type are slow on a CPU with these instructions; "" where nothing says so."""
    none = "which this CPU has no instructions for"
    if precision == "bfloat16" and "avx512_bf16" in flags and "amx_bf16" not in flags:
        return "measured slower than fp32 with avx512_bf16 alone (docs/scaling.md)"
    if precision == "bfloat16":
        return "" if any("bf16" in flag for flag in flags) else none
    return none if precision == "float16" and not {"avx512_fp16", "amx_fp16", "asimdhp"} & {*flags} else ""


def _memory(report: Report) -> None:
    total, left = machine.total_memory(), machine.available_memory()
    if total is None or left is None:
        report.fact("memory", "the system does not tell")
    else:
        report.fact("memory", f"{amount(total)}, {amount(left)} of it available")
    shared = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None
    if shared is not None and shared < SHARED_MEMORY and torch.cuda.device_count() > 1:
        report.warning("/dev/shm", f"{amount(shared)}: NCCL between GPUs wants more (docker run --shm-size=8g)")


def _loader(report: Report) -> None:
    versions = [f"{package} {metadata.version(package)}" for package in ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
                if _is_installed(package)]
    try:
        importlib.import_module("nvidia.dali")
    except Exception as error:  # of a shared library, of a driver: it says itself what it lacks
        why = f"{versions[0]} does not load: {_first_line(error)}" if versions else "not installed"
        report.warning("DALI", f"{why}: the fallback reads instead (OpenCV and NumPy), which is slower and needs more "
                       "cores; requirements.txt has DALI for Linux on x86_64")
    else:
        report.fact("DALI", f"{versions[0] if versions else 'installed'}, loads; images are decoded on the "
                    f"{'CPU, the GPU or both, whichever is fastest' if torch.cuda.is_available() else 'CPU'}")


def _packages(report: Report) -> None:
    if torch.cuda.is_available():
        report.judge(_is_installed("triton"), "Triton", _version("triton") or
                     "missing: the head takes torch's operations instead of the fused kernels")
        report.fact("apex", "there: optimizer.implementation=apex can be chosen" if _loads("apex.optimizers") else
                    "not there; nothing needs it (optimizer.implementation=auto is torch's fused kernels)")
        report.judge(_loads("pynvml"), "pynvml", _version("nvidia-ml-py") or
                     "missing: TensorBoard shows no GPU utilisation (pip install nvidia-ml-py)")
    if _loads("onnxruntime"):
        providers = importlib.import_module("onnxruntime").get_available_providers()
        report.fact("onnxruntime", f"{_version('onnxruntime') or ''} with {', '.join(providers)}".strip())
    else:
        report.warning("onnxruntime", "missing: a run cannot be finished (export and evaluation)")


def _exchange(report: Report, ranks: int) -> None:
    backends = [name for name, there in (("NCCL", torch.distributed.is_nccl_available()),
                                         ("gloo", torch.distributed.is_gloo_available())) if there]
    wanted = "NCCL" if torch.cuda.is_available() else "gloo"
    report.judge(wanted in backends or ranks == 1, "exchange", f"{', '.join(backends) or 'no backend'}; "
                 f"{plural(ranks, 'rank')} here over {wanted}")


def _is_installed(package: str) -> bool:
    return _version(package) is not None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _loads(module: str) -> bool:
    try:
        importlib.import_module(module)
    except Exception:  # whatever a foreign package raises: it cannot be used
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
