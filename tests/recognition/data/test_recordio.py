"""recognition/data/recordio.py against bytes written down here, by hand from the format, and against damage."""

import struct

import numpy as np
import pytest

from recognition.data.recordio import (
    MAGIC_BYTES,
    RecordReader,
    RecordWriter,
    pack_record,
    read_index,
    split_label,
    unpack_record,
    write_index,
)
from recognition.errors import DataError

VECTORS = [
    (b"ab\0\0" + MAGIC_BYTES + MAGIC_BYTES + b"z", "0a23d7ce04000020616200000a23d7ce000000400a23d7ce010000607a000000"),
    (b"", "0a23d7ce00000000"),
    (b"abcd", "0a23d7ce0400000061626364"),
    (b"abcde", "0a23d7ce050000006162636465000000"),
    (MAGIC_BYTES, "0a23d7ce000000200a23d7ce00000060"),
    (b"x" + MAGIC_BYTES, "0a23d7ce05000000780a23d7ce000000"),  # not at a multiple of 4: not split
    (b"abcd" + MAGIC_BYTES[:3], "0a23d7ce07000000616263640a23d700"),
]


def random_payloads(count: int) -> list[bytes]:
    """Payloads made of pieces in which the magic stands at all alignments, often several times."""
    generator = np.random.default_rng(7)
    pieces = [MAGIC_BYTES, MAGIC_BYTES[:2], b"\0", b"ab", b"cde", b"fghi", bytes(range(11))]
    return [b"".join(pieces[piece] for piece in generator.integers(0, len(pieces), size=generator.integers(0, 12)))
            for _ in range(count)]


def write(path, payloads):
    with RecordWriter(path) as writer:
        return [writer.write(payload) for payload in payloads]


@pytest.mark.parametrize(("payload", "expected"), VECTORS)
def test_bytes_are_the_formats(tmp_path, payload, expected):
    assert write(tmp_path / "a.rec", [payload]) == [0]
    assert (tmp_path / "a.rec").read_bytes().hex() == expected
    assert bytes(RecordReader(tmp_path / "a.rec").read(0)) == payload


def test_scan_and_read_give_back_what_was_written(tmp_path):
    payloads = random_payloads(500)
    offsets = write(tmp_path / "a.rec", payloads)
    reader = RecordReader(tmp_path / "a.rec")
    assert [(offset, bytes(payload)) for offset, payload in reader.scan()] == list(zip(offsets, payloads, strict=True))
    assert [bytes(reader.read(offset)) for offset in reversed(offsets)] == payloads[::-1]
    assert all(offset % 4 == 0 for offset in offsets)


def test_a_whole_record_is_read_without_a_copy(tmp_path):
    write(tmp_path / "a.rec", [b"abcdef"])
    reader = RecordReader(tmp_path / "a.rec")
    view = np.frombuffer(reader.read(0), np.uint8)
    assert np.shares_memory(view, reader.bytes)
    assert not view.flags.writeable


def test_an_empty_file_has_no_records(tmp_path):
    write(tmp_path / "a.rec", [])
    assert list(RecordReader(tmp_path / "a.rec").scan()) == []


def test_every_cut_inside_a_record_is_found(tmp_path):
    payloads = [b"abc", VECTORS[0][0], b"", b"tail"]
    offsets = write(tmp_path / "a.rec", payloads)
    data = (tmp_path / "a.rec").read_bytes()
    for size in range(len(data)):
        (tmp_path / "cut.rec").write_bytes(data[:size])
        if size in offsets:  # whole records: the index shows what is missing (test_dataset.py)
            assert len(list(RecordReader(tmp_path / "cut.rec").scan())) == offsets.index(size)
            continue
        record = sum(offset < size for offset in offsets) - 1
        with pytest.raises(DataError, match=rf"cut\.rec: record {record} @ offset {offsets[record]}: .*(ends|cut)"):
            list(RecordReader(tmp_path / "cut.rec").scan())


@pytest.mark.parametrize(("data", "reason"), [
    ("0b23d7ce00000000", "expected the magic 0xced7230a, found 0xced7230b"),
    ("0a23d7ce04000000", "12 bytes long, but the file of 8 bytes ends before"),
    ("0a23d7ceffffff1f", "536870920 bytes long"),
    ("0a23d7ce00000080", "cflag 4; expected 0 to 3"),
    ("0a23d7ce00000040", "begins with cflag 2; expected 0 or 1"),
    ("0a23d7ce00000060", "begins with cflag 3; expected 0 or 1"),
    ("0a23d7ce00000020", "ends before the record's last part"),
    ("0a23d7ce000000200a23d7ce00000040", "ends before the record's last part"),
    ("0a23d7ce000000200a23d7ce00000020", "a part with cflag 1; expected 2 or 3"),
    ("0a23d7ce000000200a23d7ce00000000", "a part with cflag 0; expected 2 or 3"),
    ("0a23d7ce0100002061000000" + "0a23d7ce00000060", "a part of 1 bytes goes on"),
    ("0a23d7ce0100000061000100", "padding 000100; expected zeros"),
    ("0a23d7ce" + "00000020" + "0a23d7ce" + "0100006061000001", "part @ offset 8: padding 000001"),
])
def test_damaged_framing_is_named(tmp_path, data, reason):
    (tmp_path / "a.rec").write_bytes(bytes.fromhex(data))
    with pytest.raises(DataError) as caught:
        list(RecordReader(tmp_path / "a.rec").scan())
    assert str(caught.value).startswith(f"{tmp_path / 'a.rec'}: record 0 @ offset 0: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize("offset", [-4, 2, 12, 16, 1 << 40])
def test_reading_where_no_record_can_begin(tmp_path, offset):
    write(tmp_path / "a.rec", [b"abcd"])
    with pytest.raises(DataError, match=f"record 9 @ offset {offset}: no record can begin here"):
        RecordReader(tmp_path / "a.rec").read(offset, record=9)


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"a\.rec: No such file"):
        RecordReader(tmp_path / "a.rec")
    with pytest.raises(DataError, match=r"a\.idx: No such file"):
        read_index(tmp_path / "a.idx")


