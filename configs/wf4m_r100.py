"""WebFace4M, IResNet-100, QAFace: the run of the paper.

Source:   "A Quality Aware Sample-to-Sample Comparison for Face Recognition", WACV 2023, section 4.2: ArcFace, SGD 0.1
          divided by 10 at epochs 10, 16 and 22 of 24, momentum 0.9, weight decay 1e-4, 2 × 512 images a step, random
          crop and down-sampling with p = 0.2 each, injection after epoch 4 with τ = 2, Δt = 1000, γ = α = 0.99. The
          paper names neither the depth of its ResNet nor the margin's values; IResNet-100, s = 64, m = 0.5 are the
          field's. λ and the ranges of the augmentation are ours (docs/algorithm.md, docs/data.md).
Command:  bash run.sh configs/wf4m_r100.py --set data.root=FOLDER
          FOLDER holds train.rec, train.idx, property and lfw.bin, cfp_fp.bin, agedb_30.bin, calfw.bin, cplfw.bin;
          add --set evaluation.ijb=IJBC_FOLDER for the IJB-C report.
Controls: configs/wf4m_r100_none.py, configs/wf4m_r100_vpl.py: the same but for the injection.
Cost:     24 epochs of 4.24 M images; 99,264 steps of 1024. Not run here: neither the set nor a GPU was at hand.
Expected: the paper's LFW 99.85, CFP-FP 99.21, CPLFW 94.41, CALFW 96.11, AgeDB 97.91, IJB-B 95.67, IJB-C 97.20
          (TAR@FAR=1e-4). Hold it against its own control: others' plain ArcFace reaches IJB-C 97.30 on this set.
"""

from recognition.backbones import BackboneSettings
from recognition.config import CheckpointSettings, Config, DataSettings, EvaluationSettings, LogSettings
from recognition.data.plan import Augmentation
from recognition.heads.margins import ArcFace
from recognition.heads.row_optimizers import RowSGD
from recognition.heads.sharded import HeadSettings
from recognition.memory import QAFace
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
        head=HeadSettings(ArcFace(s=64.0, m=0.5), optimizer=RowSGD(weight_decay=1e-4), inject=QAFace()),
        optimizer=OptimizerSettings(lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleSettings("step", milestones=(10, 16, 22), factor=0.1),
        evaluation=EvaluationSettings(sets=("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")),
        checkpoint=CheckpointSettings(every_epochs=1, keep=2),
        log=LogSettings(every_steps=100),
    )
