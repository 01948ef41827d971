"""The demo: the whole chain in minutes on a CPU, with faces that it draws itself.

Command:  bash run.sh configs/demo.py        (or just: bash run.sh)
Source:   none; the data is drawn by tools/make_demo_data.py (docs/demo_data.md), the backbone is a tiny IResNet.
"""

from pathlib import Path

from recognition.backbones import BackboneSettings
from recognition.config import Config, DataSettings, EvaluationSettings, LogSettings
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.optimizer import OptimizerSettings
from recognition.schedule import ScheduleSettings
from tools.make_demo_data import make_demo_data

FOLDER = "data/demo"


def prepare(config: Config) -> None:
    """Draw the data, once."""
    make_demo_data(Path(config.data.root))


def config() -> Config:
    """The run's settings."""
    return Config(
        name="demo",
        batch_size=64,
        epochs=3,
        data=DataSettings(FOLDER),
        backbone=BackboneSettings("tiny", embedding_size=128),
        head=HeadSettings(ArcFace(s=32.0, m=0.3)),
        optimizer=OptimizerSettings(lr=0.1),
        schedule=ScheduleSettings("cosine", warmup_epochs=1),
        evaluation=EvaluationSettings(sets=("demo", "demo_degraded"), ijb=(f"{FOLDER}/ijb",), every_epochs=1.5),
        log=LogSettings(every_steps=100),
    )