def test_a_payload_too_long_for_its_length_field_is_refused(tmp_path):
    payload = np.zeros(1 << 29, np.uint8)  # pages never touched cost nothing
    with RecordWriter(tmp_path / "a.rec") as writer, pytest.raises(DataError, match="536870912 bytes"):
        writer.write(payload.data)
    assert (tmp_path / "a.rec").stat().st_size == 0


def test_index_keeps_order_and_values(tmp_path, monkeypatch):
    monkeypatch.setattr("recognition.data.recordio._INDEX_BLOCK", 64)  # lines cross the blocks
    keys = np.random.default_rng(0).permutation(100)
    offsets = np.arange(100) * 123456789012
    write_index(tmp_path / "a.idx", keys, offsets)
    assert (tmp_path / "a.idx").read_bytes().split(b"\n")[1] == b"%d\t123456789012" % keys[1]
    found = read_index(tmp_path / "a.idx")
    np.testing.assert_array_equal(found, [keys, offsets])
    assert found[0].dtype == found[1].dtype == np.int64


@pytest.mark.parametrize("text", [b"3\t40\n5\t0", b"3\t40\r\n5\t0\r\n"])
def test_index_line_ends(tmp_path, text):
    (tmp_path / "a.idx").write_bytes(text)
    np.testing.assert_array_equal(read_index(tmp_path / "a.idx"), [[3, 5], [40, 0]])


@pytest.mark.parametrize("line", [
    b"", b"1", b"1\t", b"\t1", b"1 2", b"1\t2\t3", b"-1\t2", b"1\t-2", b"1.0\t2", b"a\t2", b"1\t2 ", b"1\t1e3",
    b"1\t" + b"9" * 19, b"\x00\t1", "１\t2".encode(),
])
def test_malformed_index_lines_are_named(tmp_path, line):
    (tmp_path / "a.idx").write_bytes(b"0\t0\n" + line + b"\n7\t8\n")
    with pytest.raises(DataError) as caught:
        read_index(tmp_path / "a.idx")
    assert str(caught.value) == f"{tmp_path / 'a.idx'}: line 2: expected 'key<tab>offset', found {line[:60]!r}"


def test_image_record_bytes(tmp_path):
    assert pack_record(7, 3, b"img") == struct.pack("<IfQQ", 0, 7, 3, 0) + b"img"
    assert pack_record([7, 9], 3, b"img", id2=4) == struct.pack("<IfQQff", 2, 0, 3, 4, 7, 9) + b"img"
    header, image = unpack_record(pack_record([7, 9], 3, b"img", id2=4))
    assert (header.flag, header.labels.tolist(), header.id, header.id2, bytes(image)) == (2, [7, 9], 3, 4, b"img")
    header, image = unpack_record(pack_record(5, 1, b""))
    assert (header.flag, header.labels.tolist(), header.id, header.id2, bytes(image)) == (0, [5], 1, 0, b"")


@pytest.mark.parametrize(("payload", "reason"), [
    (b"\0" * 23, "a payload of 23 bytes; an image record's header takes 24"),
    (struct.pack("<IfQQ", 2, 0, 0, 0) + b"\0" * 7, "flag 2 announces 8 bytes of labels; the payload has 31"),
    (struct.pack("<IfQQ", 0xFFFFFFFF, 0, 0, 0), "flag 4294967295"),
])
def test_payloads_too_short(payload, reason):
    with pytest.raises(DataError, match=reason):
        unpack_record(payload)


def test_labels_that_float32_cannot_hold_are_refused():
    assert unpack_record(pack_record(1 << 24, 0, b""))[0].labels[0] == 1 << 24
    with pytest.raises(ValueError, match="16777217"):
        pack_record((1 << 24) + 1, 0, b"")
    high, low = split_label((1 << 24) * 3 + 5)
    assert (high, low) == (3, 5)
    assert unpack_record(pack_record((high, low), 0, b""))[0].labels.tolist() == [3, 5]
