"""Each row optimiser against torch's or NumPy's, the gate and the unused rows to the bit, decay made up, rounding."""

import math

import numpy as np
import pytest
import torch

from recognition.heads.row_optimizers import ROW_OPTIMIZERS, RowAdagrad, RowAdamW, RowSGD, stochastic_round

GOOD, BAD = torch.tensor(True), torch.tensor(False)
CPU = torch.device("cpu")
SHAPES = [(1, 1), (7, 5), (33, 17), (130, 512), (0, 8)]
KINDS = sorted(ROW_OPTIMIZERS)


def _draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _bits(x: torch.Tensor) -> bytes:
    return x.contiguous().numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_sgd_is_its_formula_to_the_bit(shape, dtype):
    weight = _draw(0, *shape, dtype=dtype)
    state = RowSGD().states(*shape, dtype, CPU)
    expected, velocity = weight.clone(), state["velocity"].clone()
    for step in range(4):
        gradient = _draw(step + 1, *shape, dtype=dtype)
        velocity = torch.add(gradient, expected, alpha=5e-4).add_(velocity, alpha=0.9)
        expected = torch.add(expected, velocity, alpha=-0.1)
        RowSGD(0.9, 5e-4).update(weight, state, gradient, 0.1, GOOD)
    assert _bits(weight) == _bits(expected)
    assert _bits(state["velocity"]) == _bits(velocity)


@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_sgd_and_adamw_are_torchs_when_every_row_is_used_in_every_step(shape):
    pairs = [
        (RowSGD(0.8, 0.01), lambda w: torch.optim.SGD([w], lr=0.1, momentum=0.8, weight_decay=0.01)),
        (
            RowAdamW(0.7, 0.95, 1e-3, 0.2),
            lambda w: torch.optim.AdamW([w], lr=0.1, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.2),
        ),
    ]
    for ours, theirs in pairs:
        weight = _draw(0, *shape)
        reference = weight.clone().requires_grad_()
        optimizer = theirs(reference)
        state = ours.states(*shape, torch.float64, CPU)
        for step in range(6):
            reference.grad = _draw(step + 1, *shape)
            ours.update(weight, state, reference.grad.clone(), 0.1, GOOD)
            optimizer.step()
        torch.testing.assert_close(weight, reference.detach(), rtol=1e-12, atol=1e-13)


def _numpy_adamw(w, gradients, settings, lr):
    m = np.zeros_like(w)
    v = np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        m = settings.beta1 * m + (1 - settings.beta1) * g
        v = settings.beta2 * v + (1 - settings.beta2) * g**2
        step = m / (1 - settings.beta1**t) / (np.sqrt(v / (1 - settings.beta2**t)) + settings.epsilon)
        w = w - lr * (step + settings.weight_decay * w)
    return w


def _numpy_adagrad(w, gradients, settings, lr):
    a = 0.0
    for g in gradients:
        a += np.mean(g**2)
        w = w - lr * (g / (math.sqrt(a) + settings.epsilon) + settings.weight_decay * w)
    return w


def _numpy_sgd(w, gradients, settings, lr):
    v = np.zeros_like(w)
    for g in gradients:
        v = settings.momentum * v + g + settings.weight_decay * w
        w = w - lr * v
    return w


