"""What the fast path is made of: what is compiled, what happens where that fails, garbage, half-precision images."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from recognition.assembly import how_compiled
from recognition.backbones import BackboneSettings, build
from recognition.config import Config, changes, settings_of
from recognition.data.batch import Batch, normalise
from recognition.data.fallback import FallbackLoader
from recognition.data.loader import Prefetched, make_loader
from recognition.data.plan import Augmentation, Plan
from recognition.distributed import Ranks, gather_rows, gather_rows_later, replicate
from recognition.errors import SettingsError
from recognition.speed import (
    COLLECT_STEPS,
    Garbage,
    SpeedSettings,
    compile_in_place,
    folds,
    pays_on_cpu,
    regions,
    try_compiled,
    way_to_compile,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(("name", "count"), [("tiny", 6), ("iresnet50", 24), ("mobilefacenet", 9), ("vit_t", 12)])
def test_regions_are_the_outermost_blocks(name, count):
    with torch.device("meta"):
        network = build(BackboneSettings(name, 32))
    found = regions(network)
    assert len(found) == count
    inside = {part for region in found for part in region.modules() if part is not region}
    assert not inside & set(found)
    assert nn.Sequential not in map(type, found)  # which torch.compile would pass over
    weights = sum(p.numel() for region in found for p in region.parameters())
    linear = sum(p.numel() for part in network.modules() if isinstance(part, nn.Linear) for p in part.parameters())
    assert weights > 0.85 * (sum(p.numel() for p in network.parameters()) - linear)


def test_what_auto_stands_for():
    ways = [way_to_compile(SpeedSettings(), device, pays) for device in (CPU, CUDA) for pays in (False, True)]
    assert ways == ["off", "blocks", "blocks", "blocks"]
    assert way_to_compile(SpeedSettings(compile="whole"), CPU, False) == "whole"
    assert way_to_compile(SpeedSettings(compile="off"), CPU, True) == "off"
    assert [folds(SpeedSettings(), device) for device in (CPU, CUDA)] == [False, True]
    assert [folds(SpeedSettings(fold=fold), CPU) for fold in ("on", "off")] == [True, False]


def test_on_a_cpu_long_runs_of_convolutions_are_compiled():
    with torch.device("meta"):
        convolutions, transformer = (build(BackboneSettings(name, 32)) for name in ("mobilefacenet", "vit_t"))
    assert [pays_on_cpu(convolutions, operations) for operations in (1e13, 1e15)] == [False, True]
    assert not pays_on_cpu(transformer, 1e20)
    config = Config("a", batch_size=64, backbone=BackboneSettings("mobilefacenet"))
    ways = [how_compiled(config, convolutions, Ranks(world_size=world), steps)
            for world, steps in ((1, 200), (1, 2000), (2, 2000), (2, 4000))]
    assert ways == ["off", "blocks", "off", "blocks"]


def _fail() -> None:
    raise RuntimeError("no compiler\nand more")


def test_a_failed_compilation_is_a_warning_with_auto_and_an_error_when_asked_for(caplog):
    network = nn.Sequential(nn.Linear(2, 2))
    assert try_compiled("blocks", [network], _fail, Ranks(device=CUDA), asked=False) == "off"
    assert "speed.compile=blocks fails here (rank 0: RuntimeError: no compiler); going on without" in caplog.text
    assert network._compiled_call_impl is None
    with pytest.raises(SettingsError, match=r"speed\.compile=whole fails here .*no compiler.*choose auto or off"):
        try_compiled("whole", [network], _fail, Ranks(), asked=True)


def _without_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("asked", [False, True])
def test_memory_that_does_not_do_is_no_failure_of_the_compiler(asked):
    with pytest.raises(torch.OutOfMemoryError):
        try_compiled("blocks", [nn.Sequential(nn.Linear(2, 2))], _without_memory, Ranks(), asked)


class _Random(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x.sin(), 0.5, self.training) * torch.rand(len(x), 1)


@pytest.mark.slow
def test_what_is_compiled_draws_the_random_numbers_of_what_is_not():
    """Or a run that goes on with another way would learn from other masks."""
    x = torch.randn(8, 64, requires_grad=True)
    found = []
    for way in ("off", "whole"):
        module = _Random()
        compile_in_place(module, way)
        torch.manual_seed(1)
        y = module(x)
        found.append((y, torch.autograd.grad(y.square().sum(), x)[0]))
    torch.testing.assert_close(found[1], found[0])


def test_a_run_may_go_on_with_other_switches_but_not_with_other_gradients():
    old, new = settings_of(Config("a")), settings_of(Config("a", speed=SpeedSettings(
        compile="whole", fold="on", prefetch=False, tune=False, hold_garbage=False, compress="bf16")))
    assert changes(old, new) == ["speed.compress: none → bf16"]
    before_speed = {name: value for name, value in old.items() if not name.startswith("speed.")}
    assert changes(before_speed, old) == []


class _Cycle:
    def __init__(self):
        self.me = self


def test_garbage_waits_for_a_pause_and_never_longer_than_promised():
    assert gc.isenabled()
    with Garbage(held=True) as garbage:
        assert not gc.isenabled()
        found = weakref.ref(_Cycle())
        for _ in range(5):
            garbage.after_step(is_pause=False)
        assert found() is not None
        garbage.after_step(is_pause=True)
        assert found() is None
        found = weakref.ref(_Cycle())
        for _ in range(COLLECT_STEPS):
            garbage.after_step(is_pause=False)
        assert found() is None
    assert gc.isenabled()
    assert not gc.get_freeze_count()
    with Garbage(held=False):
        assert gc.isenabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images_are_the_float32_ones_rounded(dtype):
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert torch.equal(normalise(levels, dtype), normalise(levels).to(dtype))
    assert normalise(levels, dtype).is_contiguous(memory_format=torch.channels_last)


def _gathered(ranks: Ranks) -> list[np.ndarray]:
    x = torch.arange(6.0).reshape(2, 3) + 10 * ranks.rank
    later = gather_rows_later(x, ranks)
    other = gather_rows(x + 1, ranks)  # comes between, and must not mix with it
    return [later.rows.numpy(), later.rows.numpy(), other.numpy() - 1]


@pytest.mark.parametrize("world", [1, 2])
def test_rows_gathered_later_are_those_gathered_at_once(on_ranks, world):
    expected = np.concatenate([np.arange(6.0).reshape(2, 3) + 10 * rank for rank in range(world)])
    for results in on_ranks(world, _gathered):
        for result in results:
            np.testing.assert_array_equal(result, expected)


def _summed_gradients(ranks: Ranks, compress: bool, whole: bool) -> list[np.ndarray]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 4))
    replica = replicate(network, ranks, torch.zeros(2, 8), compress, whole)
    torch.manual_seed(1 + ranks.rank)
    for _ in range(3):  # a static graph is taken for granted from the second on
        for parameter in network.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()
        replica(torch.randn(5, 8)).square().sum().backward()
    return [parameter.grad.numpy().copy() for parameter in network.parameters()]


def test_gradients_are_summed_the_same_however_they_travel(on_ranks):
    plain = on_ranks(2, _summed_gradients, False, False)
    static, short = on_ranks(2, _summed_gradients, False, True), on_ranks(2, _summed_gradients, True, True)
    for rank in range(2):
        for exact, same, rounded in zip(plain[rank], static[rank], short[rank], strict=True):
            np.testing.assert_array_equal(same, exact)
            np.testing.assert_allclose(rounded, exact, rtol=2**-7, atol=2**-7 * np.abs(exact).max())
            assert np.array_equal(rounded, torch.from_numpy(rounded).bfloat16().float().numpy())
            assert not np.array_equal(rounded, exact)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_prefetched_batches_are_the_loaders_own(small_set):
    from recognition.data.dataset import open_dataset

    device = torch.device("cuda", torch.cuda.current_device())
    dataset = open_dataset(small_set)
    plan = Plan(dataset.num_images, 16, 0, 1, 3, Augmentation(crop=0.5))
    loaders = [make_loader("fallback", dataset, plan, device, 2, prefetch=ahead) for ahead in (False, True)]
    assert [type(loader) for loader in loaders] == [FallbackLoader, Prefetched]
    busy = torch.randn(4096, 4096, device=device)
    plain, ahead = ([] for _ in range(2))
    for batches, loader in zip((plain, ahead), loaders, strict=True):
        for batch in loader.batches(0, 6):
            busy = busy @ busy / 4096  # the next copy runs beside this
            batches.append(Batch(batch.image.clone(), batch.label.clone(), batch.sample))
    for one, other in zip(plain, ahead, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.label, other.label)
