"""WebFace4M, IResNet-100, CosFace.

Source:   InsightFace arcface_torch, configs/wf4m_r100.py; its name is configs/wf4m_r100.py's here.
Command:  bash run.sh configs/published/wf4m_r100_cosface.py --set data.root=FOLDER
Cost:     20 epochs, 82,700 steps of 1,024 images (8 × 128 there). Not run here.
Expected: MFR-All / IJB-C 1e-4 / 1e-5 89.87 / 97.19 / 95.48.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "webface4m", "iresnet100")
