"""All kinds of sources become the same set; names and natural order."""

import io
import pickle
import tarfile
import zipfile

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recognition.data.sample_map import MAP_NAME
from recognition.errors import DataError
from tools import rec_builder
from tools.records.sources.names import Names, first_repeated, rows_of
from tools.records.sources.source import natural

FILES = ["0/a.jpg", "0/b.jpg", "1/a.jpg", "2/a.jpg", "2/b.jpg", "2/c.png", "10/a.jpg"]


def encoded(number, suffix=".jpg"):
    generator = np.random.default_rng(number)
    image = cv2.resize(generator.integers(0, 256, (4, 4, 3), np.uint8), (112, 112), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(FILES):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number, path.suffix))
    return tmp_path / "pictures"


def built(source, out, *options):
    assert rec_builder.main(["build", str(source), str(out), *map(str, options), "--json", str(out) + ".json"]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != MAP_NAME}


def write_zip(path, folder, prefix="", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{prefix}notes.txt", "about")
        for name in reversed(FILES):
            archive.write(folder / name, prefix + name)


def write_tar(path, folder, mode, prefix=""):
    with tarfile.open(path, mode) as archive:
        for name in sorted(FILES, key=lambda name: name[-5]):
            archive.add(folder / name, prefix + name)


def test_archives_give_the_set_of_their_folder(folder, tmp_path):
    wanted = built(folder, tmp_path / "folder")
    assert wanted["labels.tsv"] == b"0\t0\n1\t1\n2\t2\n3\t10\n"
    write_zip(tmp_path / "a.zip", folder)
    write_zip(tmp_path / "b.zip", folder, "some/where/", zipfile.ZIP_STORED)
    write_tar(tmp_path / "a.tar", folder, "w")
    write_tar(tmp_path / "b.tar.gz", folder, "w:gz", "./faces/")
    write_tar(tmp_path / "c.tgz", folder, "w:gz")
    write_tar(tmp_path / "d.tar.xz", folder, "w:xz")
    write_tar(tmp_path / "e.tar.bz2", folder, "w:bz2")
    for name in ("a.zip", "b.zip", "a.tar", "b.tar.gz", "c.tgz", "d.tar.xz", "e.tar.bz2"):
        assert built(tmp_path / name, tmp_path / f"from {name}") == wanted, name


def test_lists_give_the_set_of_their_folder(folder, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    wanted = built(folder, tmp_path / "folder")
    order = [3, 0, 1, 6, 2, 4, 5]
    labels = [FILES[row].split("/")[0] for row in order]
    names = [FILES[row] for row in order]
    both = list(zip(names, labels, strict=True))
    texts = {
        "im2rec.lst": "".join(f"{n}\t{label}.000000\t{name}\n" for n, (name, label) in enumerate(both)),
        "several.lst": "".join(f"{n}\t{label}\t0.5\t7\t{name}\r\n" for n, (name, label) in enumerate(both)),
        "older.lst": "".join(f"1\t{name}\t{label}\n" for name, label in both),
        "plain.csv": "path,label\n" + "".join(f"{name},{label}\n" for name, label in both),
        "other.csv": "﻿Label;x;FileName\n" + "".join(f'{label};"1;2";"{name}"\n' for name, label in both),
        "tabs.tsv": "identity\tfile\n\n" + "".join(f"{label}\t./{name}\n" for name, label in both),
        "whole.csv": "image,class\n" + "".join(f"{folder / name},{label}.0\n" for name, label in both),
    }
    for name, text in texts.items():
        (folder.parent / name).write_text(text)
        assert built(folder.parent / name, tmp_path / f"from {name}", "--images", folder) == wanted, name
    (folder / "inside.csv").write_text(texts["plain.csv"])
    assert built(folder / "inside.csv", tmp_path / "inside") == wanted
    table = pyarrow.table({"path": names, "label": [int(label) for label in labels]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert built(tmp_path / "a.parquet", tmp_path / "from parquet", "--images", folder) == wanted
    write_zip(tmp_path / "a.zip", folder)
    write_tar(tmp_path / "a.tgz", folder, "w:gz")
    for archive in ("a.zip", "a.tgz"):
        assert built(tmp_path / "plain.csv", tmp_path / f"by {archive}", "--images", tmp_path / archive) == wanted


def test_databases_give_the_set_of_their_folder(folder, tmp_path):
    lmdb = pytest.importorskip("lmdb")
    wanted = built(folder, tmp_path / "folder")

    def write(name, entries, **options):
        with lmdb.open(str(tmp_path / name), map_size=1 << 24, **options) as database:
            with database.begin(write=True) as transaction:
                for key, value in entries.items():
                    transaction.put(key.encode(), value)

    pictures = {name: (folder / name).read_bytes() for name in FILES}
    write("paths.lmdb", {f"faces/{name}": data for name, data in pictures.items()})
    write("one_file.lmdb", pictures, subdir=False)
    for protocol in (2, 3, 4, 5):
        entries = {str(row): pickle.dumps((data, int(name.split("/")[0])), protocol)
                   for row, (name, data) in enumerate(pictures.items())}
        about = {"__keys__": pickle.dumps(list(entries)), "__len__": pickle.dumps(len(entries))}
        if protocol > 2:  # Python 3 writes bytes as a call in protocol 2
            write(f"pickled{protocol}", {**entries, **about})
    numbered = {f"image-{row:09d}": data for row, data in enumerate(pictures.values())}
    told = {f"label-{row:09d}": name.split("/")[0].encode() for row, name in enumerate(pictures)}
    write("numbered", {**numbered, **told, "num-samples": b"7"})
    for name in ("paths.lmdb", "one_file.lmdb", "pickled3", "pickled4", "pickled5", "numbered"):
        found = built(tmp_path / name, tmp_path / f"from {name}")
        assert {file: data for file, data in found.items() if file != "train.lst"} == {
            file: data for file, data in wanted.items() if file != "train.lst"}, name
    keys = list(numbered)
    lines = [f"{key},{name.split('/')[0]}" for key, name in zip(keys, FILES, strict=True)]
    (tmp_path / "keys.csv").write_text("path,label\n" + "\n".join(lines))
    found = built(tmp_path / "keys.csv", tmp_path / "by key", "--images", tmp_path / "numbered")
    assert found["train.rec"] == wanted["train.rec"]


def test_members_that_a_list_names_and_the_archive_lacks(folder, tmp_path, capsys):
    write_zip(tmp_path / "a.zip", folder)
    (tmp_path / "a.csv").write_text("path,label\n0/a.jpg,0\n0/zzz.jpg,0\n")
    built(tmp_path / "a.csv", tmp_path / "set", "--images", tmp_path / "a.zip")
    assert "left out: 0/zzz.jpg: no such member" in capsys.readouterr().err


def test_what_is_no_source(folder, tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"a\.gif: expected a folder, \.zip, \.tar"):
        built(tmp_path / "a.gif", tmp_path / "set")
    (tmp_path / "a.csv").write_text("path,label\n0/a.jpg,0\n")
    with pytest.raises(DataError, match=r"nowhere: no such folder or archive; --images"):
        built(tmp_path / "a.csv", tmp_path / "set", "--images", tmp_path / "nowhere")
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        archive.writestr("a.jpg", encoded(0))
    with pytest.raises(DataError, match="no pictures IDENTITY/FILE in it"):
        built(tmp_path / "flat.zip", tmp_path / "set")
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for _ in range(2):
            member = tarfile.TarInfo("x/a.jpg")
            archive.addfile(member, io.BytesIO())
    with pytest.raises(DataError, match=r"member 'x/a\.jpg' stands there twice"):
        built(tmp_path / "twice.tar", tmp_path / "set")
    assert not (tmp_path / "set").exists()


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0"), max_size=20)


@given(st.lists(TEXT, max_size=20))
def test_names_are_a_list_of_strings(texts):
    names = Names(texts)
    assert list(names) == texts
    assert len(names) == len(texts)
    order = np.arange(len(texts))[::-1]
    assert list(names.take(order)) == texts[::-1]
    rows = rows_of(names, names.take(order))
    assert [texts[::-1][row] for row in rows] == texts
    assert (first_repeated(names) is not None) == (len(set(texts)) < len(texts))
    assert rows_of(Names(["\x01 nowhere"]), names).tolist() == [texts.index("\x01 nowhere") if "\x01 nowhere" in texts
                                                               else -1]


def test_names_of_any_bytes():
    odd = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert Names([odd])[0] == odd
    with pytest.raises(DataError, match="tab, line end or zero byte"):
        Names(["a\tb"])
    with pytest.raises(IndexError):
        Names([odd])[1]


def test_natural_order():
    names = ["n_10", "n_2", "n_1", "2", "10", "a", "02"]
    assert sorted(names, key=natural) == ["02", "2", "10", "a", "n_1", "n_2", "n_10"]
