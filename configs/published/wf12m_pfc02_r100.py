"""WebFace12M, IResNet-100, CosFace, 0.2 of the classes a step.

Source:   InsightFace arcface_torch, configs/wf12m_pfc02_r100.py.
Command:  bash run.sh configs/published/wf12m_pfc02_r100.py --set data.root=FOLDER
Cost:     20 epochs, 248,420 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 94.75 / 97.60 / 95.90.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "webface12m", "iresnet100", sample_rate=0.2)
