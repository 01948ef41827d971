"""WebFace4M, IResNet-50, CosFace.

Source:   InsightFace arcface_torch, configs/wf4m_r50.py.
Command:  bash run.sh configs/published/wf4m_r50.py --set data.root=FOLDER
Cost:     20 epochs, 82,700 steps of 1,024 images (8 × 128 there). Not run here.
Expected: none was published.
"""

from recognition.config import Config
from recognition.recipes import linear


def config() -> Config:
    """The run's settings; data.root may be given."""
    return linear(__file__, "webface4m", "iresnet50")
