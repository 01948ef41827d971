"""A small real set on a CPU: train a tiny backbone on a few thousand LFW faces, score it on LFW pairs.

Command:  bash run.sh configs/lfw_tiny.py --set data.root=FOLDER evaluation.sets=PAIRS.bin
          FOLDER from `python tools/rec_builder.py build LFW_FOLDER FOLDER`, people of PAIRS.bin left out.
Source:   no paper; a check that the whole chain learns from real faces. Augmentation probabilities of QAFace
          (WACV 2023, section 4.2).
"""

from recognition.backbones import BackboneSettings
from recognition.config import Config, DataSettings, EvaluationSettings, LogSettings
from recognition.data.plan import Augmentation
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.optimizer import OptimizerSettings
from recognition.schedule import ScheduleSettings


def config() -> Config:
    """The run's settings; data.root has to be given."""
    return Config(
        name="lfw_tiny",
        batch_size=64,
        epochs=25,
        data=DataSettings(augmentation=Augmentation(crop=0.2, downsample=0.2)),
        backbone=BackboneSettings("tiny", embedding_size=128),
        head=HeadSettings(ArcFace(s=32.0, m=0.3)),
        optimizer=OptimizerSettings(lr=0.1),
        schedule=ScheduleSettings("cosine", warmup_epochs=5),
        evaluation=EvaluationSettings(every_epochs=5),
        log=LogSettings(every_steps=54),
    )
