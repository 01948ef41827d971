"""WebFace42M, ViT-S, CosFace, 0.3 of the classes a step.

Source:   InsightFace arcface_torch, configs/wf42m_pfc03_40epoch_64gpu_vit_s.py.
Command:  bash run.sh configs/published/wf42m_pfc03_40epoch_64gpu_vit_s.py --set data.root=FOLDER
Cost:     40 epochs, 69,120 steps of 24,576 images (64 × 384 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 95.87 / 97.73 / 96.57.
"""

from recognition.config import Config
from recognition.recipes import transformer


def config() -> Config:
    """The run's settings; data.root may be given."""
    return transformer(__file__, "webface42m", "vit_s", gpus=64, per_gpu=384)
