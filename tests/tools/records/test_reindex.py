"""index: the index and the checksums of a set again, from nothing but its records."""

import json

import pytest

from recognition.data.checksums import write_checksums
from recognition.data.dataset import open_dataset
from recognition.data.recordio import MAGIC_BYTES, RecordWriter, pack_record, read_index, write_index
from recognition.data.sample_map import read_map
from recognition.data.shard_writer import ShardWriter
from recognition.errors import DataError, SettingsError
from tests.tools.rec_runs import run


@pytest.fixture
def face_set(tmp_path):
    with ShardWriter(tmp_path / "train.rec") as shard:
        for label, image in [(0, b"a"), (0, MAGIC_BYTES * 3), (2, b"ccc")]:
            shard.add(label, image, "name")
    return tmp_path


def write(folder, records):
    """(key, id, label) in the order of the file; returns what the index should be."""
    with RecordWriter(folder / "train.rec") as writer:
        offsets = [writer.write(pack_record(label, id, b"image")) for _, id, label in records]
    write_index(folder / "train.idx", [key for key, _, _ in records], offsets)
    return (folder / "train.idx").read_bytes()


def test_the_same_files_again(face_set, capsys):
    before = {name: (face_set / name).read_bytes() for name in ("train.idx", "train.crc")}
    for name in before:
        (face_set / name).unlink()
    assert run("index", face_set, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shards"] == [{"file": str(face_set / "train.rec"), "records": 6, "keys": "id",
                                "written": ["train.idx", "train.crc"]}]
    assert {name: (face_set / name).read_bytes() for name in before} == before
    assert read_map(face_set / "samples.map", [face_set / "train.rec"]).labels.tolist() == [0, 0, 2]
    assert run("verify", face_set) == 3  # its images are none, which is not the index's to say


def test_im2rec_sets_keep_their_keys(tmp_path):
    index = write(tmp_path, [(7, 7, 0), (3, 3, 1), (12, 12, 0)])
    (tmp_path / "train.idx").unlink()
    assert run("index", tmp_path) == 0
    assert (tmp_path / "train.idx").read_bytes() == index
    assert open_dataset(tmp_path).labels.tolist() == [1, 0, 0]


def test_where_ids_repeat_records_are_numbered(tmp_path, capsys):
    write(tmp_path, [(0, 0, 0), (1, 0, 1), (2, 10**18, 2)])
    (tmp_path / "train.idx").unlink()
    with pytest.raises(DataError, match=r"train\.rec: ids repeat, .* try --keys number"):
        run("index", tmp_path, "--keys", "id")
    assert not (tmp_path / "train.idx").exists()
    assert run("index", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["shards"][0]["keys"] == "number in the file"
    assert read_index(tmp_path / "train.idx")[0].tolist() == [0, 1, 2]


def test_ids_can_be_ignored(tmp_path):
    write(tmp_path, [(7, 7, 0), (3, 3, 1)])
    run("index", tmp_path, "--keys", "number", "--only", "idx", "--replace")
    assert read_index(tmp_path / "train.idx")[0].tolist() == [0, 1]
    assert not (tmp_path / "train.crc").exists()


def test_nothing_is_replaced_unasked(face_set):
    (face_set / "train.idx").write_text("mine\n")
    with pytest.raises(SettingsError, match=r"train\.idx: exists; --replace"):
        run("index", face_set)
    assert (face_set / "train.idx").read_text() == "mine\n"
    (face_set / "train.crc").unlink()
    run("index", face_set, "--only", "crc")
    assert (face_set / "train.idx").read_text() == "mine\n"
    assert run("index", face_set, "--replace") == 0
    assert open_dataset(face_set).num_images == 3


def test_only_the_map_of_samples(face_set):
    before = {path.name: path.stat().st_mtime_ns for path in face_set.iterdir()}
    for _ in range(2):
        assert run("index", face_set, "--only", "map") == 0
        assert read_map(face_set / "samples.map", [face_set / "train.rec"]).labels.tolist() == [0, 0, 2]
    assert all((face_set / name).stat().st_mtime_ns == time for name, time in before.items())


def test_damaged_records_leave_everything_as_it_is(face_set):
    before = (face_set / "train.idx").read_bytes()
    data = bytearray((face_set / "train.rec").read_bytes())
    data[40] ^= 1
    (face_set / "train.rec").write_bytes(data)
    with pytest.raises(DataError, match="record 1 @ offset 40: no record begins here"):
        run("index", face_set, "--replace")
    assert (face_set / "train.idx").read_bytes() == before
    assert sorted(path.name for path in face_set.iterdir()) == ["train.crc", "train.idx", "train.lst", "train.rec"]


def test_checksums_that_tell_of_damage_are_not_washed_away(face_set, capsys):
    before = (face_set / "train.crc").read_bytes()
    data = bytearray((face_set / "train.rec").read_bytes())
    data[data.index(b"ccc")] ^= 1
    (face_set / "train.rec").write_bytes(data)
    (face_set / "train.idx").unlink()
    for options in ((), ("--replace",)):
        with pytest.raises(DataError, match=r"rec: record 3 @ offset \d+: CRC .*, but train\.crc states .*changed"):
            run("index", face_set, *options)
        assert (face_set / "train.crc").read_bytes() == before
        assert not (face_set / "train.idx").exists()
    assert run("index", face_set, "--only", "idx") == 0
    assert run("index", face_set, "--only", "crc", "--replace") == 0
    assert (face_set / "train.crc").read_bytes() != before
    assert run("index", face_set, "--replace") == 0


def test_an_index_alone_is_written_beside_checksums_that_agree(face_set, capsys):
    index, time = (face_set / "train.idx").read_bytes(), (face_set / "train.crc").stat().st_mtime_ns
    (face_set / "train.idx").unlink()
    assert run("index", face_set, "--json") == 0
    assert json.loads(capsys.readouterr().out)["shards"][0]["written"] == ["train.idx"]
    assert (face_set / "train.idx").read_bytes() == index
    assert (face_set / "train.crc").stat().st_mtime_ns == time


def test_checksums_of_other_records_are_replaced_when_asked(face_set):
    good = (face_set / "train.crc").read_bytes()
    write_checksums(face_set / "train.crc", 10, [1, 2])
    (face_set / "train.idx").unlink()
    with pytest.raises(SettingsError, match=r"train\.crc: states 2 records in 10 bytes, .* has 6 in \d+; --replace"):
        run("index", face_set)
    (face_set / "train.crc").write_bytes(good[:-1])
    with pytest.raises(DataError, match=r"train\.crc: the sidecar itself is damaged"):
        run("index", face_set)
    assert run("index", face_set, "--replace") == 0
    assert (face_set / "train.crc").read_bytes() == good


def test_a_set_that_still_does_not_open(tmp_path, capsys):
    write(tmp_path, [(0, 0, 0), (1, 1, 5)])
    (tmp_path / "property").write_text("3,112,112\n")
    assert run("index", tmp_path, "--replace") == 3
    assert "The set does not open yet" in capsys.readouterr().out
