"""Every part of a step is bracketed once, in the order that is promised."""

import contextlib

import pytest

from recognition.assembly import assemble
from recognition.backbones import BackboneSettings
from recognition.config import Config, DataSettings
from recognition.distributed import ALONE
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.memory import QAFace
from recognition.phases import PHASES, Phases
from recognition.train import train_step


class Recorded(Phases):
    """Keeps the names; fails on one phase inside another."""

    def __init__(self):
        self.names, self.inside = [], False

    @contextlib.contextmanager
    def __call__(self, name):
        assert not self.inside
        self.inside = True
        yield
        self.inside = False
        self.names.append(name)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_consists_of_the_phases(small_set, micro_batches):
    data = DataSettings(str(small_set), reader="fallback")
    config = Config("phases", batch_size=16, micro_batches=micro_batches, data=data,
                    backbone=BackboneSettings("tiny", 32), head=HeadSettings(ArcFace(), inject=QAFace()))
    run = assemble(config, ALONE)
    run.phases = phases = Recorded()
    train_step(run, next(iter(run.loader.batches(0, 1))), 0.1)
    assert tuple(phases.names) == PHASES
