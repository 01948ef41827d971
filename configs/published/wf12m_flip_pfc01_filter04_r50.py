"""WebFace12M-Flip (40 %), IResNet-50, CosFace, 0.1 of the classes a step, negatives above 0.4 left out.

Source:   InsightFace arcface_torch, configs/wf12m_flip_pfc01_filter04_r50.py.
Command:  bash run.sh configs/published/wf12m_flip_pfc01_filter04_r50.py --set data.root=FOLDER
Cost:     20 epochs, 248,420 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 80.20 / 96.11 / 93.79.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "webface12m_flip40", "iresnet50", warmup_epochs=2, sample_rate=0.1, ignore_above=0.4)
