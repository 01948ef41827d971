"""The parts of a training step by name, so that whoever measures a step can bracket them.

`Phases` itself brackets nothing and costs nothing: a run has one, and benchmarks/step.py and the profiler put their own
in its place. The names are those that docs and plots use. Proven by tests/recognition/test_phases.py.
"""

import contextlib

PHASES = ("backbone forward", "momentum forward", "head", "backward", "optimizer", "momentum update", "memory write")
"""In the order of a step: what the first sends to other ranks travels during the second. The wait for the next batch is
outside the step."""


class Phases:
    """`with phases(name):` around each of PHASES, in train_step; subclasses measure."""

    def __call__(self, name: str) -> contextlib.AbstractContextManager:
        """A context around the part `name` of a step."""
        return contextlib.nullcontext()
