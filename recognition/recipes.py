"""The recipes that the field knows: the published training sets, and one function a family of configs.

A file of configs/published/ says in its docstring where its recipe is from and what was published of it, and calls one
of these functions with what is its own; what a family shares stands here once. Batch sizes are those of the whole
optimiser step, as everywhere: `gpus` times `per_gpu` of the source is one number here, on any number of GPUs.
docs/recipes.md has all of them in one table. Proven by tests/recognition/test_recipes.py.
"""

from dataclasses import dataclass
from pathlib import Path

from recognition.backbones import BackboneSettings
from recognition.config import Config, DataSettings, EvaluationSettings, LogSettings
from recognition.heads.margins import ArcFace, CosFace, Margin
from recognition.heads.row_optimizers import RowAdamW, RowSGD
from recognition.heads.sharded import HeadSettings
from recognition.optimizer import OptimizerSettings
from recognition.schedule import ScheduleSettings

EVALUATION = EvaluationSettings(sets=("lfw", "cfp_fp", "agedb_30"))
"""Scored while training: the files that most of the source's configs name."""


@dataclass(frozen=True)
class TrainingSet:
    """A training set as it was published, and what its recipes have in common.

    folder: where its files are looked for.  identities, images: its size.  weight_decay: of all but MobileFaceNet.
    """

    folder: str
    identities: int
    images: int
    margin: Margin
    weight_decay: float = 5e-4


SETS: dict[str, TrainingSet] = {
    "ms1mv2": TrainingSet("data/ms1mv2", 85_742, 5_822_653, ArcFace(s=64.0, m=0.5)),
    "ms1mv3": TrainingSet("data/ms1mv3", 93_431, 5_179_510, ArcFace(s=64.0, m=0.5)),
    "glint360k": TrainingSet("data/glint360k", 360_232, 17_091_657, CosFace(s=64.0, m=0.4), weight_decay=1e-4),
    "webface4m": TrainingSet("data/webface4m", 205_990, 4_235_242, CosFace(s=64.0, m=0.4)),
    "webface12m": TrainingSet("data/webface12m", 617_970, 12_720_066, CosFace(s=64.0, m=0.4)),
    "webface12m_flip40": TrainingSet("data/webface12m_flip40", 617_970, 12_720_066, CosFace(s=64.0, m=0.4)),
    "webface12m_conflict": TrainingSet("data/webface12m_conflict", 1_017_970, 12_720_066, CosFace(s=64.0, m=0.4)),
    "webface42m": TrainingSet("data/webface42m", 2_059_906, 42_474_557, CosFace(s=64.0, m=0.4)),
}
"""By name. Two are WebFace12M with noise made on purpose: the labels of 40 % of the images changed, and the same images
under 1,017,970 identities in place of 617,970, so that one person has several."""


def linear(
    file: str,
    data: str,
    backbone: str,
    *,
    gpus: int = 8,
    per_gpu: int = 128,
    lr: float = 0.1,
    epochs: float = 20,
    warmup_epochs: float = 0,
    sample_rate: float = 1.0,
    ignore_above: float | None = None,
) -> Config:
    """Convolutional networks since 2022: SGD with momentum 0.9, the rate falls linearly to 0, clipping at 5.

    file: the `__file__` of the config, which names the run.  data: a name of SETS.  backbone: a name of BACKBONES.
    """
    published = SETS[data]
    weight_decay = 1e-4 if backbone == "mobilefacenet" else published.weight_decay
    schedule = ScheduleSettings("polynomial", warmup_epochs=warmup_epochs)
    return _config(file, published, BackboneSettings(backbone), gpus * per_gpu, epochs, schedule, HeadSettings(
        published.margin, sample_rate, RowSGD(momentum=0.9, weight_decay=weight_decay), ignore_above=ignore_above,
    ), OptimizerSettings("sgd", lr, momentum=0.9, weight_decay=weight_decay, clip_norm=5.0))


def in_steps(
    file: str, data: str, backbone: str, *, epochs: float, milestones: tuple[float, ...], sample_rate: float = 1.0
) -> Config:
    """Convolutional networks of 2021: 8 × 128 images, SGD 0.2 (0.1 for 512 images) divided by 10 at each milestone.

    milestones: epochs.  Weight decay 5e-4 for every set, clipping at 5.
    """
    schedule = ScheduleSettings("step", milestones=milestones, factor=0.1)
    return _config(file, SETS[data], BackboneSettings(backbone), 8 * 128, epochs, schedule, HeadSettings(
        SETS[data].margin, sample_rate, RowSGD(momentum=0.9, weight_decay=5e-4),
    ), OptimizerSettings("sgd", lr=0.2, momentum=0.9, weight_decay=5e-4, clip_norm=5.0))


def transformer(
    file: str,
    data: str,
    backbone: str,
    *,
    gpus: int,
    per_gpu: int,
    accumulated: int = 1,
    mask: float = 0.0,
    checkpointing: bool = False,
) -> Config:
    """Vision transformers: AdamW 1e-3 with decay 0.1, 40 epochs, 4 of them of warm-up, 0.3 of the classes a step.

    accumulated: parts of a rank's share in the source, where each of them is a step of the head; here it is one step of
    `gpus` · `per_gpu` · `accumulated` images, whose parts only the backbone sees.  mask: share of hidden tokens.
    checkpointing: the source computes the large ones' blocks anew in the backward. It changes no number.
    """
    network = BackboneSettings(backbone, drop_path=0.05, mask=mask, checkpointing=checkpointing)
    schedule = ScheduleSettings("polynomial", warmup_epochs=4)
    return _config(file, SETS[data], network, gpus * per_gpu * accumulated, 40, schedule, HeadSettings(
        SETS[data].margin, 0.3, RowAdamW(weight_decay=0.1),
    ), OptimizerSettings("adamw", lr=1e-3, weight_decay=0.1, clip_norm=5.0), micro_batches=accumulated)


def _config(
    file: str,
    data: TrainingSet,
    backbone: BackboneSettings,
    batch_size: int,
    epochs: float,
    schedule: ScheduleSettings,
    head: HeadSettings,
    optimizer: OptimizerSettings,
    micro_batches: int = 1,
) -> Config:
    """What all of them share: 512 numbers an embedding, mirror images as the only augmentation."""
    return Config(
        Path(file).stem,
        batch_size=batch_size,
        micro_batches=micro_batches,
        epochs=epochs,
        data=DataSettings(data.folder),
        backbone=backbone,
        head=head,
        optimizer=optimizer,
        schedule=schedule,
        evaluation=EVALUATION,
        log=LogSettings(every_steps=100),
    )
