"""WebFace12M-Conflict, IResNet-50, CosFace, 0.3 of the classes a step, negatives above 0.4 left out.

Source:   InsightFace arcface_torch, configs/wf12m_conflict_r50_pfc03_filter04.py.
Command:  bash run.sh configs/published/wf12m_conflict_r50_pfc03_filter04.py --set data.root=FOLDER
Cost:     20 epochs, 248,420 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 91.68 / 97.28 / 95.75.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "webface12m_conflict", "iresnet50", warmup_epochs=2, sample_rate=0.3, ignore_above=0.4)
