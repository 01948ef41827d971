"""Vision transformers: published sizes and keys, the function spelled out, what is drawn in training, precision."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recognition.backbones import BACKBONES, BackboneSettings, build
from recognition.backbones.model_file import load_model, save_model
from recognition.backbones.vit import VisionTransformer
from recognition.errors import SettingsError
from recognition.momentum import MomentumBackbone

WIDTH, DEPTH, HEADS, TOKENS = 16, 3, 2, 144


def small(seed: int = 0, **options: float) -> VisionTransformer:
    """Of 144 tokens, as the published ones, but narrow; its linear maps are larger than at the start."""
    torch.manual_seed(seed)
    module = VisionTransformer(WIDTH, DEPTH, 24, heads=HEADS, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
        module(images(6, seed=5))
    return module


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def published_keys(depth: int) -> list[str]:
    """In their order, written down from the published files."""
    pair = ("weight", "bias")
    norm = (*pair, "running_mean", "running_var", "num_batches_tracked")
    keys = ["pos_embed", "mask_token", *(f"patch_embed.proj.{n}" for n in pair)]
    for block in range(depth):
        at = f"blocks.{block}."
        keys += [f"{at}norm{k}.{n}" for k in (1, 2) for n in pair] + [f"{at}attn.qkv.weight"]
        keys += [f"{at}{layer}.{n}" for layer in ("attn.proj", "mlp.fc1", "mlp.fc2") for n in pair]
    keys += [f"norm.{n}" for n in pair]
    keys += ["feature.0.weight", *(f"feature.1.{n}" for n in norm)]
    return [*keys, "feature.2.weight", *(f"feature.3.{n}" for n in norm)]


@pytest.mark.parametrize(
    ("name", "width", "depth"), [("vit_t", 256, 12), ("vit_s", 512, 12), ("vit_b", 512, 24), ("vit_l", 768, 24)]
)
def test_keys_and_shapes_are_the_published_ones(name: str, width: int, depth: int) -> None:
    with torch.device("meta"):
        state = build(BackboneSettings(name)).state_dict()
    assert list(state) == published_keys(depth)
    assert state["pos_embed"].shape == (1, 144, width)
    assert state["patch_embed.proj.weight"].shape == (width, 3, 9, 9)
    assert state["blocks.0.attn.qkv.weight"].shape == (3 * width, width)
    assert state["blocks.11.mlp.fc1.weight"].shape == (4 * width, width)
    assert state["feature.0.weight"].shape == (width, 144 * width)
    assert state["feature.2.weight"].shape == (512, width)


def plain(
    module: VisionTransformer, image: torch.Tensor, places: torch.Tensor | None = None,
    factors: torch.Tensor | None = None,
) -> torch.Tensor:
    """The network spelled out: attention by its formula, one patch after the other, hidden tokens one by one."""
    state = dict(module.named_parameters()) | dict(module.named_buffers())

    def layer_norm(x: torch.Tensor, key: str) -> torch.Tensor:
        deviation = (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return (x - x.mean(-1, keepdim=True)) / deviation * state[f"{key}.weight"] + state[f"{key}.bias"]

    def batch_norm(x: torch.Tensor, key: str) -> torch.Tensor:
        mean, variance = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        if module.training:
            mean, variance = x.mean(0), x.var(0, unbiased=False)
        return (x - mean) / (variance + 2e-5).sqrt() * state[f"{key}.weight"] + state[f"{key}.bias"]

    def attention(x: torch.Tensor, at: str) -> torch.Tensor:
        q, k, v = (x @ state[f"{at}.qkv.weight"].T).split(WIDTH, dim=-1)
        size, heads = WIDTH // HEADS, []
        for head in range(HEADS):
            own = slice(head * size, (head + 1) * size)
            weight = (q[..., own] @ k[..., own].transpose(1, 2) / size**0.5).exp()
            heads.append(weight / weight.sum(-1, keepdim=True) @ v[..., own])
        return torch.cat(heads, -1) @ state[f"{at}.proj.weight"].T + state[f"{at}.proj.bias"]

    def mlp(x: torch.Tensor, at: str) -> torch.Tensor:
        x = (x @ state[f"{at}.fc1.weight"].T + state[f"{at}.fc1.bias"]).clamp(0, 6)
        return x @ state[f"{at}.fc2.weight"].T + state[f"{at}.fc2.bias"]

    filters = state["patch_embed.proj.weight"].flatten(1)
    patches = [image[:, :, 9 * i : 9 * i + 9, 9 * j : 9 * j + 9] for i in range(12) for j in range(12)]
    x = torch.stack([patch.flatten(1) @ filters.T for patch in patches], 1) + state["patch_embed.proj.bias"]
    x = x + state["pos_embed"]
    if places is not None:
        x = torch.stack([x[sample, places[sample, :, 0]] for sample in range(len(x))])
    factors = torch.ones(DEPTH, 2, 1, 1, 1) if factors is None else factors
    for block in range(DEPTH):
        at = f"blocks.{block}"
        x = x + attention(layer_norm(x, f"{at}.norm1"), f"{at}.attn") * factors[block, 0]
        x = x + mlp(layer_norm(x, f"{at}.norm2"), f"{at}.mlp") * factors[block, 1]
    x = layer_norm(x, "norm")
    if places is not None:
        tokens = [[state["mask_token"][0, 0]] * TOKENS for _ in x]
        for sample, row in enumerate(tokens):
            for index, place in enumerate(places[sample, :, 0].tolist()):
                row[place] = x[sample, index]
        x = torch.stack([torch.stack(row) for row in tokens])
    x = batch_norm(x.flatten(1) @ state["feature.0.weight"].T, "feature.1")
    return batch_norm(x @ state["feature.2.weight"].T, "feature.3")


def test_it_computes_the_published_function() -> None:
    module = small().double().eval()
    with torch.no_grad():
        torch.testing.assert_close(module(images(2).double()), plain(module, images(2).double()), rtol=1e-9, atol=1e-9)


def test_a_step_of_training_with_what_it_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings and gradients with hidden tokens and branches left out, both recorded as they were drawn."""
    module = small(drop_path=0.5, mask=0.25).double()
    drawn = {}
    for name in ("_places", "_factors"):
        method = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda x, name=name, method=method: drawn.setdefault(name, method(x)), raising=True
        )
    image, gradient = images(4).double(), torch.randn(4, 24).double()
    embedding = module(image)
    embedding.backward(gradient)
    found = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    expected = plain(module, image, drawn["_places"], drawn["_factors"].double())
    expected.backward(gradient)
    assert drawn["_places"].shape == (4, 108, WIDTH)
    assert (drawn["_factors"] == 0).any()
    torch.testing.assert_close(embedding, expected, rtol=1e-9, atol=1e-9)
    for name, p in module.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_branches_are_left_out_at_rates_that_rise_with_depth() -> None:
    module = small(drop_path=0.4)
    factors = module._factors(torch.empty(20000, 1, 1)).squeeze()
    assert factors.shape == (DEPTH, 2, 20000)
    for block, rate in enumerate((0.0, 0.2, 0.4)):
        left_out = (factors[block] == 0).float().mean(1)
        torch.testing.assert_close(left_out, torch.full((2,), rate), rtol=0, atol=0.015)
        kept = factors[block][factors[block] > 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)))
    assert not torch.equal(factors[2, 0], factors[2, 1])


