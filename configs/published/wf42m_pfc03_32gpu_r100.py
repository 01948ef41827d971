"""WebFace42M, IResNet-100, CosFace, 0.3 of the classes a step.

Source:   InsightFace arcface_torch, configs/wf42m_pfc03_32gpu_r100.py.
Command:  bash run.sh configs/published/wf42m_pfc03_32gpu_r100.py --set data.root=FOLDER
Cost:     20 epochs, 207,380 steps of 4,096 images (32 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 96.69 / 97.82 / 96.45.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "webface42m", "iresnet100", gpus=32, lr=0.4, warmup_epochs=2, sample_rate=0.3)
