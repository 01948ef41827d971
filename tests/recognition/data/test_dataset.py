"""Opening sets: both layouts, shards, large labels, and every fault that must stop a run before its first step."""

import math
import struct

import numpy as np
import pytest

from recognition.data import shard as shard_module
from recognition.data.dataset import open_dataset, read_property
from recognition.data.recordio import (
    MAGIC_BYTES,
    RecordWriter,
    pack_record,
    read_index,
    split_label,
    unpack_record,
    write_index,
)
from recognition.errors import DataError, SettingsError

BASE = 1 << 24


def raw(label, image=b"image", flag=0, labels=b""):
    """A payload with whatever label, without pack_record's checks."""
    return struct.pack("<IfQQ", flag, label, 0, 0) + labels + image


def write_shard(folder, payloads, keys=None, name="train"):
    with RecordWriter(folder / f"{name}.rec") as writer:
        offsets = [writer.write(payload) for payload in payloads]
    write_index(folder / f"{name}.idx", range(len(payloads)) if keys is None else keys, offsets)
    return offsets


def face_layout(images):
    """Header, images with labels in order, identity records: the common face layout."""
    labels = [label for label, _ in images]
    identities = sorted(set(labels))
    first = len(images) + 1
    payloads = [pack_record((first, first + len(identities)), 0, b"")]
    payloads += [pack_record(label, key, image) for key, (label, image) in enumerate(images, 1)]
    for label in identities:
        start = labels.index(label) + 1
        payloads.append(pack_record((start, start + labels.count(label)), len(payloads), b""))
    return payloads


IMAGES = [(0, b"a"), (0, b"bb"), (1, b"ccc"), (2, b"dddd"), (2, MAGIC_BYTES * 2), (2, b"f" * 9)]


def contents(dataset):
    return [(int(dataset.labels[sample]), bytes(dataset.encoded(sample))) for sample in range(dataset.num_images)]


def refused(folder):
    with pytest.raises(DataError) as caught:
        open_dataset(folder)
    assert caught.value.status == 3
    return str(caught.value)


def test_header_and_identity_records_are_no_samples(tmp_path):
    write_shard(tmp_path, face_layout(IMAGES))
    dataset = open_dataset(tmp_path)
    assert contents(dataset) == IMAGES
    assert (dataset.num_images, dataset.num_classes) == (6, 3)
    assert dataset.labels_of(np.arange(6)).dtype == np.int64
    assert dataset.where(0) == f"{tmp_path / 'train.rec'}: record 1 @ offset 40"
    with pytest.raises(IndexError):
        dataset.encoded(6)
    with pytest.raises(IndexError):
        dataset.encoded(-1)


def test_counts_come_from_the_records_and_not_from_the_header(tmp_path):
    payloads = face_layout(IMAGES)
    for stated in [(1, 1), (3, 4), (1000, 2000), (math.nan, math.inf)]:
        write_shard(tmp_path, [raw(0, b"", 2, struct.pack("<ff", *stated)), *payloads[1:]])
        assert contents(open_dataset(tmp_path)) == IMAGES


def test_im2rec_layout_without_header_and_with_an_unordered_index(tmp_path):
    order = [4, 2, 0, 5, 1, 3]
    write_shard(tmp_path, [pack_record(IMAGES[key][0], key, IMAGES[key][1]) for key in order], keys=order)
    dataset = open_dataset(tmp_path)
    assert contents(dataset) == IMAGES
    assert dataset.where(4).endswith("record 4 @ offset 0")
    assert dataset.place(4) == (tmp_path / "train.rec", 4, 0)
    assert dataset.file_order().tolist() == order


def test_the_third_party_sample(real_data):
    folder = real_data / "third_party" / "mxnet_rec_sample"
    dataset = open_dataset(folder)
    lines = (folder / "train.lst").read_text().splitlines()
    listed = {int(key): int(label) for key, label, _ in map(str.split, lines)}
    assert dataset.labels.tolist() == [listed[key] for key in range(8)]
    assert (dataset.num_images, dataset.num_classes) == (8, 2)
    assert all(bytes(dataset.encoded(sample)[:3]) == b"\xff\xd8\xff" for sample in range(8))