ORACLES = {"sgd": _numpy_sgd, "adamw": _numpy_adamw, "adagrad": _numpy_adagrad}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_is_a_problem_of_its_own(kind, dtype):
    """Rows used at different steps: each is what a loop over its own gradients gives, the others stay to the bit."""
    settings = ROW_OPTIMIZERS[kind](weight_decay=0.1)
    rows, size, lr = 9, 6, 0.05
    start = _draw(0, rows, size)
    weight, state = start.to(dtype, copy=True), settings.states(rows, size, dtype, CPU)
    seen: list[list[np.ndarray]] = [[] for _ in range(rows)]
    choice = np.random.default_rng(0)
    for step in range(12):
        used = torch.from_numpy(choice.choice(rows - 1, 4, replace=False))
        gradient = _draw(step + 1, 4, size, dtype=dtype)
        for row, g in zip(used.tolist(), gradient.clone().double().numpy(), strict=True):
            seen[row].append(g)
        before = weight.clone(), {name: value.clone() for name, value in state.items()}
        part, parts = weight[used], {name: value[used] for name, value in state.items()}
        settings.update(part, parts, gradient, lr, GOOD)
        weight[used] = part
        for name, value in parts.items():
            state[name][used] = value
        unused = np.setdiff1d(np.arange(rows), used.numpy())
        assert _bits(weight[unused]) == _bits(before[0][unused])
        for name, value in state.items():
            assert _bits(value[unused]) == _bits(before[1][name][unused]), name
    expected = np.stack(
        [ORACLES[kind](start.to(dtype).double().numpy()[row], seen[row], settings, lr) for row in range(rows)]
    )
    assert not seen[-1]  # the last row was never used
    assert len({len(gradients) for gradients in seen}) > 2
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    np.testing.assert_allclose(weight.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38, 1.0])
@pytest.mark.parametrize("first", [True, False])
def test_not_finite_leaves_everything_unchanged_to_the_bit(kind, value, first):
    """Whatever the gradient holds, with decay to make up, zeros of both signs among the weights and states."""
    settings = ROW_OPTIMIZERS[kind](weight_decay=0.1)
    weight = _draw(0, 5, 67, dtype=torch.float32)
    state = settings.states(5, 67, torch.float32, CPU)
    if not first:
        settings.update(weight, state, _draw(1, 5, 67, dtype=torch.float32), 0.1, GOOD)
        for x in (weight, *(x for x in state.values() if x.ndim == 2)):
            x[:, ::7], x[:, 1::7] = 0.0, -0.0
    before = [_bits(x) for x in (weight, *state.values())]
    gradient = torch.full((5, 67), value)
    settings.update(weight, state, gradient, 0.1, BAD, skipped=torch.arange(5))
    assert [_bits(x) for x in (weight, *state.values())] == before


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_skipped_step_the_next_is_as_if_it_had_not_been(kind):
    settings = ROW_OPTIMIZERS[kind]()
    ends = []
    for steps in ([GOOD, GOOD], [BAD, GOOD, BAD, GOOD]):
        weight, state = _draw(0, 4, 8), settings.states(4, 8, torch.float64, CPU)
        good = 0
        for flag in steps:
            good += bool(flag)
            gradient = _draw(good, 4, 8) * (1 if flag else torch.nan)
            settings.update(weight, state, gradient, 0.1, flag)
        ends.append(_bits(weight))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_any_layout_and_rows_that_are_not_contiguous(kind):
    """The fused kernels read plain memory on the CPU: a transposed gradient must not be taken for its transpose."""
    settings = ROW_OPTIMIZERS[kind]()
    ends = []
    for gradient in (_draw(1, 6, 6), _draw(1, 6, 6).T.contiguous().T):
        weight, state = _draw(0, 6, 6), settings.states(6, 6, torch.float64, CPU)
        settings.update(weight, state, gradient, 0.1, GOOD)
        ends.append(weight)
    assert torch.equal(*ends)
    with pytest.raises(AssertionError):
        settings.update(_draw(0, 6, 12)[:, :6], settings.states(6, 6, torch.float64, CPU), _draw(1, 6, 6), 0.1, GOOD)


