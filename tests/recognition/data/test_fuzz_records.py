"""Damaged and hostile records, indices and files beside them: read rightly or refused as DataError, in flat memory.

1,000 cases by default, 10,000 marked slow. Cases begin with good files, so that damage lies behind the first checks.
"""

import resource
import struct
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recognition.data.checksums import read_checksums
from recognition.data.dataset import open_dataset, read_property
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
from recognition.data.sample_map import map_path
from recognition.data.shard_writer import ShardWriter
from recognition.errors import DataError

MEMORY = 64 << 20  # bytes that the process may grow by, over all cases; the files have less than a kilobyte

WORDS = [
    MAGIC_BYTES, b"\xff\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f", b"\0\0\0\x80",
    *(struct.pack("<I", cflag << 29 | length) for cflag in range(8) for length in (0, 23, 24, 28, 1 << 20, 2**29 - 1)),
    *(struct.pack("<f", label) for label in (float("nan"), float("inf"), -1.0, -0.0, 0.5, 2.0**24, 1e30, 3.0, 1e-45)),
    *(struct.pack("<I", flag) for flag in (1, 2, 3, 1 << 20, 1 << 30)),
]
TEXTS = [b"\t", b"\n", b"\r\n", b"0", b"-1", b"1e3", b"9" * 18, b"9" * 19, b"\xff", b" ", b"1.5", b"40", b"0\t0\n",
         b"\n\n", b",", b"label_base=1", b"label_base=16777216", "٣".encode(), b"\0", b"1_0", b"+1"]


def edits(values):
    """One to four changes: (what, where as a number to take modulo the length, how long, a value)."""
    kinds = st.sampled_from(["write", "insert", "delete", "cut", "flip", "repeat", "swap"])
    value = st.one_of(st.sampled_from(values), st.binary(min_size=1, max_size=8))
    return st.lists(st.tuples(kinds, st.integers(0, 1 << 20), st.integers(1, 64), value), min_size=1, max_size=4)


def edited(data, changes, step=1):
    """The data with changes made to it, at multiples of `step`."""
    data = bytearray(data)
    for kind, where, size, value in changes:
        at = where % (len(data) // step + 1) * step
        match kind:
            case "write":
                data[at : at + len(value)] = value
            case "insert":
                data[at:at] = value
            case "delete":
                del data[at : at + size]
            case "cut":
                del data[at:]
            case "flip" if data:
                data[where % len(data)] ^= 1 << size % 8
            case "repeat":
                data[at:at] = data[at : at + size]
            case "swap":
                data[at : at + 2 * size] = data[at + size : at + 2 * size] + data[at : at + size]
    return bytes(data)


def face_set(folder):
    with ShardWriter(folder / "train.rec") as shard:
        for label, image in [(0, b"a"), (0, b"bb"), (1, b"ccc"), (3, b"dddd"), (3, MAGIC_BYTES * 2), (4, b"f" * 9)]:
            shard.add(label, image, "name")
    (folder / "property").write_text("5,112,112\n6\n")


def plain_set(folder):
    """im2rec's layout: an index in another order, keys with gaps, two labels, a record in parts."""
    records = [([2.0, 0.5], b"aaaa"), (1, b"x" + MAGIC_BYTES * 3), (0, b"bb")]
    payloads = [pack_record(labels, 0, image) for labels, image in records]
    with RecordWriter(folder / "train.rec") as writer:
        offsets = [writer.write(payload) for payload in payloads]
    write_index(folder / "train.idx", [7, 3, 1 << 40], offsets)


def large_labels(folder):
    base = 1 << 24
    payloads = [pack_record(split_label(label), 0, b"image") for label in (3, base + 5, 3 * base - 1)]
    with RecordWriter(folder / "train.rec") as writer:
        write_index(folder / "train.idx", range(3), [writer.write(payload) for payload in payloads])
    (folder / "property").write_text(f"{3 * base},112,112\nlabel_base={base}\n")


@pytest.fixture
def good(tmp_path):
    """The files of three good sets, bytes by name."""
    sets = []
    for make in (face_set, plain_set, large_labels):
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(folder)
        assert open_dataset(folder).num_images
        sets.append({name: (folder / name).read_bytes() if (folder / name).exists() else b"" for name in (
            "train.rec", "train.idx", "property")})
    return sets


def peak():
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture
def flat():
    """Fails when the process grows during the test; on Linux beyond what it holds now, not what it ever held."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    before = peak()
    yield
    assert peak() - before < MEMORY


@contextmanager
def refusal(*parts):
    """Let a DataError pass whose one line has the parts; anything else fails the test."""
    outcome = SimpleNamespace(refused=False)
    try:
        yield outcome
    except DataError as error:
        text = str(error)
        assert "\n" not in text
        assert all(part in text for part in parts), text
        outcome.refused = True


def fuzz(count, **strategies):
    """Run a check on that many cases, the same ones each time."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    options = settings(
        max_examples=round(count), deadline=None, derandomize=True, database=None, suppress_health_check=quiet)

    def decorate(check):
        options(given(**strategies)(check))()

    return decorate


COUNTS = pytest.mark.parametrize("share", [0.1, pytest.param(1, marks=pytest.mark.slow)], ids=["1000", "10000"])


