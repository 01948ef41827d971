"""Counts, keys, precision, layout and start of the backbones; independence of the batch with norm="group"."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from recognition.backbones import BACKBONES, BackboneSettings, build, mistakes
from recognition.backbones.work import count
from recognition.errors import SettingsError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "backbones.md"
# Parameters in millions and multiply-accumulates in billions at 112×112.
COUNTS = {
    "iresnet18": ("24.0", "2.61"),
    "iresnet34": ("34.1", "4.46"),
    "iresnet50": ("43.6", "6.31"),
    "iresnet100": ("65.2", "12.09"),
    "iresnet200": ("118.8", "23.4"),
    "mobilefacenet": ("2.06", "0.4375"),
    "mobilefacenet_large": ("6.3", "1.82"),
    "vit_t": ("19.1", "1.50"),
    "vit_s": ("76.0", "5.75"),
    "vit_b": ("113.8", "11.44"),
    "vit_l": ("255.7", "25.34"),
}
SMALL = ("iresnet18", "mobilefacenet", "tiny")


def as_printed(value: float, like: str) -> str:
    return f"{value:.{len(like.split('.')[1])}f}"


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def built(name: str, **settings: object) -> nn.Module:
    torch.manual_seed(3)
    module = build(BackboneSettings(name=name, **{"embedding_size": 64, **settings}))
    with torch.no_grad():
        module(images(8, seed=9))
    return module


@pytest.mark.parametrize("name", BACKBONES)
def test_counts_are_those_of_the_published_networks_and_of_the_documented_table(name: str) -> None:
    with torch.device("meta"):
        module = build(BackboneSettings(name)).eval()
    counts = (sum(p.numel() for p in module.parameters()) / 1e6, count(module) / 1e9)
    written = re.search(rf"^\| `{name}` \| ([\d.]+) \| ([\d.]+) \|", PAGE.read_text(), re.M)
    assert written is not None
    for expected in (COUNTS.get(name, ()), written.groups()):
        for value, like in zip(counts, expected, strict=False):
            assert as_printed(value, like) == like


def iresnet_keys(depths: tuple[int, ...]) -> list[str]:
    """The published keys in their order, written down from the format rather than from the module."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = ["conv1.weight", *(f"bn1.{n}" for n in norm), "prelu.weight"]
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            at = f"layer{stage}.{block}."
            keys += [f"{at}bn1.{n}" for n in norm] + [f"{at}conv1.weight"] + [f"{at}bn2.{n}" for n in norm]
            keys += [f"{at}prelu.weight", f"{at}conv2.weight"] + [f"{at}bn3.{n}" for n in norm]
            if block == 0:
                keys += [f"{at}downsample.0.weight"] + [f"{at}downsample.1.{n}" for n in norm]
    return keys + [f"bn2.{n}" for n in norm] + ["fc.weight", "fc.bias"] + [f"features.{n}" for n in norm]


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("iresnet18", (2, 2, 2, 2)), ("iresnet34", (3, 4, 6, 3)), ("iresnet50", (3, 4, 14, 3)),
        ("iresnet100", (3, 13, 30, 3)), ("iresnet200", (6, 26, 60, 6)),
    ],
)  # fmt: skip
def test_iresnet_keys_are_the_published_ones(name: str, depths: tuple[int, ...]) -> None:
    with torch.device("meta"):
        state = build(BackboneSettings(name)).state_dict()
    assert sorted(state) == sorted(iresnet_keys(depths))
    assert state["fc.weight"].shape == (512, 25088)
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert state["layer4.0.conv1.weight"].shape == (512, 256, 3, 3)


def plain_iresnet18(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """IResNet-18 in eval mode, spelled out with functions."""
    from torch.nn import functional as F

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        mean, variance = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{key}.weight"], state[f"{key}.bias"], eps=1e-5)

    x = F.prelu(norm(F.conv2d(x, state["conv1.weight"], padding=1), "bn1"), state["prelu.weight"])
    for stage in range(1, 5):
        for block in range(2):
            at, stride = f"layer{stage}.{block}", 2 if block == 0 else 1
            y = norm(F.conv2d(norm(x, f"{at}.bn1"), state[f"{at}.conv1.weight"], padding=1), f"{at}.bn2")
            y = F.prelu(y, state[f"{at}.prelu.weight"])
            y = norm(F.conv2d(y, state[f"{at}.conv2.weight"], stride=stride, padding=1), f"{at}.bn3")
            if block == 0:
                x = norm(F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=2), f"{at}.downsample.1")
            x = x + y
    return norm(F.linear(norm(x, "bn2").flatten(1), state["fc.weight"], state["fc.bias"]), "features")


