"""MobileFaceNet (Chen et al. 2018, arXiv:1804.07573) as the field's reference trainer has it: twice the width, 512-d.

Differs from the paper in the widths (128 and 256 for 64 and 128), in the number of blocks (1-4-6-2), in the second
convolution, which mixes pairs of channels (64 groups) where the paper's is depthwise, and in its end: a global
depthwise convolution, a linear map without bias, a BatchNorm1d. The large one has four times the paper's widths,
2-8-12-4 blocks, of which the first stand for the second convolution, and the same depthwise widths. State-dict keys are
the reference's, and weights load both ways.

B batch, C channels, d embedding. Counts are proven by tests/recognition/backbones/test_backbones.py.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from recognition.backbones.parts import full_precision, norm_1d, norm_2d
from recognition.backbones.recomputed import keeps_a_graph, recomputed

HEAD_CHANNELS = 512
HEAD_SIDE = 7
BLOCKS = (1, 4, 6, 2)
LARGE_BLOCKS = (2, 8, 12, 4)
PAIR_GROUPS = 64


class Layers(nn.Module):
    """Modules one after the other, optionally plus a shortcut; the attribute `layers` gives the published keys."""

    def __init__(self, modules: Iterable[nn.Module], shortcut: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(*modules)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The modules' output, plus x where there is a shortcut."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


def _convolution(
    channels_in: int, channels_out: int, kernel: int, stride: int, groups: int, norm: str, active: bool = True
) -> Layers:
    """Convolution and norm, then PReLU where active; same size at stride 1, except the global 7×7 one: no padding."""
    padding = 1 if kernel == 3 else 0
    modules = [
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False),
        norm_2d(norm, channels_out),
    ]
    return Layers([*modules, nn.PReLU(channels_out)] if active else modules)


def _bottleneck(channels_in: int, channels_out: int, middle: int, stride: int, norm: str) -> Layers:
    """1×1 to `middle` channels, depthwise 3×3, linear 1×1; with a shortcut at stride 1."""
    return Layers(
        [
            _convolution(channels_in, middle, 1, 1, 1, norm),
            _convolution(middle, middle, 3, stride, middle, norm),
            _convolution(middle, channels_out, 1, 1, 1, norm, active=False),
        ],
        shortcut=stride == 1,
    )


def _residual(channels: int, middle: int, count: int, norm: str) -> Layers:
    """`count` bottlenecks with shortcuts."""
    return Layers(_bottleneck(channels, channels, middle, 1, norm) for _ in range(count))


class MobileFaceNet(nn.Module):
    """Images [B, 3, 112, 112] in [-1, 1] -> raw embeddings [B, d] in the dtype of the weights, also under autocast.

    The last 1×1 convolution and what follows it run in that dtype, as in the reference.
    blocks: residual blocks at 56, 28, 14 and 7 pixels; 1 at 56 means the convolution of channel pairs.  scale: widths
    over the paper's.  checkpointing: each stage's maps are computed a second time in the backward.
    """

    def __init__(
        self,
        embedding_size: int,
        dropout: float = 0.0,
        norm: str = "batch",
        checkpointing: bool = False,
        blocks: Sequence[int] = BLOCKS,
        scale: int = 2,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        half, full = 64 * scale, 128 * scale
        self.layers = nn.ModuleList(
            [
                _convolution(3, half, 3, 2, 1, norm),
                _convolution(half, half, 3, 1, PAIR_GROUPS, norm) if blocks[0] == 1
                else _residual(half, 128, blocks[0], norm),
                _bottleneck(half, half, 128, 2, norm),
                _residual(half, 128, blocks[1], norm),
                _bottleneck(half, full, 256, 2, norm),
                _residual(full, 256, blocks[2], norm),
                _bottleneck(full, full, 512, 2, norm),
                _residual(full, 256, blocks[3], norm),
            ]
        )
        self.conv_sep = _convolution(full, HEAD_CHANNELS, 1, 1, 1, norm)
        self.dropout = nn.Dropout(dropout)
        self.features = Layers(
            [
                _convolution(HEAD_CHANNELS, HEAD_CHANNELS, HEAD_SIDE, 1, HEAD_CHANNELS, norm, active=False),
                nn.Flatten(),
                nn.Linear(HEAD_CHANNELS, embedding_size, bias=False),
                norm_1d(norm, embedding_size),
            ]
        )
        self._initialise()

    def _initialise(self) -> None:
        """The reference's start: Kaiming normal by fan-out for convolutions and the linear map, norms 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Raw embeddings [B, d] of images [B, 3, 112, 112]."""
        x, again = image, self.checkpointing and keeps_a_graph(self)
        for layer in self.layers:
            x = recomputed(layer, x, within=layer) if again else layer(x)
        with full_precision(x):
            x = self.conv_sep(x.to(next(self.conv_sep.parameters()).dtype))
            return self.features(self.dropout(x))
