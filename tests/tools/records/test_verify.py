"""verify: checksums (fault row 5) and `--repair`; what it finds in framing, index and labels is in test_rec_builder."""

from collections import Counter

import cv2
import numpy as np
import pytest

from recognition.data.checksums import read_checksums, write_checksums
from recognition.data.dataset import open_dataset
from recognition.data.recordio import RecordReader, read_index, write_index
from recognition.data.shard_writer import PlainShardWriter, ShardWriter
from recognition.errors import DataError, SettingsError
from tests.tools.rec_runs import facts, run
from tools.records.verify import verify


def jpeg(number):
    generator = np.random.default_rng(number)
    small = generator.integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(small, (32, 32), interpolation=cv2.INTER_CUBIC))[1].tobytes()


LABELS = [0, 0, 1, 1, 1, 2]


def make_set(folder, writer_class):
    folder.mkdir()
    with writer_class(folder / "train.rec") as writer:
        for number, label in enumerate(LABELS):
            writer.add(label, jpeg(number), f"{label}/{number}.jpg")
    (folder / "property").write_text("3,32,32\n")
    (folder / "labels.tsv").write_text("0\tAnn\n1\tBob\n2\tCem\n")
    return folder


@pytest.fixture(params=[ShardWriter, PlainShardWriter])
def built(request, tmp_path):
    """Six pictures of three people, as a set in either layout."""
    return make_set(tmp_path / "set", request.param)


def contents(folder):
    dataset = open_dataset(folder)
    return [(int(dataset.labels[at]), bytes(dataset.encoded(at))) for at in range(dataset.num_images)]


# Checksums