def test_iresnet_computes_the_published_function() -> None:
    module = built("iresnet18").double().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                value.mul_(torch.rand(value.shape, generator=generator).double() + 0.5)
            assert torch.isfinite(value).all(), key
        x = images(2).double()
        torch.testing.assert_close(module(x), plain_iresnet18(module.state_dict(), x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SMALL)
def test_output_is_float32_under_autocast_and_near_the_full_precision(name: str) -> None:
    module = built(name, embedding_size=128).eval()
    with torch.no_grad():
        exact = module(images(2))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = module(images(2))
    assert exact.dtype == mixed.dtype == torch.float32
    assert exact.shape == (2, 128)
    assert torch.nn.functional.cosine_similarity(exact, mixed).min() > 0.99
    assert not torch.equal(exact, mixed)


@pytest.mark.parametrize("name", SMALL)
def test_the_last_linear_map_is_not_rounded_under_autocast(name: str) -> None:
    module = built(name).eval()
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    seen = []
    last.register_forward_hook(lambda layer, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        module(images(2))
    (given, got), = seen
    assert torch.equal(got, torch.nn.functional.linear(given, last.weight, last.bias))


@pytest.mark.parametrize("name", SMALL)
def test_memory_layout_does_not_change_the_result(name: str) -> None:
    module = built(name).eval()
    with torch.no_grad():
        plain = module(images(2))
        module = module.to(memory_format=torch.channels_last)
        other = module(images(2).to(memory_format=torch.channels_last))
    torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-3 * plain.abs().max().item())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_one_graph_and_a_gradient_for_every_parameter(name: str, norm: str) -> None:
    """No graph break for torch.compile; the same parameters used in every step (DDP's static graph)."""
    module = built(name, norm=norm, dropout=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        embedding = torch.compile(module, backend="eager", fullgraph=True)(images(3))
    embedding.backward(torch.randn(embedding.shape))
    without = [key for key, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    frozen = [key for key, p in module.named_parameters() if not p.requires_grad]
    assert frozen == (["features.weight"] if norm == "batch" and name != "mobilefacenet" else [])


@pytest.mark.parametrize("name", SMALL)
def test_group_norm_keeps_samples_apart(name: str) -> None:
    module = built(name, norm="group").train()
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())
    assert not list(module.buffers())
    with torch.no_grad():
        together = module(images(6))
        apart = torch.cat([module(images(6)[rows]) for rows in ([0], [1, 2], [3, 4, 5])])
        moved = module(torch.cat([images(1), images(5, seed=4)]))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[:1], moved[:1], rtol=1e-4, atol=1e-4)
    norms = together.norm(dim=1)
    assert norms.std() > 1e-4 * norms.mean()


def test_batch_norm_does_not_keep_samples_apart() -> None:
    """The counterpart of the test above: it can fail."""
    module = built("tiny").train()
    with torch.no_grad():
        difference = (module(images(6))[:3] - module(images(6)[:3])).abs().max()
    assert difference > 1e-2


@pytest.mark.parametrize("name", SMALL)
def test_start_is_a_function_of_the_seed(name: str) -> None:
    def digest(seed: int) -> str:
        torch.manual_seed(seed)
        total = hashlib.sha256()
        for value in build(BackboneSettings(name)).state_dict().values():
            assert torch.isfinite(value).all()
            total.update(value.numpy().tobytes())
        return total.hexdigest()

    assert digest(1) == digest(1) != digest(2)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_set_at_the_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory comes filled with NaN, so whatever is left uninitialised shows."""
    real: Callable[..., torch.Tensor] = torch.empty

    def filled(*size: object, **options: object) -> torch.Tensor:
        tensor = real(*size, **options)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", filled)
    for key, value in build(BackboneSettings(name)).state_dict().items():
        assert torch.isfinite(value).all(), key


def test_iresnet_convolutions_start_normal_with_a_tenth() -> None:
    torch.manual_seed(0)
    module = build(BackboneSettings("iresnet18"))
    weight = module.state_dict()["layer4.1.conv2.weight"]
    assert abs(weight.std().item() - 0.1) < 1e-3
    assert abs(weight.mean().item()) < 1e-3
    assert torch.equal(module.state_dict()["layer3.0.bn1.weight"], torch.ones(128))
    assert module.state_dict()["fc.weight"].abs().max() <= 25088**-0.5


def test_dropout_acts_in_training_only() -> None:
    for name in SMALL:
        module = built(name, dropout=0.5, norm="group")
        with torch.no_grad():
            assert not torch.equal(module(images(2)), module(images(2))), name
            module.eval()
            assert torch.equal(module(images(2)), module(images(2))), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BackboneSettings("iresnet10"), "nearest: iresnet100"),
        (BackboneSettings("r50"), "no backbone 'r50'; nearest: iresnet50"),
        (BackboneSettings("tiny", embedding_size=0), "embedding_size: expected a whole number in 1..65536, got 0"),
        (BackboneSettings("tiny", dropout=1.0), r"dropout: expected a number in \[0, 1\), got 1.0"),
        (BackboneSettings("tiny", dropout=float("nan")), "dropout: expected"),
        (BackboneSettings("tiny", norm="layer"), "norm: expected one of batch, group, got 'layer'"),
    ],
)
def test_bad_settings_are_named(settings: BackboneSettings, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(settings)


def test_all_mistakes_are_listed_at_once() -> None:
    assert len(mistakes(BackboneSettings("x", embedding_size=-1, dropout=2, norm=""))) == 4
    assert [mistakes(BackboneSettings(name)) for name in BACKBONES] == [[]] * len(BACKBONES)
