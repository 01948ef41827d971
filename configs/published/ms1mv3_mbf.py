"""MS1MV3, MobileFaceNet, ArcFace.

Source:   InsightFace arcface_torch, configs/ms1mv3_mbf.py.
Command:  bash run.sh configs/published/ms1mv3_mbf.py --set data.root=FOLDER
Cost:     40 epochs, 202,320 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 63.78 / 94.23 / 91.33.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "ms1mv3", "mobilefacenet", epochs=40)
