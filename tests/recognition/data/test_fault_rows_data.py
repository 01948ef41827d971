"""Damaged training sets end a command with status 3 and one line, before anything is trained on them.

A test for each kind of fault, on a set small enough to try all of its places. Damaged pictures are in
tests/recognition/data/test_loaders.py, flipped bits in tests/tools/records/test_verify.py.
"""

import math
import struct

import numpy as np
import pytest

from recognition.data.dataset import open_dataset
from recognition.data.recordio import MAGIC_BYTES, RecordReader, RecordWriter, pack_record, read_index, write_index
from recognition.data.shard_writer import ShardWriter
from recognition.errors import run_command
from tools import rec_builder

IMAGES = [(0, b"a"), (0, b"bb"), (1, b"ccc"), (2, b"dddd"), (2, MAGIC_BYTES * 2), (2, b"f" * 9)]


@pytest.fixture
def folder(tmp_path):
    """Six images of three people in the common face layout, one in three parts, and `property`."""
    with ShardWriter(tmp_path / "train.rec") as shard:
        for label, image in IMAGES:
            shard.add(label, image, "name")
    (tmp_path / "property").write_text("3,112,112\n")
    return tmp_path


@pytest.fixture
def refused(folder, capsys):
    """The line with which opening the set ends, status 3; a set that opens fails the test."""

    def line(*parts):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(rec_builder.main, ["inspect", str(folder)])
        shown = capsys.readouterr()
        assert (ended.value.code, shown.out, shown.err.count("\n")) == (3, "", 1)
        assert shown.err.startswith(f"error: {folder}")
        assert all(part in shown.err for part in parts), shown.err
        return shown.err

    return line


def rewrite(folder, offset, data):
    """Write bytes into the .rec file."""
    with open(folder / "train.rec", "r+b") as file:
        file.seek(offset)
        file.write(data)


def offsets_of(folder):
    return [int(offset) for offset in read_index(folder / "train.idx")[1]]


def test_the_set_opens_as_it_is(folder):
    assert rec_builder.main(["inspect", str(folder)]) == 0


# Row 1: the records


def test_row_1_cut_at_every_byte(folder, refused):
    data = (folder / "train.rec").read_bytes()
    for size in range(len(data)):
        (folder / "train.rec").write_bytes(data[:size])
        refused(f"{folder / 'train.rec'}: record ", " @ offset ")


def test_row_1_bad_magic(folder, refused):
    data = (folder / "train.rec").read_bytes()
    for key, offset in enumerate(offsets_of(folder)):
        for byte in range(4):
            (folder / "train.rec").write_bytes(data)
            rewrite(folder, offset + byte, bytes([data[offset + byte] ^ 0x10]))
            refused(f": record {key} @ offset {offset}: no record begins here: expected the magic 0xced7230a")


def test_row_1_length_past_the_end(folder, refused):
    data = (folder / "train.rec").read_bytes()
    for key, offset in enumerate(offsets_of(folder)):
        word = struct.unpack_from("<I", data, offset + 4)[0]
        for length in (len(data) - offset - 7, len(data), 1 << 20, (1 << 29) - 1):
            (folder / "train.rec").write_bytes(data)
            rewrite(folder, offset + 4, struct.pack("<I", word >> 29 << 29 | length))
            refused(f": record {key} @ offset {offset}: ")


def test_row_1_wrong_order_of_cflags(folder, refused):
    """Every cflag where another belongs: 1, 2, 3 are the parts of one record, 0 is all others."""
    data = (folder / "train.rec").read_bytes()
    offsets = offsets_of(folder)
    parts = RecordReader(folder / "train.rec").parts(offsets[5])
    assert [part.cflag for part in parts] == [1, 2, 3]
    frames = [(key, offset, offset) for key, offset in enumerate(offsets)]
    frames += [(5, offsets[5], part.start - 8) for part in parts[1:]]
    for key, offset, frame in frames:
        word = struct.unpack_from("<I", data, frame + 4)[0]
        for cflag in set(range(8)) - {word >> 29}:
            (folder / "train.rec").write_bytes(data)
            rewrite(folder, frame + 4, struct.pack("<I", cflag << 29 | word & (1 << 29) - 1))
            if (word >> 29, cflag) in ((1, 0), (2, 3)):  # now the record ends here, and what follows belongs to nothing
                end = parts[0].end if cflag == 0 else parts[1].end
                refused(f": record ? @ offset {end}: train.idx lacks this record")
            else:
                refused(f": record {key} @ offset {offset}: ")


def test_row_1_padding_that_is_not_zero(folder, refused):
    data = (folder / "train.rec").read_bytes()
    padded = 0
    for key, (offset, payload) in enumerate(RecordReader(folder / "train.rec").scan()):
        for byte in range(-len(payload) % 4):
            (folder / "train.rec").write_bytes(data)
            rewrite(folder, offset + 8 + len(payload) + byte, b"\1")
            refused(f": record {key} @ offset {offset}: padding ", "expected zeros")
            padded += 1
    assert padded


