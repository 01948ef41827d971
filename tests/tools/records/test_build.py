"""The verb build: from folders of pictures to sets, on pictures made here and on the real ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognition.data.dataset import open_dataset
from recognition.data.image_file import decode_rgb
from recognition.data.recordio import FLOAT32_WHOLE
from recognition.data.sample_map import MAP_NAME
from recognition.errors import DataError, SettingsError
from tests.tools.rec_runs import facts, picture, run, write_source
from tools.records import workers
from tools.records.set_writer import SetWriter, ShardSettings

ROOT = Path(__file__).resolve().parents[3]

SET_FILES = ["labels.tsv", "property", "train.crc", "train.idx", "train.lst", "train.rec"]


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source", 112)


def files_of(folder):
    """What a build writes, less the map of its samples, which holds the files' times."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != MAP_NAME)
    return {path.name: path.read_bytes() for path in files}


def test_build_writes_the_whole_set(source, tmp_path, capsys):
    out = tmp_path / "new" / "set"
    report = facts(capsys, "build", source, out)
    assert (report["images"], report["identities"], report["shards"], report["unreadable"]) == (7, 3, 1, [])
    assert report["ignored"] == ["README.txt", "a/Thumbs.db"]
    assert sorted(files_of(out)) == ["labels.tsv", "property", "train.crc", "train.idx", "train.lst", "train.rec"]
    assert (out / "property").read_text() == "3,112,112\n"
    assert (out / "labels.tsv").read_text() == "0\ta\n1\tb\n2\tça va\n"
    paths = ["a/x.jpeg", "a/y.jpg", "b/1.jpg", "b/2.JPG", "b/3.png", "ça va/1.jpg", "ça va/2.jpg"]
    labels = [0, 0, 1, 1, 1, 2, 2]
    listed = [line.split("\t") for line in (out / "train.lst").read_text().splitlines()]
    assert listed == [[str(key), str(label), path] for key, label, path in zip(range(1, 8), labels, paths, strict=True)]
    dataset = open_dataset(out)
    assert dataset.labels.tolist() == labels
    for sample, path in enumerate(paths):
        encoded = bytes(dataset.encoded(sample))
        if path.endswith(".png"):
            exact = decode_rgb((source / path).read_bytes()).astype(int)
            assert encoded[:3] == b"\xff\xd8\xff"
            assert np.abs(decode_rgb(encoded) - exact).mean() < 6
        else:
            assert encoded == (source / path).read_bytes()
    assert facts(capsys, "verify", out)["problems"] == []


def test_the_same_source_gives_the_same_bytes(source, tmp_path):
    run("build", source, tmp_path / "one", "--threads", 1, "--shards", 2)
    run("build", source, tmp_path / "four", "--threads", 4, "--shards", 2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "four")
    run("build", source, tmp_path / "one", "--shards", 2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "four")


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_shards_hold_the_same_samples(source, tmp_path, capsys, shards):
    run("build", source, tmp_path / "one")
    run("build", source, tmp_path / "many", "--shards", shards)
    one, many = open_dataset(tmp_path / "one"), open_dataset(tmp_path / "many")
    assert [path.name for path in many.paths] == [f"train_{number:02d}.rec" for number in range(shards)]
    assert many.labels.tolist() == one.labels.tolist()
    assert many.num_classes == 3
    assert all(bytes(one.encoded(sample)) == bytes(many.encoded(sample)) for sample in range(7))
    found = facts(capsys, "verify", tmp_path / "many")
    assert (found["problems"], found["warnings"], found["images"]) == ([], [], 7)
    sizes = [len((tmp_path / "many" / f"train_{number:02d}.lst").read_text().splitlines()) for number in range(shards)]
    assert max(sizes) - min(sizes) <= 1


def test_a_new_build_replaces_all_of_the_old_one(source, tmp_path):
    run("build", source, tmp_path / "set", "--shards", 3)
    run("build", source, tmp_path / "set")
    assert sorted(files_of(tmp_path / "set")) == SET_FILES


