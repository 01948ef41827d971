"""Saves come back to the bit on any number of ranks; damage is found; what was good survives a failed save."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recognition import checkpoint
from recognition.distributed import Ranks
from recognition.errors import CheckpointError
from recognition.heads.centers import shard_range

CLASSES = 11
WEIGHT = torch.arange(CLASSES * 3, dtype=torch.float32).view(CLASSES, 3)


def _save(ranks: Ranks, folder: str, step: int) -> None:
    start, stop = shard_range(CLASSES, ranks.rank, ranks.world_size)
    rows = {"weight": WEIGHT[start:stop], "stamp": torch.arange(start, stop)}
    checkpoint.save(Path(folder), step, {"backbone.x": torch.tensor([1.5])}, rows, start, {"best": 0.5}, ranks)


def _load(ranks: Ranks, folder: str) -> tuple[int, np.ndarray, np.ndarray, float]:
    saved = checkpoint.latest(Path(folder), ranks)
    assert saved is not None
    rows = saved.rows(*shard_range(CLASSES, ranks.rank, ranks.world_size))
    return saved.state["step"], rows["weight"].numpy(), rows["stamp"].numpy(), saved.replicated()["backbone.x"].item()


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 4), (4, 2), (2, 4)])
def test_rows_come_back_on_another_number_of_ranks(on_ranks, tmp_path, before, after):
    on_ranks(before, _save, str(tmp_path), 3)
    results = on_ranks(after, _load, str(tmp_path))
    np.testing.assert_array_equal(np.concatenate([weight for _, weight, _, _ in results]), WEIGHT.numpy())
    np.testing.assert_array_equal(np.concatenate([stamp for _, _, stamp, _ in results]), np.arange(CLASSES))
    assert {(step, x) for step, _, _, x in results} == {(3, 1.5)}


def test_nothing_saved_is_none(tmp_path):
    assert checkpoint.latest(tmp_path / "absent", Ranks()) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest", "no manifest", "stray name", "no rows"])
def test_damage_falls_back_to_the_save_before(tmp_path, damage):
    _save(Ranks(), str(tmp_path), 1)
    _save(Ranks(), str(tmp_path), 2)
    newest = tmp_path / "step-000000002"
    rows, manifest = next(newest.glob("rows-*")), newest / "manifest.json"
    if damage == "flip":
        data = bytearray(rows.read_bytes())
        data[-5] ^= 1
        rows.write_bytes(data)
    elif damage == "cut":
        rows.write_bytes(rows.read_bytes()[:-1])
    elif damage == "missing":
        rows.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif damage == "no manifest":
        manifest.unlink()
    else:
        content = json.loads(manifest.read_text())
        if damage == "no rows":
            del content["files"][rows.name]
        else:
            content["files"]["../../x"] = {}
        manifest.write_text(json.dumps(content))
    assert checkpoint.problems(newest)
    saved = checkpoint.latest(tmp_path, Ranks())
    assert saved is not None
    assert saved.state["step"] == 1
    checkpoint.prune(tmp_path, keep=1)
    assert (tmp_path / "step-000000001").is_dir(), "the last good save must survive"


def test_none_good_is_an_error_that_names_them(tmp_path):
    _save(Ranks(), str(tmp_path), 1)
    (tmp_path / "step-000000001" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"step-000000001: state\.json is damaged"):
        checkpoint.latest(tmp_path, Ranks())


def test_prune_keeps_the_newest(tmp_path):
    for step in (1, 2, 3):
        _save(Ranks(), str(tmp_path), step)
    checkpoint.prune(tmp_path, keep=0)
    assert len(list(tmp_path.iterdir())) == 3
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000003"]


def _failing_save(ranks: Ranks, folder: str) -> str:
    start, stop = shard_range(CLASSES, ranks.rank, ranks.world_size)
    try:
        checkpoint.save(Path(folder), 5, {}, {"weight": WEIGHT[start:stop]}, start, {}, ranks)
    except CheckpointError as error:
        return str(error)
    return ""


def test_one_rank_that_cannot_write_fails_all_and_spares_the_save_before(on_ranks, tmp_path):
    on_ranks(2, _save, str(tmp_path), 1)
    (tmp_path / ".step-000000004.unfinished").write_text("a file where a folder is expected cannot be removed as one")
    messages = on_ranks(2, _failing_save, str(tmp_path))
    assert all("cannot start a save on rank 0" in message for message in messages)
    assert checkpoint.problems(tmp_path / "step-000000001") == []


def test_leftovers_of_a_crash_are_ignored_and_removed(tmp_path):
    leftover = tmp_path / ".step-000000007.unfinished"
    leftover.mkdir(parents=True)
    assert checkpoint.latest(tmp_path, Ranks()) is None
    _save(Ranks(), str(tmp_path), 8)
    assert not leftover.exists()