def test_images_are_views_of_the_file(tmp_path):
    write_shard(tmp_path, face_layout(IMAGES))
    dataset = open_dataset(tmp_path)
    view = dataset.encoded(1)
    assert view.base is not None
    assert not view.flags.owndata
    assert not view.flags.writeable
    assert not dataset.labels.flags.writeable


def test_keys_with_gaps(tmp_path):
    keys = [3, 10, 11, 500, 501, 1 << 40]
    write_shard(tmp_path, [pack_record(label, 0, image) for label, image in IMAGES], keys=keys)
    dataset = open_dataset(tmp_path)
    assert contents(dataset) == IMAGES
    assert dataset.where(5).split(" @")[0].endswith(f"record {1 << 40}")


def test_several_shards_are_one_set(tmp_path):
    for number, part in enumerate([IMAGES[:3], IMAGES[3:4], IMAGES[4:]]):
        write_shard(tmp_path, face_layout(part), name=f"train_{8 + number}")  # 8, 9, 10: numbers, not text, are sorted
    dataset = open_dataset(tmp_path)
    assert contents(dataset) == IMAGES
    assert [path.name for path in dataset.paths] == ["train_8.rec", "train_9.rec", "train_10.rec"]
    assert dataset.where(3).startswith(f"{tmp_path / 'train_9.rec'}: record 1 ")
    assert dataset.num_classes == 3
    assert dataset.file_order().tolist() == list(range(6))


def test_one_file_as_the_root(tmp_path):
    write_shard(tmp_path, face_layout(IMAGES), name="anything")
    assert contents(open_dataset(tmp_path / "anything.rec")) == IMAGES
    assert contents(open_dataset(str(tmp_path))) == IMAGES


def test_train_rec_is_the_set_whatever_stands_beside_it(tmp_path):
    write_shard(tmp_path, face_layout(IMAGES))
    write_shard(tmp_path, face_layout(IMAGES[:2]), name="val")
    assert open_dataset(tmp_path).num_images == 6
    write_shard(tmp_path, face_layout(IMAGES[:2]), name="train_00")
    assert "both train.rec and shards (train_00.rec)" in refused(tmp_path)


def test_blocks_of_any_size_give_the_same(tmp_path, monkeypatch):
    order = np.random.default_rng(3).permutation(50).tolist()
    payloads = [pack_record(key % 7, key, bytes([key]) * (key + 1) + MAGIC_BYTES) for key in order]
    write_shard(tmp_path, payloads, keys=order)
    expected = contents(open_dataset(tmp_path))
    assert [label for label, _ in expected] == [key % 7 for key in range(50)]
    for size in (1, 3, 49, 50):
        monkeypatch.setattr(shard_module, "_BLOCK", size)
        assert contents(open_dataset(tmp_path)) == expected


