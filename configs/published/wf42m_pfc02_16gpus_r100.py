"""WebFace42M, IResNet-100, CosFace, 0.2 of the classes a step.

Source:   InsightFace arcface_torch, configs/wf42m_pfc02_16gpus_r100.py.
Command:  bash run.sh configs/published/wf42m_pfc02_16gpus_r100.py --set data.root=FOLDER
Cost:     20 epochs, 207,380 steps of 4,096 images (16 × 256 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 96.69 / 97.85 / 96.63.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "webface42m", "iresnet100", gpus=16, per_gpu=256, lr=0.3, warmup_epochs=1, sample_rate=0.2)
