"""WebFace4M, IResNet-100, ArcFace: the run of QAFace's paper, here with plain ArcFace (no injection yet).

Source:   "A Quality Aware Sample-to-Sample Comparison for Face Recognition", WACV 2023, section 4.2: SGD 0.1, divided
          by 10 at epochs 10, 16 and 22 of 24, momentum 0.9, weight decay 1e-4, 2 × 512 images a step, random crop
          and down-sampling with p = 0.2 each. The paper names neither the depth of its ResNet nor the margin's
          values; IResNet-100, s = 64, m = 0.5 are the field's. Ranges of the augmentation are ours (docs/data.md).
Command:  bash run.sh configs/wf4m_r100.py --set data.root=FOLDER
          FOLDER holds train.rec, train.idx, property and lfw.bin, cfp_fp.bin, agedb_30.bin, calfw.bin, cplfw.bin;
          add --set evaluation.ijb=IJBC_FOLDER for the IJB-C report.
Cost:     24 epochs of 4.24 M images; 99,264 steps of 1024. Not run here: the set is not public domain.
Expected: the paper's own run without injection (its Table 3, Δt = 0): LFW 99.71, CFP-FP 98.40, CPLFW 92.01,
          IJB-B 95.26, IJB-C 96.4 (TAR@FAR=1e-4). Others' ArcFace with ResNet-101 on this set: 99.78 / 99.21 / AgeDB
          97.95 / CALFW 96.00 / CPLFW 94.35 / IJB-B 95.83 / IJB-C 97.30.
"""

from recognition.backbones import BackboneSettings
from recognition.config import CheckpointSettings, Config, DataSettings, EvaluationSettings, LogSettings
from recognition.data.plan import Augmentation
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.optimizer import OptimizerSettings
from recognition.schedule import ScheduleSettings


def config() -> Config:
    """The run's settings; data.root may be given."""
    return Config(
        name="wf4m_r100",
        batch_size=1024,
        epochs=24,
        data=DataSettings("data/webface4m", augmentation=Augmentation(crop=0.2, downsample=0.2)),
        backbone=BackboneSettings("iresnet100", embedding_size=512),
        head=HeadSettings(ArcFace(s=64.0, m=0.5), weight_decay=1e-4),
        optimizer=OptimizerSettings(lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleSettings("step", milestones=(10, 16, 22), factor=0.1),
        evaluation=EvaluationSettings(sets=("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")),
        checkpoint=CheckpointSettings(every_epochs=1, keep=2),
        log=LogSettings(every_steps=100),
    )
