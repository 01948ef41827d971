"""Lists of path and label: their forms, and that only a DataError with a line ever comes out of a bad one."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recognition.errors import DataError
from tools.records.sources.landmarks import COLUMNS, read_landmarks
from tools.records.sources.lists import open_list
from tools.records.sources.names import Names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lists")


def read(folder, name, text):
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text)
    return open_list(folder / name, folder, None)


def test_labels_are_kept_or_numbered(folder):
    found = read(folder, "a.lst", "0\t2\tc\n1\t0\ta\n2\t1\tb\n3\t0\tA\n")
    assert (list(found.names), found.identity.tolist(), found.identities) == (
        ["a", "A", "b", "c"], [0, 0, 1, 2], ["0", "1", "2"])
    found = read(folder, "a.csv", "path,label\nx,20\ny,3\nz,Ada\n")
    assert (list(found.names), found.identities) == (["y", "x", "z"], ["3", "20", "Ada"])
    assert found.fingerprint() != read(folder, "a.csv", "path,label\nx,20\ny,3\nw,Ada\n").fingerprint()


def test_landmarks_of_the_older_form(folder):
    points = [30.0, 70, 50, 35, 65, 51, 52, 71, 92, 93]  # five x, then five y
    line = "0\tx/a.jpg\t0\t1\t2\t3\t4\t" + "\t".join(map(str, points)) + "\n"
    found = read(folder, "a.lst", line + "1\tx/b.jpg\t0\n")
    assert found.landmarks[0].tolist() == [[30, 51], [70, 52], [50, 71], [35, 92], [65, 93]]
    assert np.isnan(found.landmarks[1]).all()
    with pytest.raises(DataError, match=r"line 1: a picture that is not aligned \(0\), without landmarks.*--detect"):
        read(folder, "a.lst", "0\tx/a.jpg\t0\n")
    with pytest.raises(DataError, match="line 1: landmarks that are not finite"):
        read(folder, "a.lst", line.replace("70", "nan"))


@pytest.mark.parametrize(("name", "text", "reason"), [
    ("a.lst", "", "lists no picture"),
    ("a.lst", "0 0 a.jpg\n", "line 1: expected 'index<tab>label<tab>path'"),
    ("a.lst", "x\ta.jpg\t0\n", "line 1: neither"),
    ("a.lst", "0\t0\ta\n1\t-1\ta\n", "line 2: label '-1'; expected a whole number"),
    ("a.lst", "0\t0\ta\n1\t1.5\ta\n", "line 2: label '1.5'; expected a whole number"),
    ("a.lst", "0\t0\ta\n1\tnan\ta\n", "line 2: label 'nan'"),
    ("a.lst", "0\t0\ta\n1\t1e300\ta\n", "line 2: label '1e300'"),
    ("a.lst", "0\t0\t../a\n", "line 1: the path '../a' leaves "),
    ("a.lst", "0\t0\t/etc/passwd\n", "line 1: the path '/etc/passwd' leaves "),
    ("a.lst", "0\t0\t.\n", "line 1: the path '.' leaves "),
    ("a.lst", "0\t0\t \n", "line 1: no path"),
    ("a.lst", "1\ta\t0\n1\tb\t0\t5\n", "line 2: expected 0 or 1, path, label"),
    ("a.csv", "a.jpg,0\n", "line 1: no column path, file"),
    ("a.csv", "path,path,label\na,b,0\n", "line 1: column path stands there twice"),
    ("a.csv", "path,label\na\n", "line 2: 1 fields; the header has 2"),
    ("a.csv", "path,label\na,\n", "line 2: no label"),
    ("a.csv", "path,label\na,-1\n", "line 2: label -1"),
    ("a.csv", "path,label\na,1.5\n", "line 2: label 1.5"),
    ("a.csv", 'path,label\n"a\tb",1\n', "line 2: the name"),
    ("a.csv", 'path,label\n"a,1\n' + "x" * 200_000, "field larger than"),
    ("a.parquet", "path,label\n", "not a Parquet file, or damaged"),
])
def test_faults_name_the_line(folder, name, text, reason):
    with pytest.raises(DataError) as caught:
        read(folder, name, text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parquet_of_other_columns(folder):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def table(columns):
        parquet.write_table(pyarrow.table(columns), folder / "a.parquet")
        return open_list(folder / "a.parquet", folder, None)

    assert table({"file": ["b", "a"], "identity": ["Ada", "Bob"], "x": [1, 2]}).identities == ["Ada", "Bob"]
    assert table({"path": ["b", "a"], "label": [1.0, 0.0]}).identities == ["0", "1"]
    for columns, reason in [
        ({"path": ["a", None], "label": [0, 1]}, "row 2: no path"),
        ({"path": ["a"], "label": [float("nan")]}, "row 1: no label"),
        ({"path": ["a"], "label": [0.5]}, "label 0.5"),
        ({"image": [{"bytes": b"x"}], "label": [0]}, "pictures inside a Parquet file are not read"),
        ({"path": ["a"], "label": [[0]]}, "expected text or numbers"),
        ({"x": ["a"], "label": [0]}, "no column path, file"),
    ]:
        with pytest.raises(DataError, match=reason):
            table(columns)


FIELD = st.one_of(st.sampled_from(["0", "1", "-1", "2.0", "nan", "a.jpg", "..", "/", "", " ", '"', "\0", "path",
                                   "label", "1e999", "٣", "\r", "\ud800", "﻿"]), st.text(max_size=6))
TEXT = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda rows, by, end: end.join(by.join(row) for row in rows).encode("utf-8", "surrogatepass"),
              st.lists(st.lists(FIELD, max_size=8), max_size=8), st.sampled_from(["\t", ",", ";"]),
              st.sampled_from(["\n", "\r\n", "\r"])),
    st.builds(lambda rows: b"path,label\n" + "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass"),
              st.lists(st.tuples(FIELD, FIELD), max_size=8)),
    st.builds(lambda rows: "\n".join("\t".join(("0", *row)) for row in rows).encode("utf-8", "surrogatepass"),
              st.lists(st.tuples(FIELD, FIELD), max_size=8)),
)


def fuzz(folder, name, data):
    try:
        found = read(folder, name, data)
    except DataError as error:
        fault = str(error)
    else:
        fault = ""
    if fault:
        assert fault.startswith(f"{folder / name}: ")
        return
    assert len(found.names) == len(found.identity) > 0
    assert (np.diff(found.identity) >= 0).all()
    assert set(found.identity.tolist()) == set(range(len(found.identities)))
    for path in found.names:
        assert (folder / path).resolve().is_relative_to(folder.resolve())


@settings(max_examples=300, deadline=None)
@example("a.lst", b"0\t0\ta\n")
@example("a.csv", b"")
@given(st.sampled_from(["a.lst", "a.csv", "a.tsv", "a.txt"]), TEXT)
def test_any_list_is_read_or_a_data_error(folder, name, data):
    fuzz(folder, name, data)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(st.sampled_from(["a.lst", "a.csv", "a.tsv", "a.txt"]), TEXT)
def test_ten_thousand_lists(folder, name, data):
    fuzz(folder, name, data)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.builds(
    lambda rows: (",".join(COLUMNS) + "\n" + "\n".join(",".join(row) for row in rows)).encode("utf-8", "surrogatepass"),
    st.lists(st.lists(FIELD, min_size=11, max_size=11), max_size=4))))
def test_any_landmarks_are_read_or_a_data_error(folder, data):
    (folder / "landmarks.csv").write_bytes(data)
    try:
        found = read_landmarks(folder / "landmarks.csv", Names(["a.jpg", "1"]))
    except DataError:
        return
    assert found.shape == (2, 5, 2)
