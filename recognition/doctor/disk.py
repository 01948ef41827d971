"""What runs write against what the disk has free. Proven by tests/recognition/test_doctor_needs.py."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from eval.ijb_cache import PARTS
from eval.ijb_lists import TARGETS, find_target
from recognition.config import Config
from recognition.doctor.needs import Needs
from recognition.doctor.report import Report, amount
from recognition.errors import SettingsError, TrainerError


def look_at_disk(runs: Sequence[tuple[Config, Needs]], report: Report) -> None:
    """What the runs write against what is free, less what is in their folders already."""
    report.section("disk")
    place = runs[0][0].folder
    free = shutil.disk_usage(next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())).free
    have = sum(_bytes_in(config.folder) for config, _ in runs)
    every = [(files_of(config, needs), needs.save) for config, needs in runs]
    wanted = sum(sum(written.values()) for written, _ in every)
    written, save = max(every, key=lambda one: sum(one[0].values()))
    parts = ", ".join(f"{name} {amount(size)}" for name, size in written.items()) + f"; a save is {amount(save)}"
    report.figures["disk"] = {"free": free, "needed": wanted, "there": have, "save": save}
    told = f"{amount(wanted)} at its fullest ({parts})" if len(runs) == 1 else (
        f"{amount(wanted)} for {len(runs)} runs, of one at its fullest {amount(sum(written.values()))} ({parts})")
    where, holds = (place, "which holds") if len(runs) == 1 else (place.parent, "where their folders hold")
    told += f"; {amount(free)} free for {where}" + (f", {holds} {amount(have)} already" if have else "")
    if wanted > free + have:
        report.problem(SettingsError.status, "space", f"{told}: too little; fewer saves (checkpoint.keep) or another "
                       "place (output)")
    else:
        report.judge(wanted < 0.8 * (free + have), "space", told)


def _bytes_in(folder: Path) -> int:
    """Bytes of its files, but for those that a run at work takes away meanwhile."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found += Path(place, name).stat().st_size
    return found


def files_of(config: Config, needs: Needs) -> dict[str, int]:
    """Bytes of a run's files at their fullest, by part: those of its settings, and the embeddings of IJB's faces."""
    faces = sum(_faces(folder) for folder in config.evaluation.ijb)
    cache = faces * len(PARTS) * 4 * config.backbone.embedding_size
    return needs.on_disk | ({"embeddings of IJB": cache} if cache else {})


def _faces(folder: str) -> int:
    """Faces that an IJB folder lists; 0 where it cannot be read, which the section on evaluation tells."""
    try:
        path = Path(folder) / "meta" / f"{TARGETS[find_target(folder)]}_face_tid_mid.txt"
        with path.open("rb") as lines:
            return sum(1 for _ in lines)
    except (TrainerError, OSError):
        return 0
