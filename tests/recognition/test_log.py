"""What a run writes: each step once, whole lines, one reader's JSON; what TensorBoard reads of it."""

import json
import logging
import math
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recognition.board import grid
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


def _events(folder: Path) -> dict[str, dict]:
    """TensorBoard's own reading of a folder: kind → tag → events."""
    reader = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "histograms": 0}).Reload()
    kinds = {"scalars": reader.Scalars, "images": reader.Images, "histograms": reader.Histograms}
    return {kind: {tag: read(tag) for tag in reader.Tags()[kind]} for kind, read in kinds.items()}


def _board(folder: Path, pictures: bool = True) -> Path:
    """Six logged steps of three epochs with one evaluation; TensorBoard's folder."""
    log = RunLog(folder, Ranks())
    log.begin(0, 6, Config(name="run", log=LogSettings(pictures=pictures)))
    for step in range(1, 7):
        groups = {"train": {"loss": step / 3}, "head": {"embedding_norm_mean": 7.0, "margin_t": 0.25}}
        image = torch.full((3, 112, 112, 3), 10 * step, dtype=torch.uint8)
        log.steps(step, step / 2, 4, groups, {"embedding": np.arange(1.0, 5.0)}, image)
    if not pictures:
        log.close()
        return folder / "tensorboard"
    score = {"set": "lfw", "degrade": 16, "accuracy": 0.75, "accuracy_std": 0.1, "val": None, "eer": 0.25,
             "mean_norm": 20.0}
    log.scores(6, 3.0, [score], {"lfw_16": (np.array([0.1, 1.0]), np.array([0.5, 1.0]))})
    log.close()
    return folder / "tensorboard"


def test_tensorboard_shows_figures_in_groups_curves_and_a_batch_an_epoch(tmp_path):
    folder = _board(tmp_path)
    shown, pictures = _events(folder), _events(tmp_path / "pictures")
    assert [(event.step, round(event.value, 4)) for event in shown["scalars"]["train/loss"]][:2] == [
        (1, 0.3333), (2, 0.6667)]
    assert {"head/embedding_norm_mean", "head/margin_t", "machine/images_per_second", "verification/lfw_16/accuracy",
            "verification/lfw_16/eer", "verification/lfw_16/mean_norm"} < shown["scalars"].keys()
    assert "verification/lfw_16/val" not in shown["scalars"]
    assert [event.step for event in shown["histograms"]["head/embedding_norm_all"]] == [1]
    assert list(shown["images"]) == ["verification/roc"]
    assert [event.step for event in pictures["images"]["batch"]] == [1, 3, 5]
    picture = cv2.imdecode(np.frombuffer(pictures["images"]["batch"][1].encoded_image_string, np.uint8), 1)
    assert picture.shape == (112, 3 * 112, 3)
    assert (picture == 30).all()


def test_without_pictures_nothing_shows_people(tmp_path):
    _board(tmp_path, pictures=False)
    assert not (tmp_path / "pictures").exists()


def test_pictures_side_by_side_in_the_order_of_the_batch():
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    whole = grid(images)
    assert whole.shape == (4, 16, 3)
    assert whole[::2, ::2, 0].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 0, 0, 0, 0, 0, 0]]


def test_waiting_for_batches_is_a_share_of_the_time(tmp_path):
    log = RunLog(tmp_path, Ranks())
    log.begin(0, 3, QUIET)

    def slow():
        for number in range(3):
            time.sleep(0.02)
            yield number

    assert list(log.waiting(slow())) == [0, 1, 2]
    assert 0.5 < log.data_wait <= 1
    log.restart_clock(3)
    time.sleep(0.01)
    assert log.data_wait == 0
    log.close()
