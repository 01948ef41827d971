"""What the tests of `run.sh --doctor` share: a small run, and a measurement that costs nothing."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recognition.config import load
from recognition.doctor import examine

CONFIG = """
from recognition.backbones import BackboneSettings
from recognition.config import *
def config():
    return Config(name="run", output={output!r}, batch_size=16, epochs=10,
                  data=DataSettings({root!r}, reader="fallback"), backbone=BackboneSettings("tiny", 32),
                  evaluation=EvaluationSettings(("pairs",)))
"""


def copied(small_set: Path, folder: Path) -> Path:
    """The small set in a folder of its own, without what other tests' runs left beside it."""
    left = shutil.ignore_patterns("samples.map")
    return Path(shutil.copytree(small_set, folder / "a set", ignore=left))


def config_file(folder: Path, root: Path) -> str:
    """A config of a run on this set."""
    path = folder / "c.py"
    path.write_text(CONFIG.format(output=str(folder / "runs"), root=str(root)))
    return str(path)


def canned(command: Sequence[str]) -> tuple[int, str]:
    """What a trial of the rows that it is asked for might have found, without one."""
    config = load(command[2], command[command.index("--set") + 1 :])
    found = {"ranks": 1, "batch": config.batch_size, "name": "a loader", "left_out": "off", "whole_set": True,
             "loader": {"batches": 5, "seconds": 1.0}, "points": [[4, 0.3], [config.batch_size, 1.0]],
             "together": [1.0, 1.1, 1.2], "peak_bytes": 1 << 20}
    Path(command[4]).write_text(json.dumps(found))
    return 0, ""


def told(file: str, overrides: Sequence[str] = (), ranks: int = 1, **options: Any) -> dict[str, Any]:
    """What the command tells to programs. No file is left."""
    before = sorted(Path(file).parent.rglob("*"))
    out = Path(file).with_name("doctor.json")
    status = examine(file, overrides, canned, ranks, json_path=str(out), **options)
    found: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    assert sorted(Path(file).parent.rglob("*")) == before
    assert found["exit_status"] == status
    return found


def problem(file: str, overrides: Sequence[str] = (), **options: Any) -> tuple[int, str]:
    """Exit status of the command, and the text of its one problem, "" without any."""
    found = told(file, overrides, **options)
    facts, status = [fact for facts in found["sections"].values() for fact in facts], found["exit_status"]
    problems = [fact["text"] for fact in facts if fact["kind"] == "problem"]
    assert len(problems) == (status != 0)
    return status, "".join(problems)