def test_resize_and_quality(source, tmp_path):
    run("build", source, tmp_path / "small", "--resize", 16)
    small = open_dataset(tmp_path / "small")
    assert (tmp_path / "small" / "property").read_text() == "3,16,16\n"
    assert all(decode_rgb(small.encoded(sample)).shape == (16, 16, 3) for sample in range(7))
    run("build", source, tmp_path / "same", "--resize", 112)  # nothing to resize: nothing is encoded anew
    run("build", source, tmp_path / "plain")
    assert files_of(tmp_path / "same") == files_of(tmp_path / "plain")
    run("build", source, tmp_path / "coarse", "--quality", 10)
    lengths = [sum(len(open_dataset(tmp_path / name).encoded(s)) for s in range(7)) for name in ("coarse", "plain")]
    assert lengths[0] < 0.8 * lengths[1]


def test_unreadable_images_are_named_counted_and_left_out(source, tmp_path, capsys):
    data = (source / "b/1.jpg").read_bytes()
    (source / "b/1.jpg").write_bytes(data[: len(data) // 2])
    for file in ("a/x.jpeg", "a/y.jpg"):
        (source / file).write_text("no picture")
    assert run("build", source, tmp_path / "set", "--json", tmp_path / "report.json") == 0
    shown = capsys.readouterr()
    assert "left out: b/1.jpg: the image (112×112 pixels by its header) is cut" in shown.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["path"] for entry in report["unreadable"]] == ["a/x.jpeg", "a/y.jpg", "b/1.jpg"]
    assert (report["images"], report["identities"], report["identities_without_readable_image"]) == (4, 2, 1)
    assert (tmp_path / "set" / "labels.tsv").read_text() == "0\tb\n1\tça va\n"  # labels without a gap
    assert len((tmp_path / "set" / "unreadable.tsv").read_text().splitlines()) == 3
    assert open_dataset(tmp_path / "set").labels.tolist() == [0, 0, 1, 1]


def test_building_again_leaves_what_no_build_wrote(source, tmp_path):
    run("build", source, tmp_path / "set", "--shards", 2)
    mine = ["train_mybackup.rec", "train_mybackup.idx", "train_00.notes.txt", "train_00.npy", "trainer.rec"]
    for name in mine:
        (tmp_path / "set" / name).write_text("precious")
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    with pytest.raises(DataError, match=r"holds train_mybackup\.rec, which no build wrote"):
        run("build", source, tmp_path / "set", "--shards", 3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before
    run("build", source, tmp_path / "set")
    assert {path.name for path in (tmp_path / "set").iterdir()} == {*SET_FILES, MAP_NAME, *mine}


def test_too_many_unreadable_images_leave_the_old_set(source, tmp_path):
    run("build", source, tmp_path / "set")
    before = files_of(tmp_path / "set")
    (source / "b/1.jpg").write_text("no picture")
    with pytest.raises(DataError, match="1 of 7 images unreadable so far, more than the 0 allowed"):
        run("build", source, tmp_path / "set", "--max-unreadable", 0.1)
    assert files_of(tmp_path / "set") == before
    assert run("build", source, tmp_path / "set", "--max-unreadable", 0.15) == 0
    for path in source.glob("*/*"):
        path.write_text("no picture")
    with pytest.raises(DataError, match=r"none of its 7 images can be used; a/x\.jpeg: not a JPEG"):
        run("build", source, tmp_path / "other")


def test_sources_that_are_refused(source, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        run("build", tmp_path / "nowhere", tmp_path / "set")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no folders in it"):
        run("build", tmp_path / "empty", tmp_path / "set")
    (source / "nobody").mkdir()
    with pytest.raises(DataError, match=r"1 identity folder\(s\) without images \(nobody\)"):
        run("build", source, tmp_path / "set")
    (source / "nobody").rmdir()
    with pytest.raises(SettingsError, match="--shards 8; expected 1 to 7"):
        run("build", source, tmp_path / "set", "--shards", 8)
    with pytest.raises(SettingsError, match="inside the source"):
        run("build", source, source / "set")
    assert not (tmp_path / "set").exists()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_bytes(b"precious")
    with pytest.raises(DataError, match="foreign: holds files, and no set that was built here"):
        run("build", source, tmp_path / "foreign")
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match=r"thesis\.tex: not a folder"):
        run("build", source, tmp_path / "foreign" / "thesis.tex")
    with pytest.raises(SettingsError, match=r"--images .* goes with a list"):
        run("build", source, tmp_path / "set", "--images", source)
    run("build", source, tmp_path / "set")
    with pytest.raises(DataError, match="a set already"):
        run("build", tmp_path / "set", tmp_path / "other")


@pytest.mark.parametrize("option", [
    ("--resize", "0"), ("--quality", "101"), ("--max-unreadable", "2"), ("--max-unreadable", "nan"), ("--shards", "x"),
    ("--threads", "-1"), ("--shard-bytes", "10"), ("--min-images", "0"), ("--size", "0"),
])
def test_options_out_of_range_end_with_status_2(source, tmp_path, option, capsys):
    with pytest.raises(SystemExit) as caught:
        run("build", source, tmp_path / "set", *option)
    assert caught.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_pictures_of_another_size_are_left_out_or_stop_the_build(source, tmp_path, capsys):
    cv2.imwrite(str(source / "b" / "9.png"), picture(9, 112)[:40, :40])
    report = facts(capsys, "build", source, tmp_path / "set")
    assert report["unreadable"] == [{"path": "b/9.png", "reason": "40×40 pixels; expected 112×112"}]
    assert report["images"] == 7
    (source / "b" / "9.png").unlink()
    with pytest.raises(DataError, match=r"a/x\.jpeg: 112×112 pixels; expected 32×32 \(--detect MODEL or --align"):
        run("build", source, tmp_path / "other", "--size", 32)
    assert facts(capsys, "build", source, tmp_path / "other", "--resize", 32)["encoded"] == {"jpeg": 6, "png": 1}
    for option in (("--resize", 112), ("--size", 96)):
        with pytest.raises(SettingsError, match=option[0]):
            run("build", source, tmp_path / "another", "--detect", "model.onnx", *option)
    with pytest.raises(SettingsError, match=r"model\.onnx: no such file"):
        run("build", source, tmp_path / "another", "--detect", "model.onnx")
    assert not (tmp_path / "another").exists()


def test_keep_encoding_loses_nothing(source, tmp_path, capsys):
    for number, suffix in enumerate((".webp", ".bmp")):
        cv2.imwrite(str(source / "b" / f"7{suffix}"), picture(20 + number, 112))
    report = facts(capsys, "build", source, tmp_path / "anew")
    assert (report["copied"], report["encoded"]) == (6, {"bmp": 1, "png": 1, "webp": 1})
    report = facts(capsys, "build", source, tmp_path / "set", "--keep-encoding")
    assert (report["copied"], report["encoded"]) == (9, {})
    dataset = open_dataset(tmp_path / "set")
    names = [line.split("\t")[2] for line in (tmp_path / "set" / "train.lst").read_text().splitlines()]
    assert all(bytes(dataset.encoded(row)) == (source / name).read_bytes() for row, name in enumerate(names))
    assert facts(capsys, "verify", tmp_path / "set")["problems"] == []


def test_a_bomb_and_a_cmyk_jpeg(source, tmp_path, capsys):
    data = bytearray((source / "b/3.png").read_bytes())
    data[16:24] = (30000).to_bytes(4, "big") * 2
    (source / "b/3.png").write_bytes(data)
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(picture(3, 112)).convert("CMYK").save(source / "b" / "cmyk.jpg")
    report = facts(capsys, "build", source, tmp_path / "set")
    assert [fault["path"] for fault in report["unreadable"]] == ["b/3.png"]
    assert "30000×30000 pixels" in report["unreadable"][0]["reason"]
    assert (report["copied"], report["encoded"]) == (7, {})


def test_natural_order_and_minimum(source, tmp_path, capsys):
    for number in (2, 10, 1):
        for name in ("a.jpg", "b.jpg", "c.jpg")[: number % 9]:
            (source / f"n_{number}").mkdir(exist_ok=True)
            (source / f"n_{number}" / name).write_bytes((source / "b/1.jpg").read_bytes())
    (source / "n_2" / "c.jpg").write_text("no picture")
    report = facts(capsys, "build", source, tmp_path / "set")
    names = [line.split("\t")[1] for line in (tmp_path / "set" / "labels.tsv").read_text().splitlines()]
    assert names == ["a", "b", "n_1", "n_2", "n_10", "ça va"]
    assert report["labels"] == "numbered, see labels.tsv"
    assert report["repeated_under_other_labels"]["images"] == 5  # b/1, n_1/a, n_2/a, n_2/b, n_10/a
    assert report["repeated_under_other_labels"]["groups"] == 1
    assert ["b/1.jpg", "n_1/a.jpg"] in report["repeated_under_other_labels"]["examples"]
    report = facts(capsys, "build", source, tmp_path / "set", "--min-images", 3)
    assert (tmp_path / "set" / "labels.tsv").read_text() == "0\tb\n"
    assert (report["identities_below_min_images"], report["images_below_min_images"]) == (1, 2)  # n_2: two are left
    assert open_dataset(tmp_path / "set").labels.tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="no identity has 4 images"):
        run("build", source, tmp_path / "set", "--min-images", 4)


def test_folders_that_are_numbers_keep_them_as_labels(tmp_path, capsys):
    for number in range(12):
        (tmp_path / "source" / str(number)).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "source" / str(number) / "x.jpg"), picture(number, 112))
    report = facts(capsys, "build", tmp_path / "source", tmp_path / "set")
    assert report["labels"] == "kept"
    assert (tmp_path / "set" / "labels.tsv").read_text().splitlines()[-1] == "11\t11"


