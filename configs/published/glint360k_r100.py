"""Glint360K, IResNet-100, CosFace.

Source:   InsightFace arcface_torch, configs/glint360k_r100.py.
Command:  bash run.sh configs/published/glint360k_r100.py --set data.root=FOLDER
Cost:     20 epochs, 333,820 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 89.52 / 97.55 / 96.38.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "glint360k", "iresnet100")