@pytest.mark.parametrize(("mask", "hidden"), [(0.1, 15), (0.05, 8), (0.5, 72), (0.9, 130)])
def test_as_many_tokens_are_hidden_as_the_share_says(mask: float, hidden: int) -> None:
    """As the reference rounds it; other tokens in each sample, all places alike."""
    module = small(mask=mask)
    places = module._places(torch.empty(200, TOKENS, WIDTH))
    assert places is not None
    assert places.shape == (200, TOKENS - hidden, WIDTH)
    assert all(len(set(row.tolist())) == TOKENS - hidden for row in places[:, :, 0])
    counts = torch.bincount(places[:, :, 0].flatten(), minlength=TOKENS).float() / 200
    assert (counts - (1 - hidden / TOKENS)).abs().max() < 5 * (mask * (1 - mask) / 200) ** 0.5


def test_draws_are_a_function_of_the_seed_and_of_training() -> None:
    def forward(module: nn.Module, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return module(images(4))

    for options in ({"drop_path": 0.3}, {"mask": 0.2}, {"dropout": 0.3}):
        module = small(**options)
        with torch.no_grad():
            assert torch.equal(forward(module, 1), forward(module, 1)), options
            assert not torch.equal(forward(module, 1), forward(module, 2)), options
            module.eval()
            assert torch.equal(forward(module, 1), forward(module, 2)), options
            plain_module = small().eval()
            plain_module.load_state_dict(module.state_dict())
            assert torch.equal(forward(module, 1), forward(plain_module, 1)), options


@pytest.mark.parametrize("mask", [0.0, 0.1])
def test_one_graph_and_a_gradient_for_every_parameter(mask: float) -> None:
    """No graph break for torch.compile; the same parameters used in every step (DDP's static graph)."""
    module = small(mask=mask, drop_path=0.1)
    network = torch.compile(module, backend="eager", fullgraph=True) if mask else module
    with torch.autocast("cpu", torch.bfloat16):
        embedding = network(images(3))
    embedding.backward(torch.randn(embedding.shape))
    assert [key for key, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [key for key, p in module.named_parameters() if not p.requires_grad] == ([] if mask else ["mask_token"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_tokens_and_head_keep_full_precision(dtype: torch.dtype) -> None:
    module = small().eval()
    with torch.no_grad():
        exact = module(images(3))
        seen: dict[str, torch.Tensor] = {}
        for name, layer in module.named_modules():
            layer.register_forward_hook(lambda layer, inputs, output, name=name: seen.update({name: output}))
        with torch.autocast("cpu", dtype):
            mixed = module(images(3))
    types = {name: output.dtype for name, output in seen.items()}
    assert {types[name] for name in ("blocks.0", "blocks.2", "norm", "feature.0", "feature.3")} == {torch.float32}
    assert {types[name] for name in ("blocks.1.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.fc1")} == {dtype}
    assert F.cosine_similarity(exact, mixed).min() > 0.999
    assert not torch.equal(exact, mixed)


def test_large_tokens_do_not_overflow_in_half_precision() -> None:
    """The running sum of the tokens passes fp16's 65504 here; the embeddings stay those of full precision."""
    module = small().eval()
    with torch.no_grad():
        module.pos_embed.add_(torch.linspace(-1e6, 1e6, WIDTH))
        exact = module(images(3))
        with torch.autocast("cpu", torch.float16):
            mixed = module(images(3))
    assert torch.isfinite(mixed).all()
    assert F.cosine_similarity(exact, mixed).min() > 0.999


def test_every_parameter_is_set_at_the_start_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: real(*size, **options).fill_(torch.nan))
    torch.manual_seed(0)
    state = VisionTransformer(64, 2, 32).state_dict()
    for key, value in state.items():
        assert torch.isfinite(value).all(), key
        if key == "pos_embed" or (value.ndim == 2 and key.endswith("weight")):
            assert abs(value.std().item() - 0.02) < 1e-3, key
        elif key.startswith("blocks") and key.endswith("bias"):
            assert not value.any(), key
    assert 0.01 < state["mask_token"].std() < 0.03
    assert state["patch_embed.proj.weight"].abs().max() <= 243**-0.5  # torch's own: uniform, by the patch's 243 values


def test_the_momentum_copy_follows_and_is_eval() -> None:
    module = small(drop_path=0.2, mask=0.2)
    momentum = MomentumBackbone(module, 0.9)
    before = {name: p.clone() for name, p in momentum.module.state_dict().items()}
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1)
    momentum.update(torch.tensor(True))
    for name, value in momentum.module.state_dict().items():
        online = module.state_dict()[name]
        expected = torch.lerp(before[name], online, 0.1) if online.is_floating_point() else online
        torch.testing.assert_close(value, expected)
    assert {name.rsplit(".", 2)[0] for name, _ in momentum.module.named_buffers()} == {"feature"}
    assert torch.equal(momentum(images(2)), momentum(images(2)))


def test_a_file_gives_back_its_settings_and_bare_weights_their_size(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES, "vit_small", partial(VisionTransformer, WIDTH, DEPTH, heads=HEADS))
    settings = BackboneSettings("vit_small", 24, drop_path=0.1, mask=0.05, checkpointing=True)
    module = build(settings)
    save_model(tmp_path / "m.pt", module, settings, {})
    loaded, found, _ = load_model(tmp_path / "m.pt")
    assert found == settings
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())
    torch.save(module.state_dict(), tmp_path / "bare.pt")
    assert load_model(tmp_path / "bare.pt", "vit_small")[1] == BackboneSettings("vit_small", 24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BackboneSettings("vit_t", norm="group"), r"norm: not with vit_t: .*have LayerNorm.*; expected 'batch'"),
        (BackboneSettings("iresnet50", drop_path=0.1), "drop_path: not with iresnet50: .*; expected 0.0, got 0.1"),
        (BackboneSettings("mobilefacenet", mask=0.1), "mask: not with mobilefacenet"),
        (BackboneSettings("vit_t", drop_path=1.0), r"drop_path: expected a number in \[0, 1\), got 1.0"),
        (BackboneSettings("vit_t", mask=0.95), r"mask: expected a number in \[0, 0.9\], got 0.95"),
        (BackboneSettings("vit_t", checkpointing=1), "checkpointing: expected true or false, got 1"),  # type: ignore[arg-type]
    ],
)
def test_bad_settings_are_named(settings: BackboneSettings, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(settings)
