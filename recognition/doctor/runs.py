"""Which runs a command starts, one or those of a comparison, and which of them stands for all in time.

Proven by tests/recognition/test_doctor_runs.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

from recognition.backbones.work import multiply_accumulates
from recognition.compare import Member, is_comparison, members, require_one_machine
from recognition.config import Config, load
from recognition.doctor.report import Report, plural


class Runs(NamedTuple):
    """The runs of a command: all, those that are not finished, and of these the one whose backbones compute the most.

    alike: whether the others compute as much.  compared: whether a table of them is made.
    """

    every: list[Member]
    waiting: list[Member]
    costliest: Member
    alike: bool
    compared: bool


def find_runs(
    path: str, overrides: Sequence[str], seeds: Sequence[int], single: bool, ranks: int, machines: int,
    shares: Sequence[int] = (),
) -> Runs:
    """The runs that the command would start. SettingsError as it would end with.

    shares: ranks of each of the runs that a comparison has side by side; empty where each has all `ranks`.
    """
    if not is_comparison([path], seeds, single):
        one = Member("", path, tuple(overrides), load(path, overrides, ranks))
        return Runs([one], [one], one, True, False)
    require_one_machine(machines)
    every = members([path], seeds, overrides, single)
    for member in every:
        for count in {*shares} or {ranks}:  # which of the shares a run gets is open
            load(path, member.overrides, count)  # the batch has to divide over them
    waiting = [member for member in every if not member.is_finished]
    counted = {member.config.name: _work(member.config) for member in waiting or every}
    costliest = max(waiting or every, key=lambda member: counted[member.config.name])
    return Runs(every, waiting, costliest, len(set(counted.values())) == 1, True)


def _work(config: Config) -> float:
    """What the backbones compute in a run, an image of an epoch: forward, backward, and the momentum backbone's."""
    forwards = 4 if config.head.inject.needs_momentum else 3
    return config.epochs * forwards * multiply_accumulates(config.backbone)


def tell_runs(runs: Runs, report: Report) -> None:
    """Of a comparison, say which runs it has and which one is looked at."""
    if not runs.compared:
        return
    labels, seeds = (dict.fromkeys(of) for of in zip(*((m.label, m.config.seed) for m in runs.every), strict=True))
    told = f"{plural(len(runs.every), 'run')}: {', '.join(labels)}"
    told += f", each with the seeds {', '.join(map(str, seeds))}" if len(runs.every) > len(labels) else ""
    done = len(runs.every) - len(runs.waiting)
    told += f"; {done} of them finished, which are not run again" if done else ""
    name = runs.costliest.config.name
    if len(runs.waiting) > 1:
        told += f"; time is of {name}" + ("" if runs.alike else ", whose backbones compute the most")
    report.fact("runs", told)
    report.figures["runs"] = {"all": len(runs.every), "finished": done, "measured": name}