# Row 2: the index


def with_index(folder, change):
    keys, offsets = (part.tolist() for part in read_index(folder / "train.idx"))
    change(keys, offsets)
    write_index(folder / "train.idx", keys, offsets)


def test_row_2_offset_past_the_end(folder, refused):
    size = (folder / "train.rec").stat().st_size
    for row in range(10):
        for offset in (size, size + 4, size - 4, 10**17):
            index = (folder / "train.idx").read_bytes()
            with_index(folder, lambda keys, offsets, row=row, offset=offset: offsets.__setitem__(row, offset))
            refused(f"{folder / 'train.rec'}: record ")
            (folder / "train.idx").write_bytes(index)


def test_row_2_duplicate_key(folder, refused):
    with_index(folder, lambda keys, offsets: keys.__setitem__(3, 2))
    refused(f"{folder / 'train.idx'}: key 2 twice, at offsets ")


def test_row_2_one_record_under_two_keys(folder, refused):
    with_index(folder, lambda keys, offsets: offsets.__setitem__(3, offsets[2]))
    refused("train.idx gives this offset to two keys")


@pytest.mark.parametrize("line", [
    b"x", b"", b"3 70", b"3\t", b"\t70", b"3\t70\t1", b"-3\t70", b"3\t7.0", b"3\t" + b"9" * 19])
def test_row_2_malformed_line(folder, refused, line):
    lines = (folder / "train.idx").read_bytes().split(b"\n")
    (folder / "train.idx").write_bytes(b"\n".join([*lines[:3], line, *lines[4:]]))
    refused(f"{folder / 'train.idx'}: line 4: expected 'key<tab>offset', found ")


def test_row_2_records_that_the_index_lacks(folder, refused):
    index = (folder / "train.idx").read_bytes()
    for row, offset in enumerate(offsets_of(folder)):
        with_index(folder, lambda keys, offsets, row=row: (keys.pop(row), offsets.pop(row)))
        refused("train.idx lacks this record" if row else "record ", f"offset {offset if row else ''}")
        (folder / "train.idx").write_bytes(index)


def test_row_2_index_of_another_file(folder, refused):
    with RecordWriter(folder / "other") as writer:
        offsets = [writer.write(pack_record(0, key, bytes(20 + key))) for key in range(10)]
    write_index(folder / "train.idx", range(10), offsets)
    refused(f"{folder / 'train.rec'}: record ", "the index of another file")


def test_row_2_no_index_or_an_empty_one(folder, refused):
    (folder / "train.idx").write_bytes(b"")
    refused(f"{folder / 'train.idx'}: lists no record")
    (folder / "train.idx").unlink()
    refused(f"{folder / 'train.idx'}: ")


# Row 3: the labels


def write_records(folder, payloads):
    with RecordWriter(folder / "train.rec") as writer:
        write_index(folder / "train.idx", range(len(payloads)), [writer.write(payload) for payload in payloads])


def raw(flag, label, labels=(), image=b"image"):
    """A payload without pack_record's checks."""
    return struct.pack(f"<IfQQ{len(labels)}f", flag, label, 0, 0, *labels) + image


@pytest.mark.parametrize("label", [math.nan, math.inf, -math.inf, 0.5, 2.0000002, -1.0, -0.5, 1e30, 3.0, 2.0**24])
@pytest.mark.parametrize("flag", [0, 1, 2])
def test_row_3_label_that_is_none(folder, refused, label, flag):
    bad = raw(0, label) if not flag else raw(flag, 0.0, [label, 0.0][:flag])
    write_records(folder, [raw(0, 1.0), raw(0, 2.0), bad, raw(0, 0.0)])
    shown = 3 if label == 3 else np.float32(label)
    refused(f"{folder / 'train.rec'}: record 2 @ offset ", f": label {shown}; expected ")


@pytest.mark.parametrize("flag", [1, 2, 7, 1 << 20, (1 << 32) - 1])
def test_row_3_flag_larger_than_the_payload(folder, refused, flag):
    write_records(folder, [raw(0, 1.0), raw(flag, 0.0, image=b"abc")])
    refused(f"{folder / 'train.rec'}: record 1 @ offset ", f"flag {flag} announces {4 * flag} bytes of labels")


@pytest.mark.parametrize("bare", [raw(2, 0.0, (1, 2), b""), raw(4, 0.0, (0, 1, 0, 2), b""), raw(0, 1.0, (), b"")])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_row_3_header_or_identity_record_where_an_image_belongs(folder, refused, bare, at):
    payloads = [raw(0, 1.0), raw(0, 2.0)]
    payloads.insert(at, bare)
    write_records(folder, payloads)
    if at or bare[0] == 0:
        refused(f"{folder / 'train.rec'}: record {at} @ offset ", "no image")
    else:  # at key 0 it is the header record, and no sample either
        assert rec_builder.main(["inspect", str(folder)]) == 0
        assert open_dataset(folder).labels.tolist() == [1, 2]
