"""The demo's backbone: an IResNet of 16 to 128 channels with a stride-2 stem, small enough to train on two CPU cores.

Same blocks, head and keys as recognition/backbones/iresnet.py. Proven by tests/recognition/backbones/test_backbones.py.
"""

from recognition.backbones.iresnet import IResNet

# 1.3 times the speed of two blocks in every stage.
BLOCKS = (1, 2, 2, 1)
WIDTHS = (16, 32, 64, 128)


def tiny(embedding_size: int, dropout: float = 0.0, norm: str = "batch", checkpointing: bool = False) -> IResNet:
    """IResNet with one or two blocks a stage, the first convolution of each striding; its last map is 4×4."""
    return IResNet(BLOCKS, embedding_size, dropout, norm, WIDTHS, 2, early=True, checkpointing=checkpointing)