def test_states_have_a_row_a_class_and_the_type_asked_for():
    shapes = {
        kind: {name: (tuple(x.shape), x.dtype) for name, x in settings().states(3, 4, torch.bfloat16, CPU).items()}
        for kind, settings in ROW_OPTIMIZERS.items()
    }
    assert shapes == {
        "sgd": {"velocity": ((3, 4), torch.bfloat16)},
        "adamw": {
            "first": ((3, 4), torch.bfloat16), "second": ((3, 4), torch.bfloat16), "count": ((3,), torch.int32),
        },
        "adagrad": {"square": ((3,), torch.float32)},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_decay_made_up_is_decay_applied_in_every_step(kind):
    """Decay alone (zero gradients), the rows used in every 1st, 2nd, 5th step, without momentum's delay."""
    settings = RowSGD(0.0, 0.1) if kind == "sgd" else ROW_OPTIMIZERS[kind](weight_decay=0.1)
    lr, every = 0.05, (1, 2, 5)
    start = _draw(0, 3, 4)
    weight, state = start.clone(), settings.states(3, 4, torch.float64, CPU)
    for step in range(20):
        for row, period in enumerate(every):
            if (step + 1) % period == 0:
                part = {name: value[row : row + 1] for name, value in state.items()}
                skipped = torch.tensor([period - 1])
                settings.update(weight[row : row + 1], part, torch.zeros(1, 4).double(), lr, GOOD, skipped)
    expected = start
    for _ in range(20):
        expected = expected - lr * 0.1 * expected
    torch.testing.assert_close(weight, expected, rtol=1e-12, atol=0)
    for x in state.values():
        assert not x.is_floating_point() or not x.any() or kind == "sgd"


def test_decay_made_up_under_momentum_is_dense_sgds():
    """A row used in every 10th step loses as much as one that is used in every step, not a tenth of that."""
    settings, lr, steps, period = RowSGD(0.9, 5e-3), 0.1, 200, 10
    dense = torch.nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
    optimizer = torch.optim.SGD([dense], lr, 0.9, weight_decay=5e-3)
    weight = {made_up: torch.ones(1, 1, dtype=torch.float64) for made_up in (True, False)}
    state = {made_up: settings.states(1, 1, torch.float64, CPU) for made_up in (True, False)}
    for step in range(steps):
        dense.grad = torch.zeros(1, 1, dtype=torch.float64)
        optimizer.step()
        if (step + 1) % period == 0:
            for made_up in (True, False):
                skipped = torch.tensor([period - 1]) if made_up else None
                settings.update(weight[made_up], state[made_up], torch.zeros(1, 1).double(), lr, GOOD, skipped)
    lost = -dense.log().item()
    assert -weight[True].log().item() == pytest.approx(lost, rel=0.1)
    assert -weight[False].log().item() < 0.12 * lost


def test_decay_made_up_takes_no_more_than_everything():
    weight = torch.ones(2, 3)
    RowAdagrad(weight_decay=30.0).update(weight, {"square": torch.ones(2)}, torch.zeros(2, 3), 0.1, GOOD,
                                         torch.tensor([0, 4]))
    assert weight[0].tolist() == [-2.0] * 3  # its own step: 1 − 0.1·30
    assert weight[1].tolist() == [0.0] * 3


def _round_many(values: torch.Tensor, times: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return stochastic_round(values.repeat(times, 1), generator)


def test_stochastic_rounding_is_unbiased_and_goes_to_a_neighbour():
    ulp = 2.0**-7  # of bfloat16 in [1, 2)
    shares = torch.tensor([1, 2**-4, 0.25, 0.5, 0.9, 1 - 2**-9, 2**-12]) * ulp
    for sign in (1, -1):
        values = sign * (1 + shares)
        times = 1 << 16
        rounded = _round_many(values, times).float()
        share = (rounded.double() - sign).abs().mean(0) / ulp
        p = shares.double() / ulp
        bound = 5 * (p * (1 - p) / times).sqrt() + 1e-12
        assert ((share - p).abs() <= bound).all(), (share - p) / bound
        assert set(rounded[:, 1:].unique().tolist()) == {float(sign), sign * (1 + ulp)}


def test_stochastic_rounding_draws_every_element_by_itself():
    rounded = _round_many(torch.full((64,), 1 + 2.0**-8), 4096).float() > 1
    x = rounded.double().numpy() - 0.5
    for shift in (1, 2, 3, 4, 8, 64):
        flat = x.ravel()
        assert abs((flat[shift:] * flat[:-shift]).mean()) < 5 * 0.25 / math.sqrt(flat.size)


def test_stochastic_rounding_is_exact_on_what_bfloat16_holds():
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    rounded = stochastic_round(every.float(), torch.Generator().manual_seed(0))
    number = ~every.isnan()
    assert _bits(rounded[number].view(torch.int16)) == _bits(every[number].view(torch.int16))
    assert rounded[~number].isnan().all()


def test_stochastic_rounding_keeps_kinds_of_numbers():
    largest32, largest16 = torch.finfo(torch.float32).max, torch.finfo(torch.bfloat16).max
    tiny = 2.0**-149  # rounds to 0 or to bfloat16's smallest, 2^-133
    x = torch.tensor([largest32, -largest32, torch.inf, -torch.inf, tiny, 0.0, -0.0])
    rounded = _round_many(x, 1000).float()
    assert rounded[:, 0].unique().tolist() == [largest16]
    assert rounded[:, 1].unique().tolist() == [-largest16]
    assert rounded[:, 2].unique().tolist() == [math.inf]
    assert rounded[:, 3].unique().tolist() == [-math.inf]
    assert set(rounded[:, 4].tolist()) <= {0.0, 2.0**-133}
    assert not rounded[:, 5].signbit().any()
    assert rounded[:, 6].signbit().all()
    # every NaN: the CPU's, CUDA's (all ones: adding to it would overflow into a zero), one with only low bits
    patterns = torch.tensor([0x7FC00000, 0x7FFFFFFF, 0x7F800001, -1, -0x400000], dtype=torch.int32).view(torch.float32)
    assert _round_many(patterns, 100).isnan().all()


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (2, 3, 7)])
def test_stochastic_rounding_of_any_shape(shape):
    rounded = stochastic_round(torch.ones(shape), torch.Generator().manual_seed(0))
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded.float(), torch.ones(shape))


