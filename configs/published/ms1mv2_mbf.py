"""MS1MV2, MobileFaceNet, ArcFace.

Source:   InsightFace arcface_torch, configs/ms1mv2_mbf.py.
Command:  bash run.sh configs/published/ms1mv2_mbf.py --set data.root=FOLDER
Cost:     40 epochs, 227,440 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 62.07 / 93.61 / 90.28.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "ms1mv2", "mobilefacenet", epochs=40)
