"""What a run writes: each step once, whole lines, one reader's JSON."""

import json
import logging
import math
from pathlib import Path

import pytest

from recognition.config import Config, LogSettings
from recognition.distributed import Ranks
from recognition.errors import SettingsError
from recognition.log import RunLog, provenance

QUIET = Config(name="run", log=LogSettings(tensorboard=False))


def _steps(folder: Path, start: int, stop: int) -> None:
    log = RunLog(folder, Ranks())
    log.begin(start, 10, QUIET)
    for step in range(start + 1, stop + 1):
        log.advance()
        figures = {"loss": 1 / 3, "lr": 0.1, "gradient_norm": math.nan if step == 2 else 1.0}
        log.steps(step, step / 5, 4, {"train": figures, "head": {"margin_t": 0.5}})
    log.close()


def test_lines_are_json_with_full_precision_and_null_for_nan(tmp_path):
    _steps(tmp_path, 0, 3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0]["loss"] == 1 / 3
    assert lines[1]["gradient_norm"] is None
    assert lines[0]["images_per_second"] > 0
    assert (tmp_path / "train.log").read_text().count("loss 0.3333") == 3


@pytest.mark.parametrize("damage", ['{"step": 4, "lo', '{"step": 4, "lo\n', "3\n", "[]\n", "\n"])
def test_going_on_drops_later_and_torn_lines_and_keeps_the_rest(tmp_path, damage):
    _steps(tmp_path, 0, 3)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + (damage if damage.endswith("\n") else "") + lines[1] + lines[2]
                    + ("" if damage.endswith("\n") else damage))
    _steps(tmp_path, 2, 4)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_made_is_a_settings_error(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SettingsError, match="cannot be written"):
        RunLog(tmp_path / "runs" / "name", Ranks())


def test_other_ranks_write_nothing(tmp_path):
    log = RunLog(tmp_path / "run", Ranks(rank=1, world_size=2))
    log.begin(0, 10, Config(name="run"))
    log.advance()
    log.steps(1, 0.1, 4, {"train": {"loss": 1.0}})
    log.close()
    assert not (tmp_path / "run").exists()
    logging.getLogger("recognition").setLevel(logging.INFO)


def test_provenance_names_the_commit_and_the_versions():
    record = provenance()
    assert {"python", "torch", "numpy"} <= record["versions"].keys()
    assert record["commit"] == "" or len(record["commit"].rstrip("+")) == 40
