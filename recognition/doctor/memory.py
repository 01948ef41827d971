"""Whether a rank's memory holds what a run keeps there, and what would make it fit.

Proven by tests/recognition/test_doctor_needs.py.
"""

from collections.abc import Sequence

import torch

from recognition import machine
from recognition.assembly import choose_precision
from recognition.config import Config
from recognition.doctor.needs import Needs, activation_bytes, part_of_a_rank
from recognition.doctor.report import Report, amount, plural
from recognition.errors import SettingsError
from recognition.heads.row_optimizers import RowAdagrad

TIGHT = 0.85
"""Of the memory that is free: with more of it taken by tensors, what passes through may not find room."""


def look_at_memory(
    report: Report, runs: Sequence[tuple[Config, Needs]], trial: Config, ranks: int, local_ranks: int, classes: str
) -> int:
    """The section on a rank's memory, of the run that takes the most; how many images of `trial`'s fit, 0 for none.

    trial: of the settings of `runs` those that are measured.  classes: why they are left out; "" where they are not.
    """
    report.section("memory of a rank")
    if classes:
        report.fact("classes", f"left out, {classes}: this is the backbone alone")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own = {} if device.type == "cuda" else {"Python and its libraries": machine.resident_bytes()}
    free, of = _room(device, local_ranks)
    counted = dict[object, float]()

    def held(needs: Needs) -> int:
        return sum(needs.in_memory.values()) + sum(own.values())

    def each(config: Config) -> float:
        precision = choose_precision(config.precision, device)
        if (config.backbone, precision) not in counted:
            counted[config.backbone, precision] = activation_bytes(config, precision, device)
        return counted[config.backbone, precision]

    def passing(config: Config) -> float:
        return each(config) * part_of_a_rank(config, ranks)

    config, needs = max(runs, key=lambda run: held(run[1]))
    if held(needs) <= free:
        config, needs = max(runs, key=lambda run: held(run[1]) + passing(run[0]))
    if len(runs) > 1:
        report.fact("run", f"{config.name}, which takes the most")
    report.fact("held", f"{needs.parameters / 1e6:.1f} M parameters; " + ", ".join(
        f"{name} {amount(size)}" for name, size in (needs.in_memory | own).items()) + f": {amount(held(needs))}")
    if held(needs) > free:
        report.problem(SettingsError.status, "too little", f"{amount(held(needs))} before any activation, {of}: "
                       + _smaller_head(config))
    else:
        whole = held(needs) + passing(config)
        told = f"{amount(each(config))} an image, {part_of_a_rank(config, ranks)} at once: {amount(passing(config))}; "
        told += f"{amount(whole)} in all and some more that passes through, {of}"
        report.figures["memory"] = {"tensors": held(needs), "activations": passing(config), "free": free}
        if whole > free:
            cut = _smaller_batch(config, ranks, each(config), free - held(needs))
            report.problem(SettingsError.status, "activations", f"{told}: too little; {cut}")
        else:
            report.judge(whole < TIGHT * free, "activations", told)
    left = free - next(held(needs) for config, needs in runs if config is trial)
    return int(0.7 * left / each(trial)) * trial.micro_batches if left >= 0 else 0


def _smaller_head(config: Config) -> str:
    """What makes the tensors of the classes smaller, of what is not chosen already."""
    ways = [] if config.head.storage == "bf16" else ["head.storage=bf16"]
    ways += [] if isinstance(config.head.optimizer, RowAdagrad) else ["head.optimizer=adagrad"]
    fewer = f"; {', '.join(ways)} take{'s' * (len(ways) == 1)} fewer bytes" if ways else ""
    return f"more GPUs or machines share the classes{fewer}"


def _smaller_batch(config: Config, ranks: int, each: float, room: float) -> str:
    """What makes the activations smaller, of what is not chosen already."""
    share = max(1, config.batch_size // ranks)
    fitting = (n for n in range(1, share + 1) if share % n == 0 and each * share / n < TIGHT * room)
    cut = next(fitting, None)
    ways = [] if cut is None else [f"micro_batches={cut} would fit"]
    ways += [] if config.backbone.checkpointing else ["backbone.checkpointing=true takes fewer bytes"]
    return ", ".join([*ways, "or a smaller batch_size" if ways else "a smaller backbone or batch_size"])


def _room(device: torch.device, local_ranks: int) -> tuple[int, str]:
    """Bytes that a rank of this machine may take, and that in words."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(0)[0]
        return free, f"of {amount(free)} free on the GPU"
    left = machine.available_memory()
    if left is None:
        return 1 << 62, "of an unknown amount"
    here = "for the one rank here" if local_ranks == 1 else f"for each of {plural(local_ranks, 'rank')} here"
    return left // local_ranks, f"of {amount(left // local_ranks)} {here}"
