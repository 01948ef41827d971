"""Glint360K, MobileFaceNet, CosFace.

Source:   InsightFace arcface_torch, configs/glint360k_mbf.py.
Command:  bash run.sh configs/published/glint360k_mbf.py --set data.root=FOLDER
Cost:     20 epochs, 333,820 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 70.18 / 95.04 / 92.62.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "glint360k", "mobilefacenet")
