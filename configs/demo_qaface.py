"""The demo's sibling: no injection, VPL and QAFace on the same drawn faces, compared on good and on small pictures.

Command:  bash run.sh configs/demo_qaface.py     (--seeds 0 1 2 for mean ± deviation, --single for QAFace alone)
Source:   none; data and backbone are the demo's, the augmentation is that of QAFace (WACV 2023, section 4.2).
Settings: 936 steps are no 99,264. Injection starts after the first of three epochs; μ and σ follow within ten steps;
          and a row stays fresh for 5·C samples, five appearances of its class on average, as in the paper.
Cost:     three runs, 9 minutes on 2 cores.
"""

import dataclasses
from pathlib import Path

from recognition.config import Config, EvaluationSettings, read_file
from recognition.data.plan import Augmentation
from recognition.memory import QAFace

DEMO = read_file(Path(__file__).with_name("demo.py"))
START_EPOCH, MAX_AGE = 1.0, 10_000


def prepare(config: Config) -> None:
    """Draw the data, once."""
    DEMO.prepare(config)


def config() -> Config:
    """The demo's settings with QAFace and its augmentation."""
    base: Config = DEMO.config()
    inject = QAFace(start_epoch=START_EPOCH, max_age_samples=MAX_AGE, stat_momentum=0.9)
    return dataclasses.replace(
        base,
        name="demo_qaface",
        data=dataclasses.replace(base.data, augmentation=Augmentation(crop=0.2, downsample=0.2)),
        head=dataclasses.replace(base.head, inject=inject),
        evaluation=EvaluationSettings(sets=("demo",), degrade=(16, 8), every_epochs=0),
    )


def variants() -> dict[str, tuple[str, ...]]:
    """What is compared, each a change of the settings above; the first is what the others are held against."""
    vpl = ("head.inject=vpl", f"head.inject.start_epoch={START_EPOCH}", f"head.inject.max_age_samples={MAX_AGE}")
    return {"none": ("head.inject=none",), "vpl": vpl, "qaface": ()}
