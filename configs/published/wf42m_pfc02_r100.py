"""WebFace42M, IResNet-100, CosFace, 0.2 of the classes a step.

Source:   InsightFace arcface_torch, configs/wf42m_pfc02_r100.py.
Command:  bash run.sh configs/published/wf42m_pfc02_r100.py --set data.root=FOLDER
Cost:     20 epochs, 829,580 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 96.27 / 97.70 / 96.31.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "webface42m", "iresnet100", sample_rate=0.2)
