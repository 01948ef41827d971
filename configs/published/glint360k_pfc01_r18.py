"""Glint360K, IResNet-18, CosFace, 0.1 of the classes a step.

Source:   InsightFace arcface_torch, release of 2021, configs/glint360k_r18.py; its config has all classes, its table
          the rate 0.1, which is taken here.
Command:  bash run.sh configs/published/glint360k_pfc01_r18.py --set data.root=FOLDER
Cost:     20 epochs, 333,820 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 72.07 / 95.33 / 93.16.
"""

from recognition.config import Config
from recognition.recipes import in_steps


def config() -> Config:
    """The run's settings; data.root may be given."""
    return in_steps(__file__, "glint360k", "iresnet18", epochs=20, milestones=(8, 12, 15, 18), sample_rate=0.1)
