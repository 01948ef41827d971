"""WebFace42M, IResNet-100, CosFace, 0.2 of the classes a step.

Source:   InsightFace arcface_torch, configs/wf42m_pfc02_r100_32gpus.py.
Command:  bash run.sh configs/published/wf42m_pfc02_r100_32gpus.py --set data.root=FOLDER
Cost:     20 epochs, 207,380 steps of 4,096 images (32 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 96.57 / 97.83 / 96.50.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "webface42m", "iresnet100", gpus=32, lr=0.4, warmup_epochs=2, sample_rate=0.2)
