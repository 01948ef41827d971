"""WebFace42M, MobileFaceNet, CosFace, 0.2 of the classes a step.

Source:   InsightFace arcface_torch, configs/wf42m_pfc02_16gpus_mbf_bs8k.py.
Command:  bash run.sh configs/published/wf42m_pfc02_16gpus_mbf_bs8k.py --set data.root=FOLDER
Cost:     20 epochs, 103,680 steps of 8,192 images (16 × 512 there). Not run here.
Expected: none was published.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(
        __file__, "webface42m", "mobilefacenet", gpus=16, per_gpu=512, lr=0.4, warmup_epochs=2, sample_rate=0.2
    )