def test_fingerprint_is_of_the_set_and_not_of_its_place(tmp_path):
    prints = []
    for name, images in [("a", IMAGES), ("b", IMAGES), ("c", IMAGES[:-1]), ("d", [(0, b"a"), (1, b"bb"), *IMAGES[2:]])]:
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name, face_layout(images))
        prints.append(open_dataset(tmp_path / name).fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


# Several sets


def write_sets(folder):
    """Three sets: 3 classes of a shard, 5 stated classes in two shards, 1 class."""
    for name in ("a", "b", "c"):
        (folder / name).mkdir()
    write_shard(folder / "a", face_layout(IMAGES))
    write_shard(folder / "b", face_layout(IMAGES[:3]), name="train_0")
    write_shard(folder / "b", face_layout(IMAGES[3:4]), name="train_1")
    (folder / "b" / "property").write_text("5,112,112\n")
    write_shard(folder / "c", [pack_record(0, 0, b"last")])
    return [folder / name for name in "abc"]


def test_several_sets_are_one_with_labels_of_their_own(tmp_path):
    roots = write_sets(tmp_path)
    dataset = open_dataset(",".join(map(str, roots)), [1, 2, 0.5])
    assert (dataset.num_images, dataset.num_classes) == (11, 3 + 5 + 1)
    expected = [*IMAGES, *((3 + label, image) for label, image in IMAGES[:4]), (8, b"last")]
    assert contents(dataset) == expected
    some = np.array([10, 0, 7, 9, 6, 7])
    assert dataset.labels_of(some).tolist() == [expected[sample][0] for sample in some]
    assert dataset.labels_of(some).dtype == np.int64
    assert dataset.parts == [(6, 1), (4, 2), (1, 0.5)]
    assert dataset.where(9) == f"{roots[1] / 'train_1.rec'}: record 1 @ offset 40"
    assert dataset.paths == [roots[0] / "train.rec", roots[1] / "train_0.rec", roots[1] / "train_1.rec",
                             roots[2] / "train.rec"]
    assert sorted(dataset.file_order().tolist()) == list(range(11))
    for outside in (-1, 11):
        with pytest.raises(IndexError):
            dataset.encoded(outside)


def test_the_fingerprint_of_several_sets_is_of_all_in_order(tmp_path):
    a, b, c = write_sets(tmp_path)
    prints = {open_dataset(",".join(map(str, roots))).fingerprint() for roots in ([a], [a, b], [b, a], [a, b, c])}
    assert len(prints) == 4
    assert open_dataset(a).fingerprint() == open_dataset(f"{a},").fingerprint()


def test_sets_that_cannot_be_joined(tmp_path):
    a, b, _ = write_sets(tmp_path)
    for root, weights, reason in (
        (f"{a},{b}", [1], "1 weights for 2 sets"), (f"{a},{b}", [1, -1], "expected numbers above 0"),
        (f"{a},{b}", [1, math.nan], "expected numbers above 0"), (f"{a},{a}/", [], "names a set twice"),
    ):
        with pytest.raises(SettingsError, match=reason):
            open_dataset(root, weights)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_dataset(f"{a},{tmp_path / 'nowhere'}")


def test_one_file_in_two_sets_is_named(tmp_path):
    a, b, c = write_sets(tmp_path)
    (tmp_path / "link").mkdir()
    for name in ("train.rec", "train.idx"):
        (tmp_path / "link" / name).symlink_to(c / name)
    for roots, name in (([a, a / "train.rec"], "train.rec"), ([b / "train_1.rec", a, b], "train_1.rec"),
                        ([c, tmp_path / "link"], "train.rec")):
        with pytest.raises(SettingsError, match=rf"{name}: in two sets, {roots[0]} and {roots[-1]}"):
            open_dataset(",".join(map(str, roots)))
    assert len(open_dataset(f"{b / 'train_0.rec'},{b / 'train_1.rec'}")) == 4


def test_a_comma_in_a_name_is_part_of_it_where_such_a_folder_is(tmp_path):
    (tmp_path / "a,b").mkdir()
    write_shard(tmp_path / "a,b", face_layout(IMAGES))
    assert contents(open_dataset(tmp_path / "a,b")) == contents(open_dataset(str(tmp_path / "a,b"))) == IMAGES


def test_a_count_that_property_states_wrongly_is_said(tmp_path):
    write_shard(tmp_path, face_layout(IMAGES))
    (tmp_path / "property").write_text("3,112,112\n7\n")
    notes: list[str] = []
    assert open_dataset(tmp_path, notes=notes).num_images == 6
    assert notes == [f"{tmp_path / 'property'}: states 7 images; the set has 6, which count"]


# Labels


def test_labels_above_float32_in_two_floats(tmp_path):
    labels = [5, BASE - 1, BASE, BASE + 1, 3 * BASE + 7, 20_000_001]
    payloads = [pack_record(split_label(label), key, b"x" * key or b"y") for key, label in enumerate(labels)]
    payloads[4] = pack_record(split_label(labels[4]), 4, MAGIC_BYTES * 3)  # and in a record of several parts
    write_shard(tmp_path, payloads)
    (tmp_path / "property").write_text(f"{4 * BASE},112,112\nlabel_base={BASE}\n")
    dataset = open_dataset(tmp_path)
    assert dataset.labels.tolist() == labels
    assert dataset.num_classes == 4 * BASE
    (tmp_path / "property").unlink()  # without the line, two floats are [label, ignored]
    assert open_dataset(tmp_path).labels.tolist() == [0, 0, 1, 1, 3, 1]


def test_a_second_label_is_ignored_without_label_base(tmp_path):
    write_shard(tmp_path, [pack_record([4, 0.5], 0, b"a"), raw(0, b"b", 2, struct.pack("<ff", 3, math.nan)),
                           pack_record([2], 0, b"c"), pack_record(1, 0, b"d")])
    assert open_dataset(tmp_path).labels.tolist() == [4, 3, 2, 1]


@pytest.mark.parametrize("label", [math.nan, math.inf, -math.inf, -1.0, 0.5, 1e30, float(BASE)])
@pytest.mark.parametrize("flag", [0, 1, 2])
@pytest.mark.parametrize("is_split", [False, True])
def test_wrong_labels_are_named(tmp_path, label, flag, is_split):
    image = MAGIC_BYTES * 2 if is_split else b"image"
    bad = raw(label, image) if flag == 0 else raw(0, image, flag, struct.pack(f"<{flag}f", label, *[1] * (flag - 1)))
    offsets = write_shard(tmp_path, [raw(0), raw(1), bad, raw(1)])
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / 'train.rec'}: record 2 @ offset {offsets[2]}: label ")
    assert "expected a whole number from 0 to 16777215" in message


