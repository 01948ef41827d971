"""Shards are written in the common face layout, and what cannot be written in it is refused."""

import struct

import numpy as np
import pytest

from recognition.data.dataset import open_dataset
from recognition.data.recordio import FLOAT32_WHOLE, RecordReader, read_index, unpack_record
from recognition.data.shard_writer import PlainShardWriter, ShardWriter

IMAGES = [(0, b"a"), (0, b"bb"), (2, b"ccc"), (7, b"d")]


def records(folder):
    reader = RecordReader(folder / "train.rec")
    return [unpack_record(payload) for _, payload in reader.scan()]


def test_layout(tmp_path):
    with ShardWriter(tmp_path / "train.rec") as writer:
        for label, image in IMAGES:
            writer.add(label, image, f"{label}/{len(image)}.jpg")
    found = records(tmp_path)
    assert [(header.flag, header.labels.tolist(), header.id) for header, _ in found] == [
        (2, [5, 8], 0), (0, [0], 1), (0, [0], 2), (0, [2], 3), (0, [7], 4),
        (2, [1, 3], 5), (2, [3, 4], 6), (2, [4, 5], 7)]
    assert [bytes(image) for _, image in found] == [b"", b"a", b"bb", b"ccc", b"d", b"", b"", b""]
    keys, offsets = read_index(tmp_path / "train.idx")
    assert keys.tolist() == list(range(8))
    assert offsets.tolist() == [offset for offset, _ in RecordReader(tmp_path / "train.rec").scan()]
    assert (tmp_path / "train.lst").read_text() == "1\t0\t0/1.jpg\n2\t0\t0/2.jpg\n3\t2\t2/3.jpg\n4\t7\t7/1.jpg\n"
    assert open_dataset(tmp_path).labels.tolist() == [0, 0, 2, 7]


def test_two_floats_a_label(tmp_path):
    labels = [3, FLOAT32_WHOLE + 1, 2 * FLOAT32_WHOLE + 9]
    with ShardWriter(tmp_path / "train.rec", label_base=FLOAT32_WHOLE) as writer:
        for label in labels:
            writer.add(label, b"image", "name")
    (tmp_path / "property").write_text(f"{3 * FLOAT32_WHOLE},112,112\nlabel_base={FLOAT32_WHOLE}\n")
    assert open_dataset(tmp_path).labels.tolist() == labels
    found = records(tmp_path)
    assert [(header.flag, header.labels.tolist()) for header, _ in found] == [
        (2, [4, 7]), (2, [0, 3]), (2, [1, 1]), (2, [2, 9]), (4, [0, 1, 0, 2]), (4, [0, 2, 0, 3]), (4, [0, 3, 0, 4])]


def test_a_label_that_needs_two_floats_is_refused_without_label_base(tmp_path):
    writer = ShardWriter(tmp_path / "train.rec")
    with pytest.raises(ValueError, match="two floats"):
        writer.add(FLOAT32_WHOLE + 1, b"image", "name")
    writer.abandon()


def test_misuse_is_refused(tmp_path):
    writer = ShardWriter(tmp_path / "train.rec")
    writer.add(2, b"image", "a")
    with pytest.raises(ValueError, match="label 1 after 2"), writer:
        writer.add(1, b"image", "b")
    assert not (tmp_path / "train.idx").exists()  # an unfinished shard does not open
    with pytest.raises(ValueError, match="an empty image"), ShardWriter(tmp_path / "train.rec") as writer:
        writer.add(0, b"", "a")


def test_no_images(tmp_path):
    with ShardWriter(tmp_path / "train.rec"):
        pass
    ((header, image),) = records(tmp_path)
    assert (header.labels.tolist(), len(image)) == ([1, 1], 0)


def test_header_bytes(tmp_path):
    with ShardWriter(tmp_path / "train.rec") as writer:
        writer.add(0, b"a", "a")
    data = np.fromfile(tmp_path / "train.rec", np.uint8)[:40].tobytes()
    assert data == struct.pack("<IIIfQQff", 0xCED7230A, 32, 2, 0, 0, 0, 2, 3)


def test_plain_layout(tmp_path):
    with PlainShardWriter(tmp_path / "train.rec") as writer:
        for label, image in [(5, b"a"), (0, b"bb"), (5, b"ccc")]:
            writer.add(label, image, f"x/{len(image)}")
        with pytest.raises(ValueError, match="an empty image"):
            writer.add(0, b"", "a")
    found = records(tmp_path)
    assert [(header.flag, header.labels.tolist(), header.id) for header, _ in found] == [
        (0, [5], 0), (0, [0], 1), (0, [5], 2)]
    assert [bytes(image) for _, image in found] == [b"a", b"bb", b"ccc"]
    assert (tmp_path / "train.lst").read_text() == "0\t5\tx/1\n1\t0\tx/2\n2\t5\tx/3\n"
    assert open_dataset(tmp_path).labels.tolist() == [5, 0, 5]


def test_plain_layout_with_two_floats_a_label(tmp_path):
    labels = [2 * FLOAT32_WHOLE + 9, 3]
    with PlainShardWriter(tmp_path / "train.rec", label_base=FLOAT32_WHOLE) as writer:
        for label in labels:
            writer.add(label, b"image", "name")
    (tmp_path / "property").write_text(f"{3 * FLOAT32_WHOLE},112,112\nlabel_base={FLOAT32_WHOLE}\n")
    assert open_dataset(tmp_path).labels.tolist() == labels