def test_shards_of_so_many_bytes(source, tmp_path, capsys):
    for number in range(60):
        cv2.imwrite(str(source / "b" / f"{number:02d}.jpg"), picture(100 + number, 112))
    run("build", source, tmp_path / "one")
    report = facts(capsys, "build", source, tmp_path / "many", "--shard-bytes", "64K")
    sizes = [shard["bytes"] for shard in report["shard_files"]]
    assert len(sizes) == report["shards"] > 2
    assert max(sizes) <= 64 << 10
    assert min(sizes[:-1]) > 55_000
    assert sum(shard["images"] for shard in report["shard_files"]) == report["images"]
    one, many = open_dataset(tmp_path / "one"), open_dataset(tmp_path / "many")
    assert [path.name for path in many.paths][:2] == ["train_0000.rec", "train_0001.rec"]
    assert many.labels.tolist() == one.labels.tolist()
    assert all(bytes(one.encoded(row)) == bytes(many.encoded(row)) for row in range(len(one)))
    run("build", source, tmp_path / "many", "--shards", 2)
    assert sorted(path.name for path in (tmp_path / "many").glob("*.rec")) == ["train_00.rec", "train_01.rec"]
    assert not list((tmp_path / "many").glob("train_0000.*"))


def test_several_processes_give_the_same_bytes(source, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_IMAGES_FOR_A_PROCESS", 2)
    (source / "a/y.jpg").write_text("no picture")
    run("build", source, tmp_path / "three", "--workers", 3)
    monkeypatch.undo()
    run("build", source, tmp_path / "one", "--workers", 1)
    assert files_of(tmp_path / "three") == files_of(tmp_path / "one")


def test_more_identities_than_float32_holds(tmp_path):
    names = [""] * (FLOAT32_WHOLE + 1)
    writer = SetWriter(tmp_path, names, 1, ShardSettings())
    assert writer.label_base == FLOAT32_WHOLE
    writer.abandon()


def test_the_command_says_what_it_did(source, tmp_path):
    (source / "a/y.jpg").write_text("no picture")
    command = [sys.executable, "tools/rec_builder.py", "build", str(source), str(tmp_path / "set")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False,
                          env={**os.environ, "DEBUG": ""})
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "left out: a/y.jpg: not a JPEG" in done.stderr
    assert "5, 1 png" in done.stdout


def test_the_real_faces_in_two_processes(real_data, tmp_path, capsys):
    report = facts(capsys, "build", real_data / "lfw" / "train", tmp_path / "lfw", "--shards", 3, "--min-images", 6,
                   "--workers", 2)
    assert report["images"] == sum(shard["images"] for shard in report["shard_files"])
    counts = [len(list(folder.iterdir())) for folder in (real_data / "lfw" / "train").iterdir()]
    enough = [count for count in counts if count >= 6]
    assert (report["images"], report["identities"], report["copied"]) == (sum(enough), len(enough), sum(enough))