@pytest.mark.parametrize("low", [math.nan, -1.0, 0.5, float(BASE)])
def test_wrong_low_halves_are_named(tmp_path, low):
    write_shard(tmp_path, [raw(0), raw(0, b"b", 2, struct.pack("<ff", 1, low))])
    (tmp_path / "property").write_text(f"label_base={BASE}")
    assert ": record 1 @ offset 40: label " in refused(tmp_path)


def test_a_label_of_no_class_is_named(tmp_path):
    write_shard(tmp_path, [raw(0), raw(2), raw(3), raw(5)])
    (tmp_path / "property").write_text("3,112,112\n")
    assert ": record 2 @ offset 80: label 3; expected less than the 3 classes that the file pr" in refused(tmp_path)
    (tmp_path / "property").write_text("6,112,112\n999\n")  # the count is a hint
    dataset = open_dataset(tmp_path)
    assert (dataset.num_classes, dataset.num_images) == (6, 4)
    (tmp_path / "property").unlink()
    assert open_dataset(tmp_path).num_classes == 6


@pytest.mark.parametrize(("payload", "reason"), [
    (b"", "a payload of 0 bytes"),
    (b"\0" * 23, "a payload of 23 bytes"),
    (raw(0, b"image", flag=2), "flag 2 announces 8 bytes of labels; the payload has 29 bytes in all"),
    (raw(0, b"image", flag=0xFFFFFFFF), "flag 4294967295 announces 17179869180 bytes"),
    (raw(0, MAGIC_BYTES, flag=2), "flag 2 announces 8 bytes of labels; the payload has 28"),
    (raw(0, b""), "no image and no label range"),
    (raw(0, b"", 1, b"\0" * 4), "no image and no label range"),
])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_payloads_that_hold_no_image_record(tmp_path, payload, reason, at):
    payloads = [raw(0), raw(1)]
    payloads.insert(at, payload)
    offsets = write_shard(tmp_path, payloads)
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / 'train.rec'}: record {at} @ offset {offsets[at]}: ")
    assert reason in message


def test_identity_records_where_images_belong(tmp_path):
    bare = pack_record((1, 2), 0, b"")
    offsets = write_shard(tmp_path, [bare, raw(0), bare, raw(1), bare])
    assert f"record 2 @ offset {offsets[2]}: no image: a header or identity record" in refused(tmp_path)
    write_shard(tmp_path, [raw(0), raw(1), bare])
    assert "record 2 @ offset 80: no image, and the set has no header record" in refused(tmp_path)
    write_shard(tmp_path, [bare, raw(0)], keys=[1, 2])
    assert "record 1 @ offset 0: no image, and the set has no header record (key 0)" in refused(tmp_path)


def test_a_set_without_images(tmp_path):
    write_shard(tmp_path, [pack_record((1, 1), 0, b"")])
    assert refused(tmp_path) == f"{tmp_path}: no record carries an image"


# Files


def test_every_cut_of_a_shard_is_found(tmp_path):
    write_shard(tmp_path, face_layout(IMAGES))
    data = (tmp_path / "train.rec").read_bytes()
    assert len(data) < 500
    for size in range(len(data)):
        (tmp_path / "train.rec").write_bytes(data[:size])
        assert refused(tmp_path).startswith(f"{tmp_path / 'train.rec'}: record "), size
    (tmp_path / "train.rec").write_bytes(data)
    assert contents(open_dataset(tmp_path)) == IMAGES


