"""MS1MV3, IResNet-34, ArcFace.

Source:   InsightFace arcface_torch, release of 2021, configs/ms1mv3_r34.py.
Command:  bash run.sh configs/published/ms1mv3_r34.py --set data.root=FOLDER
Cost:     25 epochs, 126,450 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 77.36 / 95.90 / 94.10.
"""

from recognition.config import Config
from recognition.recipes import in_steps


def config() -> Config:
    """The run's settings; data.root may be given."""
    return in_steps(__file__, "ms1mv3", "iresnet34", epochs=25, milestones=(10, 16, 22))
