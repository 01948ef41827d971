"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929) as the field's reference trainer has them.

112×112 images are cut into 12×12 patches of 9×9 pixels; the last four rows and columns are not seen. There is no class
token: all 144 tokens, normalised, are flattened into a head of linear, BN, linear, BN. ReLU6 in the MLP, learnt
positions, no bias on queries, keys and values, LayerNorm before each half of a block. State-dict keys are the
reference's, and weights load both ways.

In training two things are drawn anew in each step, from torch's default generator, all at once and ahead of the blocks:
    drop path   each residual branch of each sample is left out with a rate that rises linearly from 0 in the first
                block to `drop_path` in the last, and divided by 1 − rate where it stays (Huang et al. 2016,
                arXiv:1603.09382)
    mask        all but ⌊144·(1 − mask)⌋ tokens of a sample, chosen at random, skip the blocks; a learnt token stands
                in their places before the head. The reference's code hides 10 % whatever ratio its names say.

Under autocast the products run in half precision; the tokens' running sum, LayerNorm and the whole head stay in the
dtype of the weights. Attention's softmax is float32 inside the kernel; the reference also holds queries, keys and
values in float32 there, which keeps the [144, 144] products from the fused kernels.

B batch, n tokens, w width, d embedding. Counts, keys and numbers are proven by tests/recognition/backbones/test_vit.py.
"""

import torch
from torch import nn
from torch.nn import functional as F

from recognition.backbones.parts import full_precision
from recognition.backbones.recomputed import keeps_a_graph, recomputed

IMAGE_SIDE = 112
PATCH = 9
HEADS = 8
MLP_RATIO = 4
HEAD_EPS = 2e-5  # the reference's, of the head's BatchNorm alone
START_DEVIATION = 0.02


class PatchEmbedding(nn.Module):
    """Images [B, 3, 112, 112] -> tokens [B, n, w], row by row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """One linear map of each patch."""
        return self.proj(image).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q·kᵀ/√(w/heads))·v, [B, n, w] -> [B, n, w]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Every token a mean of all, weighted by likeness."""
        count, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind()
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, tokens, width))


class Mlp(nn.Module):
    """Linear, ReLU6, linear on each token, [B, n, w] -> [B, n, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map of each token."""
        return self.fc2(F.relu6(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each on normalised tokens and added to them, [B, n, w] -> [B, n, w]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width)

    def forward(self, x: torch.Tensor, factors: torch.Tensor | None = None) -> torch.Tensor:
        """The tokens after both halves; `factors` [2, B, 1, 1] multiply what the halves add."""
        if factors is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = x + self.attn(self.norm1(x)) * factors[0]
        return x + self.mlp(self.norm2(x)) * factors[1]


class VisionTransformer(nn.Module):
    """Images [B, 3, 112, 112] in [-1, 1] -> raw embeddings [B, d] in the dtype of the weights, also under autocast.

    dropout: on the flattened tokens, ahead of the head, as in the other backbones; the reference has none.
    checkpointing: blocks are computed a second time in the backward instead of being kept.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        embedding_size: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        mask: float = 0.0,
        checkpointing: bool = False,
        heads: int = HEADS,
    ) -> None:
        super().__init__()
        tokens = (IMAGE_SIDE // PATCH) ** 2
        self.drop_path, self.kept, self.checkpointing = drop_path, int(tokens * (1 - mask)), checkpointing
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, width))
        # Without masking nothing reads it, and all that is learnt has to get a gradient in every step.
        self.mask_token = nn.Parameter(torch.empty(1, 1, width), requires_grad=self.kept < tokens)
        self.patch_embed = PatchEmbedding(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.feature = nn.Sequential(
            nn.Linear(tokens * width, width, bias=False),
            nn.BatchNorm1d(width, eps=HEAD_EPS),
            nn.Linear(width, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=HEAD_EPS),
        )
        self._initialise()

    def _initialise(self) -> None:
        """The reference's start: linear maps and positions normal(0, 0.02), biases 0; the patches' map as torch's."""
        nn.init.trunc_normal_(self.pos_embed, std=START_DEVIATION)
        nn.init.normal_(self.mask_token, std=START_DEVIATION)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=START_DEVIATION)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Raw embeddings [B, d] of images [B, 3, 112, 112]."""
        x = self.patch_embed(image) + self.pos_embed
        places = self._places(x)
        if places is not None:
            x = x.gather(1, places)
        factors = self._factors(x)
        again = self.checkpointing and keeps_a_graph(self)
        for number, block in enumerate(self.blocks):
            own = None if factors is None else factors[number]
            x = recomputed(block, x, own, within=block) if again else block(x, own)
        with full_precision(x):
            x = self.norm(x.to(self.norm.weight.dtype))
            if places is not None:
                x = self.mask_token.expand(len(x), self.pos_embed.shape[1], -1).scatter(1, places, x)
            return self.feature(self.dropout(x.flatten(1)))

    def _places(self, x: torch.Tensor) -> torch.Tensor | None:
        """Places of the tokens [B, n, w] that go through the blocks, int64 [B, kept, w]; None: all."""
        count, tokens, width = x.shape
        if not self.training or self.kept == tokens:
            return None
        order = torch.rand(count, tokens, device=x.device).argsort(dim=1)
        return order[:, : self.kept, None].expand(-1, -1, width)

    def _factors(self, x: torch.Tensor) -> torch.Tensor | None:
        """Factors of the branches, [blocks, 2, B, 1, 1]: 0 at a block's rate, else 1/(1 − rate); None: all 1."""
        if not self.training or not self.drop_path:
            return None
        depth = len(self.blocks)
        rates = torch.linspace(0, self.drop_path, depth, device=x.device).view(depth, 1, 1, 1, 1)
        return (torch.rand(depth, 2, len(x), 1, 1, device=x.device) >= rates) / (1 - rates)
