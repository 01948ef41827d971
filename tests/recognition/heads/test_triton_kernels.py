"""The CUDA path against the torch path's formulas in float64: run in Triton's interpreter, and compiled without a GPU.

The interpreter has to be chosen before Triton is imported, so it lives in a process of its own. It multiplies bfloat16
wrongly; float16 stands for both.
"""

import dataclasses
import multiprocessing
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from recognition.heads import fused
from recognition.heads.fused import UsedRows
from recognition.heads.margins import MARGINS
from recognition.heads.row_optimizers import RowSGD
from recognition.memory import VPL, Injection, QAFace, effective_centers, effective_gradient
from recognition.vectors import unit

OPTIMIZER = RowSGD(0.9, 5e-4)
LR = 0.1
ONE_BLOCK = 1
"""Scratch memory so small that a tile is one block of rows."""


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Callable[..., Any]]:
    """`interpreter(function, *arguments)`: run a module-level function where kernels are interpreted on the CPU."""
    pytest.importorskip("triton")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (1,)) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()  # the process starts here, and only it may see the variable
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


HOPPER = {"shared": 227 << 10, "registers": 1 << 16}
"""Bytes of shared memory a program may have, and registers of a multiprocessor, compute capability 9.0."""

POINTERS = {
    "column": "*i64", "index": "*i64", "fresh": "*u8", "finite": "*u8", "x": "*half", "centers": "*half",
    "coefficients": "*half", "a": "*half", "b": "*half",
} | dict.fromkeys(
    ["weight", "velocity", "memory", "factors", "sums", "target", "log_z", "of_target", "gradient", "out"], "*fp32"
)
FLOATS = ["s", "share", "strength", "one_over_batch", "lr", "momentum", "weight_decay"]


class Case(NamedTuple):
    rows: UsedRows
    velocity: Tensor
    x_hat: Tensor
    s: float


class Result(NamedTuple):
    sums: Tensor
    x_gradient: Tensor
    weight: Tensor
    velocity: Tensor


