"""Glint360K, IResNet-50, CosFace.

Source:   InsightFace arcface_torch, configs/glint360k_r50.py.
Command:  bash run.sh configs/published/glint360k_r50.py --set data.root=FOLDER
Cost:     20 epochs, 333,820 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 86.34 / 97.16 / 95.81.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "glint360k", "iresnet50")