@COUNTS
def test_sets(good, tmp_path, flat, share):
    outcomes = Counter()

    @fuzz(2500 * share, which=st.integers(0, 2), rec=edits(WORDS), text=edits(TEXTS), files=st.integers(1, 7),
          aligned=st.booleans())
    def check(which, rec, text, files, aligned):
        for bit, (name, changes) in enumerate([("train.rec", rec), ("train.idx", text), ("property", text)]):
            step = 4 if aligned and name == "train.rec" else 1
            content = good[which][name]
            (tmp_path / name).write_bytes(edited(content, changes, step) if files >> bit & 1 else content)
        with refusal(str(tmp_path)) as outcome:
            dataset = open_dataset(tmp_path)
        outcomes[outcome.refused] += 1
        if outcome.refused:
            return
        for sample, label in enumerate(dataset.labels.tolist()):
            assert 0 <= label < dataset.num_classes
            path, _, offset = dataset.place(sample)
            header, image = unpack_record(RecordReader(path).read(offset))
            assert bytes(image) == bytes(dataset.encoded(sample)) != b""
            single, base = int(header.labels[0]), dataset.stated.label_base
            assert label == (single * base + int(header.labels[1]) if base and header.flag >= 2 else single)

    assert outcomes[True] > 100 * share
    assert outcomes[False] > 10 * share  # damage inside an image, or an index in another order, is none to a reader


@COUNTS
def test_records(good, tmp_path, flat, share):
    path = tmp_path / "some.rec"
    outcomes = Counter()

    @fuzz(3000 * share, which=st.integers(0, 2), changes=edits(WORDS), offset=st.integers(-8, 600))
    def check(which, changes, offset):
        data = edited(good[which]["train.rec"], changes)
        path.write_bytes(data)
        reader = RecordReader(path)
        with refusal(f"{path}: record ") as outcome:
            found = list(reader.scan())
            ends = [reader.parts(start)[-1].end for start, _ in found]
            assert [start for start, _ in found] + [len(data)] == [0, *ends]
            assert [bytes(reader.read(start)) for start, _ in found] == [bytes(payload) for _, payload in found]
        outcomes[outcome.refused] += 1
        with refusal(f"{path}: record ? @ offset {offset}: "):
            assert len(reader.read(offset)) < len(data)

    assert outcomes[True] > 50 * share
    assert outcomes[False] > 50 * share


@COUNTS
def test_indices(good, tmp_path, flat, share):
    path = tmp_path / "some.idx"

    @fuzz(2500 * share, which=st.integers(0, 2), changes=edits(TEXTS), raw=st.none() | st.binary(max_size=60))
    def check(which, changes, raw):
        data = edited(good[which]["train.idx"], changes) if raw is None else raw
        path.write_bytes(data)
        lines = data.replace(b"\r\n", b"\n").split(b"\n")
        pairs = [line.split(b"\t") for line in (lines if lines[-1] else lines[:-1])]
        right = all(len(pair) == 2 and all(text.isdigit() and len(text) <= 18 for text in pair) for pair in pairs)
        with refusal(f"{path}: line ") as outcome:
            keys, offsets = read_index(path)
        assert outcome.refused != right
        if right:
            assert list(zip(keys.tolist(), offsets.tolist(), strict=True)) == [tuple(map(int, pair)) for pair in pairs]


@COUNTS
def test_property_and_checksum_files(good, tmp_path, flat, share):
    path = tmp_path / "some"
    sums = (tmp_path / "face_set" / "train.crc").read_bytes()

    @fuzz(1500 * share, which=st.integers(0, 2), changes=edits(TEXTS), words=edits(WORDS))
    def check(which, changes, words):
        path.write_bytes(edited(good[which]["property"], changes))
        with refusal(f"{path}: line "):
            assert all(value is None or 0 <= value < 10**18 for value in vars(read_property(path)).values())
        data = edited(sums, words)
        path.write_bytes(data)
        with refusal(f"{path}: ") as outcome:
            read_checksums(path)
        assert outcome.refused or data[:8] + data[16:] == sums[:8] + sums[16:]  # the size is compared elsewhere


@COUNTS
def test_maps_of_samples(good, tmp_path, flat, share):
    """A damaged map is not believed: the samples are those of a set without one."""
    folder = tmp_path / "plain_set"
    wanted = [(label, bytes(open_dataset(folder).encoded(at))) for at, label in enumerate(open_dataset(folder).labels)]
    open_dataset(folder, sidecar="write")
    written = map_path(folder).read_bytes()
    words = [*WORDS, *TEXTS, b"null", b"[]", b"{}", b"1e999", b"-1", b'"', b"\x00" * 8]

    @fuzz(500 * share, changes=edits(words))
    def check(changes):
        map_path(folder).write_bytes(edited(written, changes))
        dataset = open_dataset(folder)
        assert [(label, bytes(dataset.encoded(at))) for at, label in enumerate(dataset.labels)] == wanted


def test_edits_edit():
    """The changes above do change, so that the fuzzing is of damaged files."""
    data = bytes(range(64))
    for kind in ("write", "insert", "delete", "cut", "flip", "repeat", "swap"):
        assert edited(data, [(kind, 8, 4, b"xyz")]) != data
    assert edited(data, [("insert", 3, 4, b"xyz")], step=4)[12:15] == b"xyz"
