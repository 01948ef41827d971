"""Saves come back to the bit on any number of ranks; damage is found and the newest good save is taken."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recognition import checkpoint
from recognition.checkpoint import Keep, Saver
from recognition.distributed import Ranks
from recognition.errors import CheckpointError
from recognition.heads.centers import shard_range

CLASSES = 11
WEIGHT = torch.arange(CLASSES * 3, dtype=torch.float32).view(CLASSES, 3)
NAMES = ["", "ça va", *(f"person {number}" for number in range(2, CLASSES))]


def _save(ranks: Ranks, folder: str, step: int) -> None:
    start, stop = shard_range(CLASSES, ranks.rank, ranks.world_size)
    rows = {"weight": WEIGHT[start:stop], "stamp": torch.arange(start, stop)}
    with Saver(Path(folder), ranks, Keep(last=0), asynchronous=step % 2 == 0, labels=NAMES) as saver:
        saver.save(step, {"backbone.x": torch.tensor([1.5])}, rows, start, {"best": 0.5})


def _load(ranks: Ranks, folder: str) -> tuple[int, np.ndarray, np.ndarray, float]:
    saved = checkpoint.latest(Path(folder), ranks)
    assert saved is not None
    rows = saved.rows(*shard_range(CLASSES, ranks.rank, ranks.world_size))
    return saved.step, rows["weight"].numpy(), rows["stamp"].numpy(), saved.replicated()["backbone.x"].item()


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 4), (4, 2), (2, 4)])
def test_rows_come_back_on_another_number_of_ranks(on_ranks, tmp_path, before, after):
    on_ranks(before, _save, str(tmp_path), 3)
    results = on_ranks(after, _load, str(tmp_path))
    np.testing.assert_array_equal(np.concatenate([weight for _, weight, _, _ in results]), WEIGHT.numpy())
    np.testing.assert_array_equal(np.concatenate([stamp for _, _, stamp, _ in results]), np.arange(CLASSES))
    assert {(step, x) for step, _, _, x in results} == {(3, 1.5)}


def test_any_range_of_rows_and_only_the_tensors_wanted(on_ranks, tmp_path):
    on_ranks(4, _save, str(tmp_path), 2)
    saved = checkpoint.read(tmp_path / "step-000000002")
    for start in range(CLASSES):
        for stop in range(start, CLASSES + 1):
            rows = saved.rows(start, stop, ["weight"])
            assert list(rows) == ["weight"]
            np.testing.assert_array_equal(rows["weight"].numpy(), WEIGHT[start:stop].numpy())
    with pytest.raises(CheckpointError, match=r"has 1 of the classes \[10, 12\)"):
        saved.rows(10, 12)
    assert (saved.num_classes, saved.labels()) == (CLASSES, NAMES)


def test_a_set_without_names_saves_none(tmp_path):
    checkpoint.save(tmp_path, 1, {}, {"weight": WEIGHT}, 0, {}, Ranks())
    assert checkpoint.read(tmp_path / "step-000000001").labels() is None


def test_nothing_saved_is_none(tmp_path):
    assert checkpoint.latest(tmp_path / "absent", Ranks()) is None


def test_a_save_is_found_by_its_run_its_folder_and_itself(tmp_path):
    _save(Ranks(), str(tmp_path / "run" / "checkpoints"), 4)
    save = tmp_path / "run" / "checkpoints" / "step-000000004"
    elsewhere = tmp_path / "copied by hand"
    save.rename(elsewhere)
    assert checkpoint.open_save(elsewhere, Ranks()).folder == elsewhere
    elsewhere.rename(save)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints", save):
        assert checkpoint.open_save(path, Ranks()).folder == save
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.open_save(tmp_path, Ranks())


def _damage(save: Path, kind: str, name: str) -> None:
    path = next(save.glob(name))
    if kind == "flip":
        data = bytearray(path.read_bytes())
        data[len(data) * 2 // 3] ^= 4
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "grown":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        path.unlink()


FILES = ("replicated.safetensors", "rows-00000000-*.safetensors", "state.json", "labels.txt", "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["flip", "cut", "grown", "missing"])
def test_damage_falls_back_to_the_save_before(on_ranks, tmp_path, caplog, kind, name):
    for step in (1, 2):
        on_ranks(2, _save, str(tmp_path), step)
    newest = tmp_path / "step-000000002"
    _damage(newest, kind, name)
    (wrong,) = checkpoint.problems(newest)
    saved = checkpoint.latest(tmp_path, Ranks())
    assert saved is not None
    assert saved.step == 1
    assert f"not a good checkpoint, trying the one before: {newest}: {wrong}" in caplog.text


def test_a_flipped_bit_is_found_in_every_byte(tmp_path):
    _save(Ranks(), str(tmp_path), 1)
    generator = np.random.default_rng(0)
    save = tmp_path / "step-000000001"
    for path in save.iterdir():
        data = path.read_bytes()
        for position in range(len(data)):
            flipped = bytearray(data)
            flipped[position] ^= 1 << int(generator.integers(8))
            path.write_bytes(flipped)
            assert checkpoint.problems(save), (path.name, position)
        path.write_bytes(data)
    assert checkpoint.problems(save) == []


def _latest_step(ranks: Ranks, folder: str) -> int:
    saved = checkpoint.latest(Path(folder), ranks)
    assert saved is not None
    return saved.step


def test_damage_that_one_rank_looks_at_counts_for_all(on_ranks, tmp_path):
    for step in (1, 2):
        on_ranks(4, _save, str(tmp_path), step)
    for row_file in sorted((tmp_path / "step-000000002").glob("rows-*")):
        data = row_file.read_bytes()
        row_file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert on_ranks(2, _latest_step, str(tmp_path)) == [1, 1]
        row_file.write_bytes(data)
    assert on_ranks(2, _latest_step, str(tmp_path)) == [2, 2]


def _complaint(ranks: Ranks, folder: str) -> str:
    try:
        checkpoint.latest(Path(folder), ranks)
    except CheckpointError as error:
        return str(error)
    return ""


def test_none_good_is_an_error_that_names_them_on_all_ranks(on_ranks, tmp_path):
    _save(Ranks(), str(tmp_path), 1)
    (tmp_path / "step-000000001" / "state.json").write_text("{}")
    for message in on_ranks(2, _complaint, str(tmp_path)):
        assert "no checkpoint verifies" in message
        assert "step-000000001: state.json is damaged" in message


def test_missing_rows_are_found_by_the_manifest(tmp_path):
    checkpoint.save(tmp_path, 1, {}, {"weight": WEIGHT}, 0, {}, Ranks())
    manifest = tmp_path / "step-000000001" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["files"]["rows-00000000-00000011.safetensors"]
    manifest.write_text(json.dumps(content))
    assert checkpoint.problems(manifest.parent) == [
        "manifest.json: the row files do not cover the classes from 0 without gaps"
    ]
