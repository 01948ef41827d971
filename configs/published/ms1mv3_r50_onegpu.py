"""MS1MV3, IResNet-50, ArcFace, one GPU.

Source:   InsightFace arcface_torch, configs/ms1mv3_r50_onegpu.py.
Command:  bash run.sh configs/published/ms1mv3_r50_onegpu.py --set data.root=FOLDER
Cost:     20 epochs, 809,280 steps of 128 images (1 × 128 there). Not run here.
Expected: none was published.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "ms1mv3", "iresnet50", gpus=1, lr=0.02)
