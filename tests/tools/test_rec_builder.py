"""tools/rec_builder.py: build, verify and inspect, on pictures made here and on the real ones."""

import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from recognition.data.recordio import FLOAT32_WHOLE, RecordWriter, pack_record, read_index, write_index
from recognition.data.shard_writer import ShardWriter
from recognition.errors import DataError
from tests.tools.rec_runs import facts, picture, run, write_source

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source", 32)


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# verify


@pytest.fixture
def built(source, tmp_path):
    run("build", source, tmp_path / "set", "--size", 32)
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


def test_of_many_entries_outside_the_file_one_is_told(tmp_path, capsys):
    with ShardWriter(tmp_path / "train.rec") as writer:
        for number in range(30):
            writer.add(0, cv2.imencode(".jpg", picture(number, 32))[1].tobytes(), "name")
    (tmp_path / "property").write_text("1,32,32\n")
    (tmp_path / "train.rec").write_bytes(b"")
    outside = [reason for *_, reason in reasons(capsys, tmp_path) if "points outside" in reason]
    assert outside == ["train.idx points outside the file of 0 bytes; 32 of its 32 entries do"]


def test_verify_names_truncated_pictures_and_wrong_sizes(tmp_path, capsys):
    jpeg = cv2.imencode(".jpg", picture(0, 32))[1].tobytes()
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
    payloads = [pack_record(0, 0, b""), b"short", pack_record(0, 2, cv2.imencode(".png", picture(0, 32))[1].tobytes())]
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
    jpeg = cv2.imencode(".jpg", picture(0, 32))[1].tobytes()
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
    status, printed, errors = command("tools/rec_builder.py", "build", str(source), out, "--size", "32")
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