def test_every_byte_too_many_is_found(tmp_path):
    write_shard(tmp_path, face_layout(IMAGES))
    data = (tmp_path / "train.rec").read_bytes()
    for extra in (b"\0", b"\0" * 4, b"\0" * 400, struct.pack("<II", 0xCED7230A, 0)):
        (tmp_path / "train.rec").write_bytes(data + extra)
        assert f"record ? @ offset {len(data)}: train.idx lacks this record" in refused(tmp_path)


def test_damaged_frames_are_found_wherever_they_are(tmp_path):
    """Every byte of every frame and all padding, one at a time: only the payloads may change unseen."""
    payloads = face_layout(IMAGES)
    offsets = [*write_shard(tmp_path, payloads), (tmp_path / "train.rec").stat().st_size]
    data = (tmp_path / "train.rec").read_bytes()
    checked = 0
    for offset, end, payload in zip(offsets, offsets[1:], payloads, strict=False):
        if MAGIC_BYTES in payload:
            frames = [offset, offset + 8 + 24, offset + 8 + 24 + 8]  # three parts: 24 bytes, nothing, nothing
            places = [frame + at for frame in frames for at in range(8)]
        else:
            places = [*range(offset, offset + 8), *range(offset + 8 + len(payload), end)]
        for place in places:
            damaged = bytearray(data)
            damaged[place] ^= 0x41
            (tmp_path / "train.rec").write_bytes(damaged)
            assert refused(tmp_path).startswith(f"{tmp_path / 'train.rec'}: record "), place
            checked += 1
    assert checked > 8 * len(payloads)


def test_an_index_that_lacks_records(tmp_path):
    offsets = write_shard(tmp_path, face_layout(IMAGES))
    for left_out in range(len(offsets)):
        keys = np.delete(np.arange(len(offsets)), left_out)
        write_index(tmp_path / "train.idx", keys, np.delete(offsets, left_out))
        message = refused(tmp_path)
        if left_out:  # without key 0 the identity records have no header, which is as good a reason
            assert f"record ? @ offset {offsets[left_out]}: train.idx lacks this record" in message
        assert message.startswith(f"{tmp_path / 'train.rec'}: record ")


def test_an_index_with_wrong_entries(tmp_path):
    offsets = write_shard(tmp_path, face_layout(IMAGES))
    size = (tmp_path / "train.rec").stat().st_size
    keys = list(range(len(offsets)))

    def with_entry(at, key, offset):
        wrong_keys, wrong_offsets = keys.copy(), offsets.copy()
        wrong_keys[at], wrong_offsets[at] = key, offset
        write_index(tmp_path / "train.idx", wrong_keys, wrong_offsets)
        return refused(tmp_path)

    assert f"record 9 @ offset {size}: train.idx points outside the file of {size} bytes" in with_entry(-1, 9, size)
    assert "points outside the file" in with_entry(-1, 9, 1 << 50)
    assert "not at a multiple of 4" in with_entry(2, 2, offsets[2] + 1)
    assert "no record begins here: expected the magic" in with_entry(2, 2, offsets[2] + 4)
    assert with_entry(3, 2, offsets[3]) == (
        f"{tmp_path / 'train.idx'}: key 2 twice, at offsets {offsets[2]} and {offsets[3]}")
    assert f"offset {offsets[2]}: train.idx gives this offset to two keys" in with_entry(3, 3, offsets[2])


def test_the_index_of_another_file(tmp_path):
    write_shard(tmp_path, [raw(0, b"x" * size) for size in (5, 50, 500)], name="other")
    write_shard(tmp_path, [raw(0, b"x" * size) for size in (50, 5, 500)])
    (tmp_path / "other.idx").replace(tmp_path / "train.idx")
    assert "record 1 @ offset 40: no record begins here" in refused(tmp_path)


def test_missing_and_malformed_files(tmp_path):
    assert refused(tmp_path / "nowhere").startswith(f"{tmp_path / 'nowhere'}: no such folder or file")
    assert refused(tmp_path) .startswith(f"{tmp_path}: no .rec file in this folder; tools/rec_builder.py build")
    write_shard(tmp_path, face_layout(IMAGES))
    index = (tmp_path / "train.idx").read_bytes()
    (tmp_path / "train.idx").unlink()
    assert refused(tmp_path) == f"{tmp_path / 'train.idx'}: No such file or directory"
    (tmp_path / "train.idx").write_bytes(b"")
    assert refused(tmp_path) == f"{tmp_path / 'train.idx'}: lists no record"
    (tmp_path / "train.idx").write_bytes(index.replace(b"\n", b"\nx\n", 1))
    assert "train.idx: line 2: expected 'key<tab>offset', found b'x'" in refused(tmp_path)


