"""WebFace42M, IResNet-50, CosFace, 0.2 of the classes a step.

Source:   InsightFace arcface_torch, configs/wf42m_pfc02_8gpus_r50_bs4k.py.
Command:  bash run.sh configs/published/wf42m_pfc02_8gpus_r50_bs4k.py --set data.root=FOLDER
Cost:     20 epochs, 207,380 steps of 4,096 images (8 × 512 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 93.83 / 97.53 / 96.16.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "webface42m", "iresnet50", per_gpu=512, lr=0.4, warmup_epochs=2, sample_rate=0.2)
