"""WebFace12M-Flip (40 %), IResNet-50, CosFace.

Source:   InsightFace arcface_torch, configs/wf12m_flip_r50.py.
Command:  bash run.sh configs/published/wf12m_flip_r50.py --set data.root=FOLDER
Cost:     20 epochs, 248,420 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 43.87 / 88.35 / 80.78.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "webface12m_flip40", "iresnet50", warmup_epochs=2)
