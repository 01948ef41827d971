"""The settings that benchmarks/step.py starts from; its options and `--set` change them.

Command:  python benchmarks/step.py
Source:   none; margins and optimisers are the usual ones. Nothing is written or scored.
"""

from recognition.config import Config, EvaluationSettings, LogSettings


def config() -> Config:
    """A run that is only measured."""
    return Config(
        name="step", evaluation=EvaluationSettings(every_epochs=0), log=LogSettings(tensorboard=False),
    )
