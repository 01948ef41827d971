"""tools/rec_builder.py: build, verify and inspect, on pictures made here and on the real ones."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognition.data.dataset import open_dataset
from recognition.data.image_file import decode_rgb
from recognition.data.recordio import FLOAT32_WHOLE, RecordWriter, pack_record, read_index, write_index
from recognition.data.shard_writer import ShardWriter
from recognition.errors import DataError, SettingsError
from tools import rec_builder

ROOT = Path(__file__).resolve().parents[2]


def picture(number, side=32):
    generator = np.random.default_rng(number)
    return cv2.resize(generator.integers(0, 256, (4, 4, 3), np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def source(tmp_path):
    """Three identities: 3, 2 and 2 pictures of 32×32, one of them PNG, one greyscale, and things to leave aside."""
    files = ["b/1.jpg", "b/2.JPG", "b/3.png", "a/x.jpeg", "a/y.jpg", "ça va/1.jpg", "ça va/2.jpg"]
    for number, file in enumerate(files):
        path = tmp_path / "source" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        image = picture(number)
        ok, encoded = cv2.imencode(path.suffix.lower(), image[..., 0] if file == "a/y.jpg" else image)
        assert ok
        path.write_bytes(encoded.tobytes())
    (tmp_path / "source" / "README.txt").write_text("about")
    (tmp_path / "source" / "a" / "Thumbs.db").write_text("x")
    (tmp_path / "source" / "a" / ".DS_Store").write_text("x")
    return tmp_path / "source"


def run(*arguments):
    return rec_builder.main([str(argument) for argument in arguments])


def facts(capsys, *arguments, status=0):
    capsys.readouterr()
    assert run(*arguments, "--json") == status
    return json.loads(capsys.readouterr().out)


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_build_writes_the_whole_set(source, tmp_path, capsys):
    out = tmp_path / "new" / "set"
    report = facts(capsys, "build", source, out)
    assert (report["images"], report["identities"], report["shards"], report["unreadable"]) == (7, 3, 1, [])
    assert report["ignored"] == ["README.txt", "a/Thumbs.db"]
    assert sorted(files_of(out)) == ["labels.tsv", "property", "train.crc", "train.idx", "train.lst", "train.rec"]
    assert (out / "property").read_text() == "3,32,32\n"
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
    assert sorted(files_of(tmp_path / "set")) == ["labels.tsv", "property", "train.crc", "train.idx", "train.lst", "train.rec"]


def test_resize_and_quality(source, tmp_path):
    run("build", source, tmp_path / "small", "--resize", 16)
    small = open_dataset(tmp_path / "small")
    assert (tmp_path / "small" / "property").read_text() == "3,16,16\n"
    assert all(decode_rgb(small.encoded(sample)).shape == (16, 16, 3) for sample in range(7))
    run("build", source, tmp_path / "same", "--resize", 32)  # nothing to resize: nothing is encoded anew
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
    assert f"unreadable: {source / 'b/1.jpg'}: the image (32×32 pixels by its header) is cut" in shown.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["path"] for entry in report["unreadable"]] == ["a/x.jpeg", "a/y.jpg", "b/1.jpg"]
    assert (report["images"], report["identities"], report["identities_without_readable_image"]) == (4, 2, 1)
    assert (tmp_path / "set" / "labels.tsv").read_text() == "0\tb\n1\tça va\n"  # labels without a gap
    assert len((tmp_path / "set" / "unreadable.tsv").read_text().splitlines()) == 3
    assert open_dataset(tmp_path / "set").labels.tolist() == [0, 0, 1, 1]


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
    with pytest.raises(DataError, match="none of its 7 images can be read"):
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
    cv2.imwrite(str(source / "b" / "9.png"), picture(9, side=40))
    with pytest.raises(DataError, match=r"b/9\.png: 40×40 pixels, but a/x\.jpeg has 32×32; .* --resize SIDE"):
        run("build", source, tmp_path / "set")
    assert list((tmp_path / "set").iterdir()) == []
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "train.rec").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"foreign: holds \.rec files that were not built here"):
        run("build", source, tmp_path / "foreign")
    assert (tmp_path / "foreign" / "train.rec").read_bytes() == b"precious"


@pytest.mark.parametrize("option", [
    ("--resize", "0"), ("--quality", "101"), ("--max-unreadable", "2"), ("--max-unreadable", "nan"), ("--shards", "x"),
    ("--threads", "-1"),
])
def test_options_out_of_range_end_with_status_2(source, tmp_path, option, capsys):
    with pytest.raises(SystemExit) as caught:
        run("build", source, tmp_path / "set", *option)
    assert caught.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_a_killed_build_leaves_nothing_that_opens(source, tmp_path):
    for number in range(3000):
        (source / "b" / f"more{number}.jpg").write_bytes((source / "b/1.jpg").read_bytes())
    out = tmp_path / "set"
    command = [sys.executable, "tools/rec_builder.py", "build", str(source), str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (out / ".building" / "train.rec").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in out.iterdir()] == [".building"]
    with pytest.raises(DataError):
        open_dataset(out)
    assert run("build", source, out) == 0
    assert open_dataset(out).num_images == 3007
    assert not (out / ".building").exists()


# verify


@pytest.fixture
def built(source, tmp_path):
    run("build", source, tmp_path / "set")
    return tmp_path / "set"


def reasons(capsys, folder, status=3):
    found = facts(capsys, "verify", folder, status=status)
    return [(Path(p["file"]).name, p["record"], p["offset"], p["reason"]) for p in found["problems"]]


def test_verify_lists_all_problems(built, capsys):
    keys, offsets = read_index(built / "train.idx")
    data = bytearray((built / "train.rec").read_bytes())
    ends = [*offsets[1:].tolist(), len(data)]
    data[offsets[1]] ^= 1  # the magic of record 1
    data[offsets[3] + 12 : offsets[3] + 16] = struct.pack("<f", math.nan)
    data[offsets[4] + 12 : offsets[4] + 16] = struct.pack("<f", 3)
    data[offsets[5] + 40 : ends[5]] = bytes(ends[5] - int(offsets[5]) - 40)  # what follows the image's first bytes
    (built / "train.rec").write_bytes(data)
    write_index(built / "train.idx", keys[keys != 6], offsets[keys != 6])
    assert run("verify", built) == 3
    printed = capsys.readouterr().out
    assert f"{built / 'train.rec'}: record 1 @ offset {offsets[1]}: no record begins here" in printed
    found = reasons(capsys, built)
    assert [(record, offset) for _, record, offset, _ in found] == [
        (1, offsets[1]), (3, offsets[3]), (4, offsets[4]), (5, offsets[5]), (None, offsets[6]), (1, offsets[1])]
    texts = [reason for *_, reason in found]
    assert "label nan; expected a whole number" in texts[1]
    assert "label 3; expected less than the 3 classes" in texts[2]
    assert "JPEG" in texts[3] or "decode" in texts[3]
    assert texts[4] == "train.idx lacks this record"
    assert texts[5] == "train.idx points here, and no whole record begins here"


def test_verify_finds_every_cut(built, capsys):
    data = (built / "train.rec").read_bytes()
    for size in [0, 1, 7, 39, 40, 41, 44, len(data) // 2, len(data) - 40, len(data) - 4, len(data) - 1]:
        (built / "train.rec").write_bytes(data[:size])
        assert run("verify", built) == 3, size
    capsys.readouterr()


def test_verify_names_truncated_pictures_and_wrong_sizes(tmp_path, capsys):
    jpeg = cv2.imencode(".jpg", picture(0))[1].tobytes()
    large = cv2.imencode(".jpg", picture(0, side=40))[1].tobytes()
    with ShardWriter(tmp_path / "train.rec") as writer:
        for image in (jpeg, jpeg[:-30], b"GIF89a", large):
            writer.add(0, image, "name")
    (tmp_path / "property").write_text("1,32,32\n")
    found = reasons(capsys, tmp_path)
    assert [record for _, record, _, _ in found] == [2, 3, 4]
    assert "is cut or damaged and does not decode" in found[0][3]
    assert "not a JPEG, PNG, BMP or WebP image" in found[1][3]
    assert found[2][3] == "40×40 pixels; property states 32×32"


def test_verify_names_payloads_that_are_no_image_records(tmp_path, capsys):
    payloads = [pack_record(0, 0, b""), b"short", pack_record(0, 2, cv2.imencode(".png", picture(0))[1].tobytes())]
    with RecordWriter(tmp_path / "train.rec") as writer:
        write_index(tmp_path / "train.idx", range(3), [writer.write(payload) for payload in payloads])
    assert [(record, reason) for _, record, _, reason in reasons(capsys, tmp_path)] == [
        (0, "no image and no label range: neither image nor header"),
        (1, "a payload of 5 bytes; an image record's header takes 24")]


@pytest.mark.parametrize(("old", "new", "reason"), [
    (b"2\t", b"1\t", "key 1 also at offset"),
    (b"\n3\t", b"\n\n3\t", "line 4: expected 'key<tab>offset', found b''"),
    (b"3\t", b"3 ", "line 4: expected 'key<tab>offset'"),
    (b"\n10\t", b"\n10\t99", "points outside the file"),
    (b"0\t0\n", b"", "lacks this record"),
])
def test_verify_names_faults_of_the_index(built, capsys, old, new, reason):
    index = (built / "train.idx").read_bytes()
    assert index.count(old) >= 1
    (built / "train.idx").write_bytes(index.replace(old, new, 1))
    assert any(reason in text for *_, text in reasons(capsys, built))


def test_verify_without_index_property_or_set(built, tmp_path, capsys):
    (built / "property").write_text("classes\n")
    assert any(file == "property" and "line 1" in text for file, *_, text in reasons(capsys, built))
    (built / "property").unlink()
    (built / "train.idx").unlink()
    assert ("train.idx", None, None, "no such file") in reasons(capsys, built)
    with pytest.raises(DataError, match="no such folder or file"):
        run("verify", tmp_path / "nowhere")


def test_hints_that_are_wrong_are_warnings(built, capsys):
    data = bytearray((built / "train.rec").read_bytes())
    data[:40] = data[:8] + pack_record((5, 6), 0, b"")
    offset = int(read_index(built / "train.idx")[1][8])
    data[offset : offset + 40] = data[offset : offset + 8] + pack_record((1, 4), 8, b"")
    (built / "train.rec").write_bytes(data)
    (built / "train.crc").unlink()
    (built / "property").write_text("3,32,32\n99\n")
    found = facts(capsys, "verify", built)
    assert found["problems"] == []
    texts = [warning["reason"] for warning in found["warnings"]]
    assert texts == ["the header states identity keys 5 to 6; they are 8 to 11",
                     "an identity record of keys 1 to 4, which are not the images of one label",
                     "states 99 images; the shards have 7"]


def test_identity_records_among_images(built, capsys):
    keys, offsets = read_index(built / "train.idx")
    keys[2], keys[8] = 8, 2  # an identity record under an image's key
    write_index(built / "train.idx", keys, offsets)
    assert any(record == 2 and "header or identity record" in text for _, record, _, text in reasons(capsys, built))


def test_large_labels_verify(tmp_path, capsys):
    jpeg = cv2.imencode(".jpg", picture(0))[1].tobytes()
    with ShardWriter(tmp_path / "train.rec", label_base=FLOAT32_WHOLE) as writer:
        for label in (0, FLOAT32_WHOLE + 1, FLOAT32_WHOLE + 1):
            writer.add(label, jpeg, "name")
    (tmp_path / "property").write_text(f"{FLOAT32_WHOLE + 2},32,32\nlabel_base={FLOAT32_WHOLE}\n")
    found = facts(capsys, "verify", tmp_path)
    assert (found["problems"], found["warnings"]) == ([], [])
    (tmp_path / "property").write_text(f"{FLOAT32_WHOLE + 1},32,32\nlabel_base={FLOAT32_WHOLE}\n")
    assert [record for _, record, _, _ in reasons(capsys, tmp_path)] == [2, 3]


# inspect, and the commands as they are typed


def test_inspect(built, tmp_path, capsys):
    found = facts(capsys, "inspect", built, "--sheet", tmp_path / "sheet.png")
    assert (found["images"], found["classes"], found["identities_with_images"]) == (7, 3, 3)
    assert found["images_per_identity"] == {"min": 2, "median": 2.0, "max": 3}
    assert found["sizes"] == {"32×32": 7}
    assert found["shards"][0]["header"] == {"identity_keys": [8, 11]}
    assert found["property"] == {"num_classes": 3, "height": 32, "width": 32}
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (3 * 112, 13 * 112, 3)
    assert run("inspect", built) == 0
    assert "images per identity (min, median, max) | 2, 2, 3" in capsys.readouterr().out
    with pytest.raises(DataError, match="could not be written"):
        run("inspect", built, "--sheet", tmp_path / "no such folder" / "sheet.png")


def test_the_third_party_sample(real_data, capsys):
    folder = real_data / "third_party" / "mxnet_rec_sample"
    found = facts(capsys, "verify", folder)
    assert (found["records"], found["images"], found["problems"], found["warnings"]) == (8, 8, [], [])
    found = facts(capsys, "inspect", folder)
    assert (found["images"], found["classes"], found["sizes"]) == (8, 2, {"112×112": 8})
    assert found["shards"][0]["header"] is None
    assert found["property"] == {}


def test_the_real_faces(real_data, tmp_path, capsys):
    report = facts(capsys, "build", real_data / "lfw" / "train", tmp_path / "lfw", "--shards", 3)
    assert (report["images"], report["identities"], report["height"], report["width"]) == (3488, 295, 112, 112)
    found = facts(capsys, "verify", tmp_path / "lfw")
    assert (found["images"], found["problems"], found["warnings"]) == (3488, [], [])
    found = facts(capsys, "inspect", tmp_path / "lfw")
    assert found["images_per_identity"]["min"] >= 5
    assert found["images_per_identity"]["max"] <= 40


def test_the_commands_and_their_statuses(source, tmp_path):
    def command(*arguments):
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
                              env={**os.environ, "DEBUG": ""})
        return done.returncode, done.stdout, done.stderr

    out = str(tmp_path / "a set")
    status, printed, errors = command("tools/rec_builder.py", "build", str(source), out)
    assert (status, errors) == (0, "")
    assert "identities" in printed
    assert command("-m", "tools.rec_builder", "verify", out)[0] == 0
    rec = Path(out) / "train.rec"
    rec.write_bytes(rec.read_bytes()[:-8])
    status, printed, errors = command("tools/rec_builder.py", "verify", out)
    assert (status, errors) == (3, "")
    assert f"{rec}: record 10 @ offset " in printed
    status, printed, errors = command("tools/rec_builder.py", "inspect", out)
    assert (status, printed) == (3, "")
    assert errors.startswith(f"error: {rec}: record 10 @ offset ")
    assert errors.count("\n") == 1