@pytest.mark.parametrize("kind", ["sgd", "adamw", "adagrad"])
def test_bf16_rows_need_stochastic_rounding(kind):
    """Steps below half a unit in the last place: to nearest they all vanish, at random they arrive on average."""
    settings = RowSGD(0.0, 0.0) if kind == "sgd" else ROW_OPTIMIZERS[kind](weight_decay=0.0)
    steps, lr = 400, {"sgd": 2.0**-12, "adamw": 2.0**-12, "adagrad": 2.0**-10}[kind]
    generator = torch.Generator().manual_seed(0)
    rows = {name: torch.ones(4, 512, dtype=torch.bfloat16) for name in ("nearest", "random")}
    exact = torch.ones(4, 512, dtype=torch.float64)
    states = {name: settings.states(4, 512, torch.float32, CPU) for name in rows}
    state = settings.states(4, 512, torch.float64, CPU)
    for _ in range(steps):
        settings.update(exact, state, torch.ones(4, 512).double(), lr, GOOD)
        for name in rows:
            weight = rows[name].float()
            settings.update(weight, states[name], torch.ones(4, 512), lr, GOOD)
            rows[name] = stochastic_round(weight, generator) if name == "random" else weight.bfloat16()
    moved = (1 - exact).mean().item()
    assert moved > 0.03
    assert (1 - rows["nearest"].double()).mean().item() < 0.35 * moved  # nothing, but for Adagrad's first, larger steps
    assert (1 - rows["random"].double()).mean().item() == pytest.approx(moved, rel=0.02)


@pytest.mark.parametrize("name", ["velocity", "second"])
def test_bf16_states_forget_only_with_stochastic_rounding(name):
    """A second moment decays by 1/1000 a step, less than half a unit: rounded to nearest it stays for ever."""
    settings = RowSGD(0.999, 0.0) if name == "velocity" else RowAdamW(weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    left = {}
    for way in ("nearest", "random"):
        state = settings.states(4, 512, torch.bfloat16, CPU)
        state[name].fill_(1.0)
        for _ in range(1000):
            wide = {key: x.float() if x.dtype == torch.bfloat16 else x for key, x in state.items()}
            settings.update(torch.ones(4, 512), wide, torch.zeros(4, 512), 1e-6, GOOD)
            state = {
                key: x if x.dtype != torch.float32
                else stochastic_round(x, generator) if way == "random" else x.bfloat16()
                for key, x in wide.items()
            }
        left[way] = state[name].double().mean().item()
    assert left["nearest"] == 1.0
    assert left["random"] == pytest.approx(math.exp(-1), rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_cuda_as_on_the_cpu_and_without_a_look_by_the_host(kind):
    settings = ROW_OPTIMIZERS[kind](weight_decay=0.1)
    ends = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        weight, state = _draw(0, 130, 67).to(device), settings.states(130, 67, torch.float64, device)
        generator = torch.Generator(device).manual_seed(0)
        gradients = [_draw(1, 130, 67).to(device), torch.full((130, 67), torch.nan, device=device).double(),
                     _draw(2, 130, 67).to(device)]
        flags = [torch.tensor(flag, device=device) for flag in (True, False, True)]
        skipped = torch.arange(130, device=device)
        mode = torch.cuda.get_sync_debug_mode() if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            for gradient, flag in zip(gradients, flags, strict=True):
                settings.update(weight, state, gradient, 0.1, flag, skipped)
            stochastic_round(weight.float(), generator)
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode(mode)
        ends.append([weight.cpu(), *(x.cpu() for x in state.values())])
    for here, there in zip(*ends, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-12, atol=1e-13)
