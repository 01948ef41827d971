"""LMDBs: pickles are parsed and never run, and layouts that are not read say so."""

import collections
import os
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recognition.errors import DataError
from tools.records.sources import open_source
from tools.records.sources.lmdb_store import picture_and_label

lmdb = pytest.importorskip("lmdb")
JPEG = cv2.imencode(".jpg", np.zeros((112, 112, 3), np.uint8))[1].tobytes()


def write(path, entries):
    with lmdb.open(str(path), map_size=1 << 22) as database, database.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)
    return path


@given(st.binary(max_size=70_000), st.integers(0, 2**31 - 1), st.sampled_from([3, 4, 5]))
def test_a_pickled_picture_and_label(picture, label, protocol):
    value = pickle.dumps((picture, label), protocol)
    start, stop, found = picture_and_label(value)
    assert (value[start:stop], found) == (picture, label)


def test_python_2_wrote_strings():
    value = b"\x80\x02T\x04\x00\x00\x00\xff\xd8\xff\xe0q\x01K\x07\x86q\x02."
    start, stop, label = picture_and_label(value)
    assert (value[start:stop], label) == (b"\xff\xd8\xff\xe0", 7)


class _Runs:
    def __reduce__(self):
        return os.mkdir, ("this must not exist",)


@pytest.mark.parametrize("value", [
    pickle.dumps(_Runs()), pickle.dumps((JPEG, _Runs())), pickle.dumps((_Runs(), 1)), pickle.dumps((JPEG, -1)),
    pickle.dumps((JPEG, 1, 2)), pickle.dumps((JPEG,)), pickle.dumps(JPEG), pickle.dumps((JPEG, "1")),
    pickle.dumps((1, JPEG)), pickle.dumps((np.frombuffer(JPEG, np.uint8), 1)), pickle.dumps((JPEG, 1), 2),
    pickle.dumps((JPEG, np.int64(1))), pickle.dumps((JPEG, 2**40)), pickle.dumps((JPEG, 1))[:300], b"\x80", b"",
    pickle.dumps(collections.OrderedDict(a=1)), b"\x80\x04B\xff\xff\xff\xff" + JPEG, b"(" * 10**6,
])
def test_other_pickles_are_refused_and_not_run(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a pickle"):
        picture_and_label(value)
    assert list(tmp_path.iterdir()) == []


@given(st.binary(max_size=60))
def test_any_bytes_are_a_pair_or_a_value_error(value):
    try:
        start, stop, label = picture_and_label(b"\x80" + value)
    except ValueError:
        return
    assert 0 <= start <= stop <= len(value) + 1
    assert label >= 0


@pytest.mark.parametrize(("entries", "reason"), [
    ({}, "without pictures"),
    ({b"__len__": pickle.dumps(0)}, "without pictures"),
    ({b"0001": JPEG}, "has no folder, so no label; give a list"),
    ({b"0001": b"\x08\x03\x10p\x18p\"\x80"}, "Caffe's Datum"),
    ({b"0": pickle.dumps((JPEG, 1)), b"1": pickle.dumps(_Runs())}, "key b'1': a pickle with opcode"),
    ({b"image-1": JPEG}, "has no label-1"),
    ({b"label-1": b"0"}, "without pictures"),
])
def test_what_is_not_read_says_so(tmp_path, entries, reason):
    with pytest.raises(DataError) as caught:
        open_source(write(tmp_path / "a", entries), None, tmp_path)
    assert reason in str(caught.value)


def test_a_database_that_is_cut_or_none(tmp_path):
    write(tmp_path / "a", {b"x/%d.jpg" % number: JPEG * 3 for number in range(50)})
    data = (tmp_path / "a" / "data.mdb").read_bytes()
    used = len(data.rstrip(b"\0"))
    for size in (0, 10, 5000, 8192, used // 2, used - 4096):
        (tmp_path / "a" / "data.mdb").write_bytes(data[:size])
        with pytest.raises(DataError, match=r"cut|not an LMDB|without pictures"):
            open_source(tmp_path / "a", None, tmp_path)
    (tmp_path / "a" / "data.mdb").write_bytes(os.urandom(20_000))
    with pytest.raises(DataError, match="not an LMDB"):
        open_source(tmp_path / "a", None, tmp_path)
