"""The CRC sidecar against zlib and against bytes written down, and what is none refused."""

import struct
import zlib

import numpy as np
import pytest

from recognition.data.checksums import crc_path, read_checksums, write_checksums
from recognition.data.recordio import MAGIC_BYTES, RecordReader
from recognition.data.shard_writer import PlainShardWriter, ShardWriter
from recognition.errors import DataError


def test_bytes(tmp_path):
    write_checksums(tmp_path / "a.crc", 1 << 40, np.array([1, 0xFFFFFFFF]))
    table = bytes.fromhex("01000000ffffffff")
    head = b"RECCRC32" + struct.pack("<QQII", 1 << 40, 2, zlib.crc32(table), 0)
    assert (tmp_path / "a.crc").read_bytes() == head + table
    size, records = read_checksums(tmp_path / "a.crc")
    assert (size, records.tolist()) == (1 << 40, [1, 0xFFFFFFFF])


@pytest.mark.parametrize("writer_class", [ShardWriter, PlainShardWriter])
def test_writers_sum_what_a_reader_returns(tmp_path, writer_class):
    with writer_class(tmp_path / "train.rec") as writer:
        for label, image in [(0, b"a"), (0, MAGIC_BYTES * 3), (4, b"cc")]:
            writer.add(label, image, "name")
    size, records = read_checksums(crc_path(tmp_path / "train.rec"))
    payloads = [payload for _, payload in RecordReader(tmp_path / "train.rec").scan()]
    assert size == (tmp_path / "train.rec").stat().st_size
    assert records.tolist() == [zlib.crc32(payload) for payload in payloads]


def test_every_changed_byte_and_every_cut_is_found(tmp_path):
    path = tmp_path / "a.crc"
    write_checksums(path, 100, np.arange(3))
    good = path.read_bytes()
    for at in range(len(good)):
        if 8 <= at < 16:  # the size is compared with the .rec file's by whoever reads it
            continue
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(DataError, match=r"a\.crc: "):
            read_checksums(path)
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(DataError, match=r"a\.crc: "):
            read_checksums(path)


def test_no_sidecar(tmp_path):
    with pytest.raises(DataError, match=r"a\.crc: No such file"):
        read_checksums(tmp_path / "a.crc")
