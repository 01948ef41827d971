"""Activation checkpointing: the same bits as without, running statistics moved once, and less that is kept."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from recognition import distributed
from recognition.backbones import BackboneSettings, build
from recognition.backbones.recomputed import Blocks
from recognition.backbones.vit import VisionTransformer
from recognition.batch_statistics import BatchStatistics
from recognition.config import Config, changes, settings_of
from recognition.distributed import Ranks
from recognition.micro_batches import MicroBatches


def built(name: str, checkpointing: bool) -> nn.Module:
    torch.manual_seed(0)
    if name == "vit":
        return VisionTransformer(16, 3, 24, 0.1, drop_path=0.3, mask=0.2, checkpointing=checkpointing, heads=2)
    name, _, norm = name.partition(" ")
    return build(BackboneSettings(name, 24, dropout=0.1, norm=norm or "batch", checkpointing=checkpointing))


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def steps(
    name: str, checkpointing: bool, dtype: torch.dtype = torch.float32, compiled: str = "off"
) -> tuple[dict[str, Any], int]:
    """State and gradients after two steps, and the bytes that their graphs held."""
    module, held = built(name, checkpointing), list[int]()
    blocks = [part for row in module.modules() if isinstance(row, Blocks | nn.ModuleList) for part in row]
    for part in {"off": [], "blocks": blocks, "whole": [module]}[compiled]:
        part.compile(backend="aot_eager", dynamic=False)

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            held.append(tensor.nbytes)
        return tensor

    parameters = {p.data_ptr() for p in module.parameters()}
    for step in range(2):
        torch.manual_seed(step)
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            embedding = module(images(3, step))
        embedding.backward(torch.randn(embedding.shape))
        with torch.no_grad():
            for p in module.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.01)
    gradients = {f"gradient of {key}": p.grad for key, p in module.named_parameters() if p.grad is not None}
    return module.state_dict() | gradients, sum(held)


@pytest.mark.parametrize(
    "name", ["tiny", "tiny group", pytest.param("mobilefacenet", marks=pytest.mark.slow), "vit"]
)
def test_same_bits_and_less_memory(name: str) -> None:
    """Parameters, gradients, running statistics and their counters; of two steps, so that each feeds the other."""
    (expected, whole), (found, held) = (steps(name, checkpointing) for checkpointing in (False, True))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
        assert not key.endswith("num_batches_tracked") or value == 2, key
    assert held < 0.4 * whole, (held, whole)


def test_same_bits_under_autocast() -> None:
    (expected, _), (found, _) = (steps("vit", checkpointing, torch.bfloat16) for checkpointing in (False, True))
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "vit"])
@pytest.mark.parametrize("compiled", ["blocks", "whole"])
def test_same_bits_and_less_memory_when_compiled(name: str, compiled: str) -> None:
    """As torch.compile traces it, forward and backward, without its code generator."""
    (expected, whole), (found, held) = (steps(name, again, compiled=compiled) for again in (False, True))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    assert held < 0.5 * whole, (held, whole)


def test_the_statistics_would_move_twice_if_they_were_not_held() -> None:
    """The counterpart of the tests above: torch's checkpointing alone does not do."""
    from torch.utils.checkpoint import checkpoint

    norm = nn.BatchNorm2d(3)
    checkpoint(norm, images(2).requires_grad_(), use_reentrant=False).square().sum().backward()
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize("name", ["tiny", "vit"])
def test_without_a_backward_nothing_is_set_up_for_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation, the momentum copy and export go through the plain blocks."""
    module = built(name, True)
    for place in ("recognition.backbones.recomputed", "recognition.backbones.iresnet", "recognition.backbones.vit"):
        monkeypatch.setattr(f"{place}.recomputed", None)
    module.eval()(images(1))
    with torch.no_grad():
        module.train()(images(2))
        with pytest.raises(TypeError), torch.enable_grad():
            module(images(2))


def _gradients(ranks: Ranks, name: str, checkpointing: bool, parts: int) -> dict[str, Any]:
    """Gradients summed over ranks, and buffers, after a step in parts."""
    backbone = built(name, checkpointing)
    replica = distributed.replicate(backbone, ranks, torch.zeros(2, 3, 112, 112))
    generator = torch.Generator().manual_seed(ranks.rank)
    image, gradient = torch.rand(6, 3, 112, 112, generator=generator), torch.randn(6, 24, generator=generator)
    batch = MicroBatches(image, parts, replica, torch.float32, lambda part: torch.manual_seed(10 * ranks.rank + part))
    torch.manual_seed(ranks.rank)
    batch.embed(BatchStatistics(backbone, ranks))
    batch.back_propagate(gradient)
    found = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None} | dict(
        backbone.named_buffers()
    )
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize(("name", "world", "parts"), [("tiny", 1, 2), ("tiny", 2, 2), ("vit", 2, 1), ("vit", 2, 2)])
def test_ranks_and_parts(on_ranks: Any, name: str, world: int, parts: int) -> None:
    """With DDP's summing hook and with micro-batches: the same bits on every rank."""
    plain = on_ranks(world, _gradients, name, False, parts)
    for expected, found in zip(plain, on_ranks(world, _gradients, name, True, parts), strict=True):
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert (found[key] == value).all(), key


def test_a_run_may_go_on_with_or_without() -> None:
    old = Config("run")
    new = dataclasses.replace(old, backbone=dataclasses.replace(old.backbone, checkpointing=True))
    assert changes(settings_of(old), settings_of(new)) == []
    other = dataclasses.replace(old, backbone=dataclasses.replace(old.backbone, dropout=0.1))
    assert changes(settings_of(old), settings_of(other)) == ["backbone.dropout: 0.0 → 0.1"]