@pytest.mark.parametrize(("text", "line"), [
    ("a,112,112", 1), ("3,112", 1), ("3,112,112\nlabel_base=0", 2), ("3,112,112\n\nlabel_base=16777217", 3),
    ("3,112,112\nlabelbase=5", 2), ("-3,112,112", 1),
])
def test_a_malformed_property_file(tmp_path, text, line):
    write_shard(tmp_path, face_layout(IMAGES))
    (tmp_path / "property").write_text(text)
    assert refused(tmp_path).startswith(f"{tmp_path / 'property'}: line {line}: ")


def test_property_forms(tmp_path):
    (tmp_path / "property").write_text("85742,112,112\r\n5822653\r\nlabel_base = 16777216\n")
    stated = read_property(tmp_path / "property")
    assert (stated.num_classes, stated.height, stated.width) == (85742, 112, 112)
    assert (stated.num_images, stated.label_base) == (5822653, BASE)


def test_many_records_open_without_a_loop_over_them(tmp_path):
    """A million records through the vectorised path: right labels, 12 bytes a record kept."""
    count = 1_000_000
    records = np.zeros((count, 9), "<u4")
    records[:, 0], records[:, 1] = 0xCED7230A, 28
    records[:, 3] = (np.arange(count) // 3).astype(np.float32).view(np.uint32)
    records.tofile(tmp_path / "train.rec")
    write_index(tmp_path / "train.idx", range(count), range(0, count * 36, 36))
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.labels, np.arange(count) // 3)
    samples = dataset._samples
    assert samples.labels.nbytes + samples.offsets.nbytes == 12 * count
    assert samples.keys is None
    assert dataset.encoded(count - 1).nbytes == 4


def test_reader_and_dataset_agree(tmp_path):
    """The vectorised header reading gives what unpack_record gives, one record at a time."""
    generator = np.random.default_rng(5)
    payloads = []
    for _ in range(300):
        flag = int(generator.integers(0, 4))
        labels = generator.integers(0, 1000, size=max(flag, 1)).tolist()
        image = b"".join([MAGIC_BYTES, b"q", b"zzzz"][piece] for piece in generator.integers(0, 3, 6))
        payloads.append(pack_record(labels if flag else labels[0], 0, image))
    write_shard(tmp_path, payloads)
    dataset = open_dataset(tmp_path)
    for sample, offset in enumerate(read_index(tmp_path / "train.idx")[1].tolist()):
        header, image = unpack_record(dataset._readers[0].read(offset))
        assert dataset.labels[sample] == header.labels[0]
        assert bytes(dataset.encoded(sample)) == bytes(image)


def test_random_damage_opens_or_is_refused_but_never_fails_otherwise(tmp_path):
    write_shard(tmp_path, face_layout(IMAGES))
    good = {name: (tmp_path / name).read_bytes() for name in ("train.rec", "train.idx")}
    generator = np.random.default_rng(0)
    words = [b"\xff" * 4, bytes(4), MAGIC_BYTES, struct.pack("<f", math.nan), struct.pack("<f", math.inf)]
    outcomes = []
    for _ in range(400):
        for name, data in good.items():
            damaged = bytearray(data)
            at = int(generator.integers(len(data)))
            match generator.integers(3):
                case 0:
                    damaged[at] = generator.integers(256)
                case 1:
                    damaged[at : at + 4] = words[generator.integers(len(words))]
                case 2:
                    del damaged[at : at + int(generator.integers(1, 9))]
            (tmp_path / name).write_bytes(damaged)
        try:
            dataset = open_dataset(tmp_path)
            assert all(0 <= label < dataset.num_classes for label, _ in contents(dataset))
            outcomes.append("opened")
        except DataError:
            outcomes.append("refused")
        for name, data in good.items():
            (tmp_path / name).write_bytes(data)
    assert outcomes.count("refused") > 200
