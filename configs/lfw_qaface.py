"""A small real set on a CPU: no injection, VPL and QAFace on a few thousand LFW faces.

Command:  bash run.sh configs/lfw_qaface.py --seeds 0 1 2 3 4 --set data.root=FOLDER evaluation.sets=PAIRS.bin
          FOLDER and PAIRS.bin as for configs/lfw_tiny.py; add --side-by-side 2 for one run a core.
Source:   no paper; configs/lfw_tiny.py with the injections of VPL (CVPR 2021) and QAFace (WACV 2023).
Settings: 295 classes of 12 pictures and 1,350 steps are no WebFace4M. Injection starts after a fifth of the epochs;
          μ and σ follow within ten steps; a row stays fresh for 1,500 samples, five appearances of its class on
          average, as in the paper.
Cost:     about 4 minutes a run on 2 cores, QAFace 5.
Expected: docs/experiments.md.
"""

import dataclasses
from pathlib import Path

from recognition.config import Config, EvaluationSettings, read_file
from recognition.memory import QAFace

START_EPOCH, MAX_AGE = 5.0, 1_500


def config() -> Config:
    """The settings of lfw_tiny.py with QAFace; data.root has to be given."""
    base: Config = read_file(Path(__file__).with_name("lfw_tiny.py")).config()
    inject = QAFace(start_epoch=START_EPOCH, max_age_samples=MAX_AGE, stat_momentum=0.9)
    return dataclasses.replace(
        base,
        name="lfw_qaface",
        head=dataclasses.replace(base.head, inject=inject),
        evaluation=EvaluationSettings(degrade=(16, 8), every_epochs=0),
    )


def variants() -> dict[str, tuple[str, ...]]:
    """What is compared, each a change of the settings above; the first is what the others are held against."""
    vpl = ("head.inject=vpl", f"head.inject.start_epoch={START_EPOCH}", f"head.inject.max_age_samples={MAX_AGE}")
    return {"none": ("head.inject=none",), "vpl": vpl, "qaface": ()}
