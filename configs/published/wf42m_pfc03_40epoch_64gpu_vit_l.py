"""WebFace42M, ViT-L, CosFace, 0.3 of the classes a step.

Source:   InsightFace arcface_torch, configs/wf42m_pfc03_40epoch_64gpu_vit_l.py; its code hides 10 % of the tokens
          whatever its name says, for which add --set backbone.mask=0.1.
Command:  bash run.sh configs/published/wf42m_pfc03_40epoch_64gpu_vit_l.py --set data.root=FOLDER
Cost:     40 epochs, 69,120 steps of 24,576 images (64 × 384 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 97.85 / 98.00 / 97.23.
"""

from recognition.config import Config
from recognition.recipes import transformer


def config() -> Config:
    """The run's settings; data.root may be given."""
    return transformer(__file__, "webface42m", "vit_l", gpus=64, per_gpu=384, mask=0.05, checkpointing=True)
