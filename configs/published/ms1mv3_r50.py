"""MS1MV3, IResNet-50, ArcFace.

Source:   InsightFace arcface_torch, configs/ms1mv3_r50.py.
Command:  bash run.sh configs/published/ms1mv3_r50.py --set data.root=FOLDER
Cost:     20 epochs, 101,160 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 79.14 / 96.37 / 94.47.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "ms1mv3", "iresnet50")
