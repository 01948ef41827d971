"""WebFace42M, ViT-T, CosFace, 0.3 of the classes a step.

Source:   InsightFace arcface_torch, configs/wf42m_pfc03_40epoch_8gpu_vit_t.py.
Command:  bash run.sh configs/published/wf42m_pfc03_40epoch_8gpu_vit_t.py --set data.root=FOLDER
Cost:     40 epochs, 414,760 steps of 4,096 images (8 × 512 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 92.04 / 97.27 / 95.68 (its table's, where the rate is 0.2).
"""

from recognition.config import Config
from recognition.recipes import transformer


def config() -> Config:
    """The run's settings; data.root may be given."""
    return transformer(__file__, "webface42m", "vit_t", gpus=8, per_gpu=512)
