"""IResNet, the field's improved residual network (Duta et al. 2020, arXiv:2004.04989), in ArcFace's 112×112 form.

Every block is BN, 3×3, BN, PReLU, 3×3 (stride), BN plus the shortcut, nothing after the sum; the stem keeps the full
resolution, and the head is BN, dropout, a linear map of the whole 7×7 map, and a BatchNorm1d whose scale is held at 1.
State-dict keys are those of the published weights, and both load into each other.

B batch, C channels, d embedding. Counts and keys are proven by tests/recognition/backbones/test_backbones.py.
"""

from collections.abc import Sequence

import torch
from torch import nn

from recognition.backbones.parts import full_precision, norm_1d, norm_2d
from recognition.backbones.recomputed import Blocks, keeps_a_graph, recomputed

IMAGE_SIDE = 112
WIDTHS = (64, 128, 256, 512)
# Blocks of the four stages.
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 200: (6, 26, 60, 6)}


class Block(nn.Module):
    """One residual block, [B, C_in, h, w] -> [B, C_out, ⌈h/stride⌉, ⌈w/stride⌉].

    The second convolution strides, as in the published networks, or with `early` the first: fewer operations at the
    full resolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: str, early: bool = False) -> None:
        super().__init__()
        strides = (stride, 1) if early else (1, stride)
        self.bn1 = norm_2d(norm, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, strides[0], padding=1, bias=False)
        self.bn2 = norm_2d(norm, channels_out)
        self.prelu = nn.PReLU(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, strides[1], padding=1, bias=False)
        self.bn3 = norm_2d(norm, channels_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), norm_2d(norm, channels_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's residual plus its shortcut."""
        shortcut = x if self.downsample is None else self.downsample(x)
        residual = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(residual)) + shortcut


class IResNet(nn.Module):
    """Images [B, 3, 112, 112] in [-1, 1] -> raw embeddings [B, d] in the dtype of the weights, also under autocast.

    The last linear map and what follows run in that dtype: their rounding would fall straight on the cosines.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        embedding_size: int,
        dropout: float = 0.0,
        norm: str = "batch",
        widths: Sequence[int] = WIDTHS,
        stem_stride: int = 1,
        early: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.conv1 = nn.Conv2d(3, widths[0], 3, stem_stride, padding=1, bias=False)
        self.bn1 = norm_2d(norm, widths[0])
        self.prelu = nn.PReLU(widths[0])
        channels_in = (widths[0], *widths)
        self.layer1 = _stage(channels_in[0], widths[0], blocks[0], norm, early, checkpointing)
        self.layer2 = _stage(channels_in[1], widths[1], blocks[1], norm, early, checkpointing)
        self.layer3 = _stage(channels_in[2], widths[2], blocks[2], norm, early, checkpointing)
        self.layer4 = _stage(channels_in[3], widths[3], blocks[3], norm, early, checkpointing)
        self.bn2 = norm_2d(norm, widths[3])
        self.dropout = nn.Dropout(dropout)
        side = -(-IMAGE_SIDE // (16 * stem_stride))
        self.fc = nn.Linear(widths[3] * side * side, embedding_size)
        self.features = norm_1d(norm, embedding_size)
        if isinstance(self.features, nn.BatchNorm1d):
            # Fixed: the margin sees directions only, and weight decay would pull this scale to zero.
            self.features.weight.requires_grad = False
        self._initialise()

    def _initialise(self) -> None:
        """The field's start: convolutions normal(0, 0.1); the rest as torch does it (norms 1 and 0, PReLU 0.25)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Raw embeddings [B, d] of images [B, 3, 112, 112]."""
        # The stem's maps are the largest of all: three of the full resolution, against one for a block of a stage.
        again = self.checkpointing and keeps_a_graph(self)
        x = recomputed(self._stem, image, within=self.bn1) if again else self._stem(image)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        with full_precision(x):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))

    def _stem(self, image: torch.Tensor) -> torch.Tensor:
        return self.prelu(self.bn1(self.conv1(image)))


def _stage(channels_in: int, channels_out: int, count: int, norm: str, early: bool, checkpointing: bool) -> Blocks:
    """`count` blocks, the first of which halves the resolution."""
    first = Block(channels_in, channels_out, 2, norm, early)
    others = (Block(channels_out, channels_out, 1, norm) for _ in range(count - 1))
    return Blocks(first, *others, checkpointing=checkpointing)
