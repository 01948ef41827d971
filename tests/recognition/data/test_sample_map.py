"""The map of samples beside a set: what it holds, when it is believed, who may write it, and what it costs."""

import json
import multiprocessing
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from recognition.data import sample_map
from recognition.data.dataset import open_dataset
from recognition.data.recordio import FLOAT32_WHOLE, MAGIC, RecordWriter, pack_record, write_index
from recognition.data.sample_map import MAP_NAME
from recognition.errors import DataError

LABELS = [0, 0, 1, 2, 2]


def write_set(folder: Path, labels=LABELS, keys=None, name="train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder / f"{name}.rec") as writer:
        offsets = [writer.write(pack_record(label, k, b"image %d" % k)) for k, label in enumerate(labels)]
    write_index(folder / f"{name}.idx", range(1, 1 + len(labels)) if keys is None else keys, offsets)
    return folder


def generate(folder: Path, count: int, classes: int) -> Path:
    """A set of `count` records of 40 bytes in two-float labels, written without a loop; label of k: k·stride mod C."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.rec", "wb") as records, open(folder / "train.idx", "wb") as index:
        for start in range(0, count, 1 << 19):
            key = np.arange(start, min(start + (1 << 19), count))
            label = generated_labels(key, classes)
            block = np.zeros((len(key), 11), "<u4")
            block[:, 0], block[:, 1], block[:, 2] = MAGIC, 36, 2
            block[:, 8] = (label // FLOAT32_WHOLE).astype(np.float32).view(np.uint32)
            block[:, 9] = (label % FLOAT32_WHOLE).astype(np.float32).view(np.uint32)
            block[:, 10] = key
            records.write(block.data)
            index.write("".join(map("{}\t{}\n".format, key.tolist(), (key * 44).tolist())).encode())
    (folder / "property").write_text(f"{classes},112,112\nlabel_base={FLOAT32_WHOLE}\n")
    return folder


def generated_labels(key: np.ndarray, classes: int) -> np.ndarray:
    return key * 7_368_787 % classes


def contents(dataset) -> list:
    return [(int(dataset.labels[s]), bytes(dataset.encoded(s)), dataset.where(s)) for s in range(dataset.num_images)]


def refuse_checking(monkeypatch) -> None:
    def fail(*_):
        raise AssertionError("the shards were checked again")

    monkeypatch.setattr(sample_map, "open_shard", fail)


@pytest.mark.parametrize("keys", [None, [5, 9, 12, 1000, 1 << 40], [3, 1, 4, 2, 0]])
def test_a_later_start_reads_what_the_first_found(tmp_path, monkeypatch, keys):
    write_set(tmp_path, keys=keys)
    first = open_dataset(tmp_path)
    assert not (tmp_path / MAP_NAME).exists()  # whoever only reads leaves nothing behind
    written = open_dataset(tmp_path, sidecar="write")
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".rec", ".idx")] == [MAP_NAME]
    refuse_checking(monkeypatch)
    later = open_dataset(tmp_path)
    assert contents(first) == contents(written) == contents(later)
    assert first.fingerprint() == written.fingerprint() == later.fingerprint()
    assert first.num_classes == later.num_classes == 3
    with pytest.raises(AssertionError, match="checked again"):
        open_dataset(tmp_path, sidecar="ignore")


def test_shards_and_single_files_have_maps_too(tmp_path, monkeypatch):
    for number in range(3):
        write_set(tmp_path, [number, 7], name=f"train_{number}")
    expected = contents(open_dataset(tmp_path, sidecar="write"))
    alone = contents(open_dataset(tmp_path / "train_1.rec", sidecar="write"))
    assert (tmp_path / f"train_1.{MAP_NAME}").exists()
    refuse_checking(monkeypatch)
    assert contents(open_dataset(tmp_path)) == expected
    assert contents(open_dataset(tmp_path / "train_1.rec")) == alone == expected[2:4]


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [
    lambda folder: touch(folder / "train.rec"),
    lambda folder: touch(folder / "train.idx"),
    lambda folder: (folder / "property").write_text("9,112,112\n"),
    lambda folder: (folder / "train.rec").rename(folder / "other.rec") and (folder / "train.idx").rename(
        folder / "other.idx"),
    lambda folder: write_set(folder, [0, 1]),
])
def test_a_map_of_other_files_is_not_believed_and_written_anew(tmp_path, monkeypatch, change):
    write_set(tmp_path)
    open_dataset(tmp_path, sidecar="write")
    change(tmp_path)
    before = (tmp_path / MAP_NAME).read_bytes()
    with monkeypatch.context() as patch:
        refuse_checking(patch)
        with pytest.raises(AssertionError, match="checked again"):
            open_dataset(tmp_path)
    open_dataset(tmp_path, sidecar="write")
    assert (tmp_path / MAP_NAME).read_bytes() != before
    refuse_checking(monkeypatch)
    open_dataset(tmp_path)


def test_faults_are_found_although_a_map_is_there(tmp_path):
    write_set(tmp_path)
    open_dataset(tmp_path, sidecar="write")
    data = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(data[:-4])
    with pytest.raises(DataError, match="cut"):
        open_dataset(tmp_path, sidecar="write")


@pytest.mark.parametrize("keys", [None, [5, 9, 12, 1000, 1 << 40]])
def test_damage_of_a_map_is_never_believed_and_never_fatal(tmp_path, keys):
    """Every byte changed, every length cut: the set is checked anew and comes out as it is."""
    write_set(tmp_path, keys=keys)
    expected = contents(open_dataset(tmp_path, sidecar="write"))
    path = tmp_path / MAP_NAME
    good = path.read_bytes()
    for at in range(len(good)):
        for damaged in (good[:at], good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :]):
            path.write_bytes(damaged)
            assert contents(open_dataset(tmp_path)) == expected, at
    path.write_bytes(good + b"\0")
    assert contents(open_dataset(tmp_path)) == expected


@pytest.mark.parametrize("wrong", [
    {"samples": -1}, {"samples": 1 << 60}, {"samples": True}, {"types": ["<i8", "<f4"]}, {"types": []}, {"shards": 5},
    {"shards": [{}]}, {"num_classes": "3"}, {"num_classes": 1 << 70}, {"fingerprint": None},
])
def test_a_map_that_describes_nonsense_is_ignored(tmp_path, wrong):
    write_set(tmp_path)
    expected = contents(open_dataset(tmp_path, sidecar="write"))
    data = (tmp_path / MAP_NAME).read_bytes()
    length = struct.unpack_from("<Q", data, 8)[0]
    text = json.dumps(json.loads(data[16 : 16 + length]) | wrong).encode()
    (tmp_path / MAP_NAME).write_bytes(data[:8] + struct.pack("<Q", len(text)) + text + data[16 + length :])
    assert contents(open_dataset(tmp_path)) == expected


def test_a_map_of_older_checks_is_not_believed(tmp_path, monkeypatch):
    write_set(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sample_map, "_CHECKS", sample_map._CHECKS - 1)
        open_dataset(tmp_path, sidecar="write")
    refuse_checking(monkeypatch)
    with pytest.raises(AssertionError, match="checked again"):
        open_dataset(tmp_path)


def test_labels_and_offsets_made_up_with_a_right_hash_are_refused(tmp_path):
    write_set(tmp_path)
    dataset = open_dataset(tmp_path, sidecar="write")
    good = dataset._samples
    for name, values in (("labels", [0, 0, 1, 2, 3]), ("labels", [0, 0, 1, 2, -1]), ("offsets", [0, 4, 8, 12, 1 << 40]),
                         ("offsets", [0, 4, 8, 12, -4])):
        made_up = sample_map.replace(good, **{name: np.array(values, getattr(good, name).dtype)})
        sample_map.write_map(tmp_path / MAP_NAME, sample_map.replace(
            made_up, fingerprint=sample_map.fingerprint(made_up)))
        assert sample_map.read_map(tmp_path / MAP_NAME, [tmp_path / "train.rec"]) is None


def test_where_nothing_can_be_written_the_samples_stay_in_memory_and_that_is_said(tmp_path, monkeypatch):
    write_set(tmp_path)

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(sample_map.os, "replace", refuse)
    notes: list[str] = []
    dataset = open_dataset(tmp_path, sidecar="write", notes=notes)
    assert [row[0] for row in contents(dataset)] == LABELS
    assert notes == [f"{tmp_path / MAP_NAME} cannot be written (Read-only file system): every rank holds these samples "
                     "in memory"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.idx", "train.rec"]


def _open_on(folder: Path, barrier, results) -> None:
    checked = []
    original = sample_map.check_set
    sample_map.check_set = lambda *arguments: (checked.append(1), original(*arguments))[1]
    barrier.wait()
    dataset = open_dataset(folder, sidecar="write")
    results.put((len(checked), dataset.labels.tolist(), dataset.fingerprint()))


def test_of_the_ranks_of_a_machine_one_checks_and_the_others_wait(tmp_path):
    write_set(tmp_path, sorted(range(2000)))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    ranks = [context.Process(target=_open_on, args=(tmp_path, barrier, results)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    found = [results.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()
    assert sorted(checks for checks, *_ in found) == [0, 0, 0, 1]
    assert len({(tuple(labels), print_) for _, labels, print_ in found}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [MAP_NAME, "train.idx", "train.rec"]


def test_a_record_that_changes_under_a_run_is_named(tmp_path):
    write_set(tmp_path)
    dataset = open_dataset(tmp_path, sidecar="write")
    where, offset = dataset.where(2), dataset.place(2)[2]
    for at, value, reason in ((0, b"\0", "no record begins here"), (4, b"\0\0\0\0", "a payload of 0 bytes"),
                              (7, b"\xff", "cflag 7"), (8, b"\xff", "flag 255 announces"),
                              (4, b"\x18\0\0\0", "no image")):
        with open(tmp_path / "train.rec", "r+b") as file:
            file.seek(offset + at)
            old = file.read(len(value))
            file.seek(offset + at)
            file.write(value)
            file.flush()
            with pytest.raises(DataError, match=reason) as caught:
                dataset.encoded(2)
            assert str(caught.value).startswith(where)
            file.seek(offset + at)
            file.write(old)


@pytest.mark.parametrize(("base", "is_split"), [(0, False), (0, True), (100, False), (100, True)])
def test_a_label_that_changes_unseen_is_named(tmp_path, base, is_split):
    """The file is changed in place, with the size and the time that it had: the map beside it is still believed."""
    image = struct.pack("<I", MAGIC) + b"image" if is_split else b"an image"  # the first is written in parts
    with RecordWriter(tmp_path / "train.rec") as writer:
        offsets = [writer.write(pack_record([label // 100, label % 100] if base else label, 0, image))
                   for label in (205, 206, 307)]
    write_index(tmp_path / "train.idx", range(3), offsets)
    if base:
        (tmp_path / "property").write_text(f"label_base={base}\n")
    open_dataset(tmp_path, sidecar="write")
    path = tmp_path / "train.rec"
    status = path.stat()
    data = bytearray(path.read_bytes())
    at = offsets[1] + (8 + 24 + 4 if base else 8 + 4)
    assert struct.unpack_from("<f", data, at)[0] == (6 if base else 206)
    struct.pack_into("<f", data, at, 7 if base else 207)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    dataset = open_dataset(tmp_path)
    assert dataset.labels.tolist() == [205, 206, 307]
    for good in (0, 2):
        dataset.encoded(good)
    with pytest.raises(DataError, match=r"record 1 @ offset \d+: label 207; it was 206 when the set was checked"):
        dataset.encoded(1)


@pytest.mark.parametrize(("count", "classes"), [(50_000, 10_000_000), (50_000, 20_000_001)])
def test_labels_of_millions_of_identities_are_right_end_to_end(tmp_path, count, classes):
    """Two-float labels through check, map and look-up; the last class is among them."""
    folder = generate(tmp_path, count, classes)
    expected = generated_labels(np.arange(count), classes)
    assert expected.max() > classes * 0.999
    for sidecar in ("ignore", "write", "use"):
        dataset = open_dataset(folder, sidecar=sidecar)
        assert dataset.num_classes == classes
        some = np.random.default_rng(1).permutation(count)[:500]
        np.testing.assert_array_equal(dataset.labels_of(some), expected[some])
        np.testing.assert_array_equal(dataset.labels, expected)
        assert all(struct.unpack("<I", bytes(dataset.encoded(int(s)))) == (s,) for s in some)


@pytest.mark.slow
def test_every_identity_of_ten_million(tmp_path):
    """One record for each: 12 bytes a sample on the disk, none of them in this process's own memory."""
    count = 10_000_000
    folder = generate(tmp_path, count, count)
    open_dataset(folder, sidecar="write")
    dataset = open_dataset(folder)
    assert (tmp_path / MAP_NAME).stat().st_size <= 12 * count + 4096
    assert not dataset.labels.flags.owndata
    assert not dataset._samples.offsets.flags.owndata
    key = np.arange(count)
    np.testing.assert_array_equal(dataset.labels, generated_labels(key, count))
    np.testing.assert_array_equal(dataset.labels_of(key[-5:]), generated_labels(key[-5:], count))
    assert np.bincount(dataset.labels).max() == 1