def test_row_5_every_flipped_bit_is_caught(tmp_path):
    """1000 single bits of payloads: all caught, and all named by record."""
    built = make_set(tmp_path / "set", ShardWriter)
    path = built / "train.rec"
    good = path.read_bytes()
    payloads = [(key, offset, len(payload)) for key, (offset, payload) in enumerate(RecordReader(path).scan())]
    assert verify(built, threads=1).problems == []
    generator = np.random.default_rng(0)
    for _ in range(1000):
        key, offset, length = payloads[generator.integers(len(payloads))]
        bit = int(generator.integers(8 * length))
        damaged = bytearray(good)
        damaged[offset + 8 + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found = verify(built, threads=1).problems
        assert any(p["record"] == key and p["offset"] == offset and "bits have changed" in p["reason"] for p in found)


def test_changed_frames_and_padding_are_caught_too(built):
    path = built / "train.rec"
    good = path.read_bytes()
    for offset, payload in RecordReader(path).scan():
        ends = offset + 8 + len(payload)
        for byte in [*range(offset, offset + 8), *range(ends, ends + -ends % 4)]:
            damaged = bytearray(good)
            damaged[byte] ^= 1 << byte % 8
            path.write_bytes(damaged)
            assert verify(built, threads=1).problems, byte


def test_only_the_sums_show_a_picture_that_still_decodes(built, capsys):
    path = built / "train.rec"
    data = bytearray(path.read_bytes())
    data[data.index(jpeg(0)) + len(jpeg(0)) - 20] ^= 1  # in its scan
    path.write_bytes(data)
    found = facts(capsys, "verify", built, status=3)
    assert [problem["reason"][:4] for problem in found["problems"]] == ["CRC "]
    assert found["compared"] == found["records"]
    (built / "train.crc").unlink()
    assert facts(capsys, "verify", built)["problems"] == []


def test_sidecars_of_other_files(built, capsys):
    size, sums = read_checksums(built / "train.crc")

    def reasons():
        return [p["reason"] for p in facts(capsys, "verify", built, status=3)["problems"]]

    write_checksums(built / "train.crc", size + 4, sums)
    assert reasons() == [f"is of a train.rec of {size + 4} bytes; this one has {size}"]
    write_checksums(built / "train.crc", size, sums[:-1])
    assert reasons() == [f"states {len(sums) - 1} sums; the file has {len(sums)} records"]
    (built / "train.crc").write_bytes(b"RECCRC32 and more, which is not the form of a sidecar at all")
    assert "the sidecar itself is damaged" in reasons()[0]
    (built / "train.crc").unlink()
    found = facts(capsys, "verify", built)
    assert (found["problems"], found["compared"]) == ([], 0)


def test_records_behind_damage_are_still_compared(built, capsys):
    """The index says which sum is whose, when counting no longer can."""
    path = built / "train.rec"
    keys, offsets = (part.tolist() for part in read_index(built / "train.idx"))
    data = bytearray(path.read_bytes())
    data[offsets[1]] ^= 1  # a magic
    data[offsets[4] + 60] ^= 1
    path.write_bytes(data)
    found = facts(capsys, "verify", built, status=3)
    assert any(p["record"] == keys[4] and "bits have changed" in p["reason"] for p in found["problems"])
    assert found["compared"] == len(keys) - 1
    write_index(built / "train.idx", np.delete(keys, 2), np.delete(offsets, 2))
    found = facts(capsys, "verify", built, status=3)
    assert [w["reason"] for w in found["warnings"] if w["file"].endswith(".crc")] == [
        f"{len(keys) - 2} records behind damage not compared, as the index is wrong too"]


# Repair


def damage(folder):
    """A frame, a label, a picture: the second, third and fifth image."""
    path = folder / "train.rec"
    data = bytearray(path.read_bytes())
    offsets = [offset for offset, payload in RecordReader(path).scan() if len(payload) > 40]
    data[offsets[1]] ^= 1
    data[offsets[2] + 12 : offsets[2] + 16] = np.float32(np.nan).tobytes()
    data[offsets[4] + 32 : offsets[4] + 40] = b"no image"
    path.write_bytes(data)
    return offsets


def test_repair_leaves_out_what_is_bad_and_says_so(built, tmp_path, capsys):
    before = contents(built)
    offsets = damage(built)
    found = facts(capsys, "verify", built, "--repair", tmp_path / "out")
    assert found["problems"]
    assert (found["repair"]["images"], found["repair"]["classes"]) == (3, 3)
    assert contents(tmp_path / "out") == [before[0], before[3], before[5]]
    assert (tmp_path / "out" / "labels.tsv").read_text() == "0\tAnn\n1\tBob\n2\tCem\n"
    assert [line.split("\t")[2] for line in (tmp_path / "out" / "train.lst").read_text().splitlines()] == [
        "0/0.jpg", "1/3.jpg", "2/5.jpg"]
    listed = [line.split("\t") for line in (tmp_path / "out" / "left_out.tsv").read_text().splitlines()]
    assert {int(offset) for _, _, offset, _ in listed} == {offsets[1], offsets[2], offsets[4]}
    assert facts(capsys, "verify", tmp_path / "out")["problems"] == []
    assert run("verify", built) == 3  # nothing happened to it
    with pytest.raises(SettingsError, match="--replace"):
        run("verify", built, "--repair", tmp_path / "out")
    assert run("verify", built, "--repair", tmp_path / "out", "--replace") == 0
    with pytest.raises(SettingsError, match="--replace without --repair"):
        run("verify", built, "--replace")


def test_repair_of_a_whole_set_copies_it(built, tmp_path, capsys):
    facts(capsys, "verify", built, "--repair", tmp_path / "out", "--shards", 2)
    assert contents(tmp_path / "out") == contents(built)
    assert (tmp_path / "out" / "left_out.tsv").read_text() == ""


def test_repair_without_an_index_takes_all_that_is_whole(built, tmp_path, capsys):
    before = contents(built)
    damage(built)
    (built / "train.idx").unlink()
    facts(capsys, "verify", built, "--repair", tmp_path / "out")
    assert Counter(contents(tmp_path / "out")) == Counter([before[0], before[3], before[5]])


def test_repair_leaves_out_what_the_index_leaves_out(built, tmp_path, capsys):
    before = contents(built)
    keys, offsets = read_index(built / "train.idx")
    at = 3 if len(keys) > 6 else 2  # the third image
    write_index(built / "train.idx", np.delete(keys, at), np.delete(offsets, at))
    found = facts(capsys, "verify", built, "--repair", tmp_path / "out")
    assert "train.idx lacks this record" in [problem["reason"] for problem in found["problems"]]
    assert contents(tmp_path / "out") == before[:2] + before[3:]


def test_repair_of_nothing(built, tmp_path):
    (built / "train.rec").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="no image in it is good; nothing was written"):
        run("verify", built, "--repair", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (built / "train.rec").unlink()
    with pytest.raises(DataError, match=r"no \.rec file"):
        run("verify", built)


def test_repair_of_several_shards_with_one_lost(built, tmp_path, capsys):
    run("shuffle", built, tmp_path / "two", "--shards", 2)
    expected = contents(tmp_path / "two")[3:]
    (tmp_path / "two" / "train_00.rec").write_bytes(b"")
    facts(capsys, "verify", tmp_path / "two", "--repair", tmp_path / "out")
    assert contents(tmp_path / "out") == expected
