"""What a run writes against what the disk has free. Proven by tests/recognition/test_doctor_needs.py."""

import shutil
from pathlib import Path

from eval.ijb_cache import PARTS
from eval.ijb_lists import TARGETS, find_target
from recognition.config import Config
from recognition.doctor.needs import Needs
from recognition.doctor.report import Report, amount
from recognition.errors import SettingsError, TrainerError


def look_at_disk(config: Config, needs: Needs, report: Report) -> None:
    """What the run writes against what is free, less what is in the run's folder already."""
    report.section("disk")
    folder = config.folder.absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    have = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    written = files_of(config, needs)
    wanted = sum(written.values())
    parts = ", ".join(f"{name} {amount(size)}" for name, size in written.items())
    report.figures["disk"] = {"free": free, "needed": wanted, "there": have, "save": needs.save}
    told = f"{amount(wanted)} at its fullest ({parts}; a save is {amount(needs.save)})"
    told += f"; {amount(free)} free for {config.folder}" + (f", which holds {amount(have)} already" if have else "")
    if wanted > free + have:
        report.problem(SettingsError.status, "space", f"{told}: too little; fewer saves (checkpoint.keep) or another "
                       "place (output)")
    else:
        report.judge(wanted < 0.8 * (free + have), "space", told)


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
