"""MS1MV2, IResNet-100, ArcFace.

Source:   InsightFace arcface_torch, configs/ms1mv2_r100.py.
Command:  bash run.sh configs/published/ms1mv2_r100.py --set data.root=FOLDER
Cost:     20 epochs, 113,720 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 78.12 / 96.37 / 94.27.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "ms1mv2", "iresnet100")