def make_case(
    B: int = 70, C: int = 300, d: int = 72, dtype: torch.dtype = torch.float32, injection: Injection | None = None,
    sampled: bool = False, s: float = 64.0, owned: bool = True,
) -> Case:
    """Random rows, a third of them stale; a third of the samples belongs to other ranks; embeddings near a class."""
    draw = torch.Generator().manual_seed(B + C + d)
    weight = torch.randn(C, d, generator=draw) * 0.01
    velocity = torch.randn(C, d, generator=draw) * 0.001
    index = torch.randperm(C, generator=draw)[: C * 2 // 3].sort().values if sampled else None
    k = C if index is None else len(index)
    column = torch.randint(0, k, (B,), generator=draw)
    used = weight if index is None else weight[index]
    x = unit(used[column] / 0.01 + 1.5 * torch.randn(B, d, generator=draw)).to(dtype)
    column[::3] = -1
    if not owned:
        column[:] = -1
    memory = fresh = None
    if injection is not None:
        memory = unit(torch.randn(C, d, generator=draw)) * 2 * torch.rand(C, 1, generator=draw)
        fresh = torch.rand(k, generator=draw) < 0.7
    return Case(UsedRows(weight, column, index, memory, fresh, injection or Injection()), velocity, x, s)


def statistics(case: Case) -> tuple[Tensor, Tensor]:
    """log Z and B·∂loss/∂cosine of the targets, [B] float64, of a CosFace whose other ranks own nothing."""
    sums, cosine = in_torch(case, torch.float64).sums.T
    here = case.rows.column >= 0
    logit = torch.where(here, case.s * (cosine - 0.4), case.s * 0.3)
    log_z = torch.logaddexp(sums.log(), logit)
    return log_z, torch.where(here, -case.s * torch.sigmoid(sums.log() - logit), 0)


def in_torch(
    case: Case, dtype: torch.dtype, log_z: Tensor | None = None, of_target: Tensor | None = None
) -> Result:
    """The torch path's formulas with products in `dtype`; float64: everything in float64."""
    rows, _, x_hat, s = case
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    where = slice(None) if rows.index is None else rows.index
    weight, velocity = rows.weight.to(exact, copy=True), case.velocity.to(exact, copy=True)
    used, momentum = weight[where].clone(), velocity[where].clone()
    memory = torch.zeros_like(used) if rows.memory is None else rows.memory[where].to(exact)
    fresh = torch.zeros(len(used), dtype=torch.bool) if rows.fresh is None else rows.fresh
    centers = effective_centers(used, memory, fresh, rows.injection)
    cosine = (x_hat.to(dtype) @ centers.to(dtype).T).to(exact).clamp(-1, 1)
    here = rows.column >= 0
    target = torch.zeros_like(cosine, dtype=torch.bool)
    target[here, rows.column[here]] = True
    sums = torch.stack([torch.where(target, 0, torch.exp(s * cosine)).sum(1), torch.where(target, cosine, 0).sum(1)], 1)
    if log_z is None or of_target is None:
        return Result(sums, sums, weight, velocity)
    coefficient = s * torch.exp(s * cosine - log_z[:, None].to(exact))
    coefficient = torch.where(target, of_target[:, None].to(exact), coefficient).to(dtype)
    gradient = (coefficient.T @ x_hat.to(dtype)).to(exact) / len(x_hat)
    gradient = effective_gradient(gradient, used, memory, fresh, rows.injection)
    OPTIMIZER.update(used, {"velocity": momentum}, gradient, LR, torch.tensor(True))
    weight[where], velocity[where] = used, momentum
    return Result(sums, (coefficient @ centers.to(dtype)).to(exact), weight, velocity)


def in_triton(case: Case, log_z: Tensor, of_target: Tensor, finite: bool, tile_bytes: int) -> Result:
    """The kernels' result, on copies: what two processes send each other is the same memory for both."""
    velocity = case.velocity.clone()
    rows = dataclasses.replace(case.rows, weight=case.rows.weight.clone())
    sums = fused.negative_sums(rows, case.x_hat, case.s, tile_bytes)
    x_gradient = fused.apply_gradients(
        rows, velocity, case.x_hat, case.s, log_z.float(), of_target.float(), OPTIMIZER, LR,
        torch.tensor(finite), tile_bytes,
    )
    return Result(sums, x_gradient, rows.weight, velocity)


def error(x: Tensor, exact: Tensor) -> float:
    """Length of the difference over that of the exact numbers."""
    return float((x - exact).double().norm() / exact.double().norm().clamp_min(1e-30))


def compared(result: Result, case: Case) -> Result:
    """Sums as logarithms, or one sample would outweigh all; changes of weight and velocity in place of their values."""
    sums, cosine = result.sums.double().T
    return Result(
        torch.stack([torch.log(sums + 1e-37), cosine]), result.x_gradient,
        result.weight - case.rows.weight, result.velocity - case.velocity,
    )


def check(interpreter: Callable[..., Any], case: Case, tile_bytes: int = ONE_BLOCK) -> Result:
    """Our error against float64 is at most that of the torch path with the same products, plus float32's rounding.

    The rounding of a cosine, and of s·cosine − log Z, moves an exponent by up to s·ε, so its exponential by that share.
    Either path may happen to round well: the torch path's products depend on the processor.
    """
    rounding = case.s * torch.finfo(torch.float32).eps
    log_z, of_target = statistics(case)
    ours = interpreter(in_triton, case, log_z, of_target, True, tile_bytes)
    exact = compared(in_torch(case, torch.float64, log_z, of_target), case)
    usual = compared(in_torch(case, case.x_hat.dtype, log_z, of_target), case)
    for name, got, expected, other in zip(Result._fields, compared(ours, case), exact, usual, strict=True):
        assert error(got, expected) <= error(other, expected) + rounding, name
    return ours


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("injection", [None, VPL(), QAFace(), VPL(strength=0.6)], ids=["none", "vpl", "qaface", "vpl6"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_kernels_agree_with_the_torch_path(interpreter, dtype, injection, sampled):
    case = make_case(dtype=dtype, injection=injection, sampled=sampled)
    ours = check(interpreter, case)
    used = torch.ones(300, dtype=torch.bool) if not sampled else torch.zeros(300, dtype=torch.bool)
    used[case.rows.index] = True
    assert (ours.weight != case.rows.weight).any(dim=1).equal(used)
    assert ours.velocity[~used].equal(case.velocity[~used])


@pytest.mark.parametrize(("B", "C", "d"), [(1, 1, 16), (1, 2, 512), (129, 128, 130), (130, 129, 128), (3, 5, 7)])
def test_sizes_need_not_fit_the_blocks(interpreter, B, C, d):
    check(interpreter, make_case(B, C, d, injection=QAFace()))


@pytest.mark.parametrize("tile_bytes", [ONE_BLOCK, 1 << 19, 1 << 28], ids=["three tiles", "two tiles", "one tile"])
def test_tile_size_does_not_matter(interpreter, tile_bytes):
    check(interpreter, make_case(40, 370, 64, injection=VPL()), tile_bytes)


def test_shard_without_positives(interpreter):
    ours = check(interpreter, make_case(owned=False))
    assert (ours.sums[:, 1] == 0).all()


def test_shard_without_rows(interpreter):
    case = make_case(C=1)
    empty = case._replace(rows=UsedRows(case.rows.weight[:0], case.rows.column.fill_(-1)), velocity=case.velocity[:0])
    ours = interpreter(in_triton, empty, torch.zeros(70), torch.zeros(70), True, ONE_BLOCK)
    assert (ours.sums == 0).all()
    assert (ours.x_gradient == 0).all()


def test_step_that_is_not_finite_changes_no_row(interpreter):
    case = make_case(injection=VPL(), sampled=True)
    ours = interpreter(in_triton, case, torch.full((70,), torch.nan), torch.zeros(70), False, ONE_BLOCK)
    assert ours.weight.equal(case.rows.weight)
    assert ours.velocity.equal(case.velocity)
    assert ours.x_gradient.isnan().any()


def test_stale_rows_take_the_plain_centre_to_the_bit(interpreter):
    case = make_case(injection=QAFace())
    log_z, of_target = statistics(case)
    stale = case._replace(rows=dataclasses.replace(case.rows, fresh=torch.zeros(300, dtype=torch.bool)))
    stale.rows.memory.fill_(torch.nan)  # it must not even be multiplied by zero
    plain = case._replace(rows=UsedRows(case.rows.weight, case.rows.column))
    results = [interpreter(in_triton, one, log_z, of_target, True, ONE_BLOCK) for one in (stale, plain)]
    for with_memory, without in zip(*results, strict=True):
        assert with_memory.equal(without)


def test_rows_without_a_direction(interpreter):
    """Zero and very short rows have a zero centre and move by momentum and decay alone; so does a mix that cancels."""
    case = make_case(injection=QAFace())
    case.rows.weight[5] = 0
    case.rows.weight[6] = 1e-20
    case.rows.weight[7] = torch.eye(72)[0] / 128
    case.rows.memory[7] = -torch.eye(72)[0]
    case.rows.weight[8:10] = 0
    case.rows.memory[8] = 0
    case.rows.fresh[5:10] = torch.tensor([False, False, True, True, True])
    ours = check(interpreter, case)
    for row in range(5, 10):
        velocity = 0.9 * case.velocity[row] + 5e-4 * case.rows.weight[row]
        torch.testing.assert_close(ours.velocity[row], velocity, rtol=1e-6, atol=0)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, 1e30])
def test_broken_row_shows_in_the_sums(interpreter, broken):
    case = make_case(injection=VPL())
    case.rows.weight[17, 3] = broken
    log_z = torch.zeros(70)
    ours = interpreter(in_triton, case, log_z, log_z, False, ONE_BLOCK)
    assert not ours.sums.isfinite().all()


@pytest.mark.parametrize("s", [64.0, fused.SAFE_LOGIT])
def test_cosines_of_one_and_minus_one(interpreter, s):
    """A wrong class at the embedding, the target at it too, and opposite to it; equal centres."""
    case = make_case(4, 260, 32, s=s)
    weight, x = case.rows.weight, case.x_hat
    weight[10], weight[11], weight[12], weight[13] = x[0], x[0] * 3, -x[0], x[1]
    x[2] = x[1]
    column = torch.tensor([10, 13, 12, -1])
    x[3] = x[0]
    check(interpreter, case._replace(rows=UsedRows(weight, column)))


def test_target_is_left_out_and_not_subtracted(interpreter):
    """At s = 64 a target at cosine 1 weighs e^64: taken back from a sum, nothing of the others would be left."""
    weight, x = torch.eye(3, 16), torch.eye(1, 16)
    case = Case(UsedRows(weight, torch.tensor([0])), torch.zeros(3, 16), x, 64.0)
    ours = interpreter(in_triton, case, torch.zeros(1), torch.zeros(1), False, ONE_BLOCK)
    torch.testing.assert_close(ours.sums, torch.tensor([[2.0, 1.0]]))


@pytest.mark.parametrize("name", sorted(MARGINS))
def test_who_may_use_the_kernels(name):
    pytest.importorskip("triton")
    expected = name in {"normface", "sphereface", "cosface", "arcface", "combined", "magface", "adaface",
                        "elasticface"}
    cuda, half = torch.device("cuda"), torch.bfloat16
    margin = MARGINS[name]()
    assert fused.usable(margin, OPTIMIZER, cuda, half, torch.float32) == expected
    assert not fused.usable(margin, OPTIMIZER, torch.device("cpu"), half, torch.float32)
    assert not fused.usable(margin, OPTIMIZER, cuda, torch.float32, torch.float32)
    assert not fused.usable(margin, OPTIMIZER, cuda, half, half)
    assert not fused.usable(margin, object(), cuda, half, torch.float32)
    assert not fused.usable(MARGINS["arcface"](s=71.0), OPTIMIZER, cuda, half, torch.float32)


def compiled(kernel: Any, half: str, blocks: dict[str, Any], **constants: Any) -> Any:
    """A kernel for sm_90 with the launch's own blocks and options; `constants` are arguments the compiler knows."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants |= {name: value for name, value in blocks.items() if name.isupper()}
    options = {name: value for name, value in blocks.items() if not name.isupper()}
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(FLOATS, "fp32") | POINTERS
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types[name].replace("half", half) for name in kernel.arg_names}
    place = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    divisible = {place[name]: [["tt.divisibility", 16]] for name, kind in signature.items() if kind[0] in "*i"}
    source = ASTSource(kernel, signature, {place[name]: value for name, value in constants.items()}, divisible)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def resources(binary: Any, folder: Path) -> tuple[int, int]:
    """Registers a thread, and bytes that it spills, by the assembler's own report."""
    from triton import knobs

    (folder / "kernel.ptx").write_text(binary.asm["ptx"])
    command = [knobs.nvidia.ptxas.path, "-v", "-arch=sm_90a", folder / "kernel.ptx", "-o", folder / "kernel.cubin"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill", report))
    return int(re.search(r"Used (\d+) registers", report)[1]), spilled


@pytest.mark.parametrize("half", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_kernels_compile_for_hopper(half, tmp_path, monkeypatch):
    """Without a GPU: tensor-core code comes out, nothing spills, and two programs fit where the launch counts on it."""
    pytest.importorskip("triton")
    from recognition.heads import triton_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    case = make_case(C=4, d=512, dtype=torch.bfloat16)
    work = fused._Scratch(case.rows, case.x_hat, ONE_BLOCK)
    mixed = work.row_blocks | {"HAS_INDEX": True, "HAS_MEMORY": True}
    plain = dict.fromkeys(["memory", "index", "fresh"])
    launches = {  # name: (binary, products inside, programs at once on a multiprocessor)
        "centers": (compiled(kernels.effective_centers_kernel, half, work.row_blocks, **plain), False, 8),
        "mixed": (compiled(kernels.effective_centers_kernel, half, mixed), False, 8),
        "sums": (compiled(kernels.sums_kernel, half, work.sums_blocks), True, 2),
        "coefficients": (compiled(kernels.coefficients_kernel, half, work.cosine_blocks), True, 2),
        "by x": (compiled(kernels.product_kernel, half, work.product_blocks, a_column=1, ADD=True), True, 1),
        "by W": (compiled(kernels.product_kernel, half, work.product_blocks, a_row=1, ADD=False), True, 2),
        "update": (compiled(kernels.update_kernel, half, work.row_blocks, **plain), False, 4),
        "update mixed": (compiled(kernels.update_kernel, half, mixed), False, 4),
    }
    for name, (binary, multiplies, at_once) in launches.items():
        registers, spilled = resources(binary, tmp_path)
        shared, threads = binary.metadata.shared, binary.metadata.num_warps * 32
        print(f"{name}: {registers} registers, {shared} bytes shared, {spilled} spilled")
        assert len(binary.asm["cubin"]) > 0
        assert ("wgmma" in binary.asm["ptx"]) == multiplies, name
        assert spilled == 0, name
        assert shared * at_once <= HOPPER["shared"], name
        assert registers * threads * at_once <= HOPPER["registers"], name


def test_wide_embeddings_compile_for_hopper(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    from recognition.heads import triton_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    case = make_case(C=4, d=1024, dtype=torch.bfloat16, injection=VPL(), sampled=True)
    blocks = fused._Scratch(case.rows, case.x_hat, ONE_BLOCK).row_blocks
    for kernel in (kernels.effective_centers_kernel, kernels.update_kernel):
        assert resources(compiled(kernel, "bf16", blocks), tmp_path)[1] == 0
