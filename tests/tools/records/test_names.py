"""Names of identities and images, from labels.tsv and from list files in any order, and contradictions refused."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.pair_list import read_pair_list
from recognition.data.dataset import open_dataset
from recognition.data.recordio import RecordWriter, pack_record, write_index
from recognition.errors import DataError
from tools.records.names import ImageNames, ListFile, identity_names


@pytest.fixture
def im2rec_set(tmp_path):
    """Keys in another order than the records; the list in a third."""
    order, labels = [2, 0, 3, 1], [7, 7, 9, 9]
    with RecordWriter(tmp_path / "train.rec") as writer:
        offsets = [writer.write(pack_record(labels[key], key, b"%d" % key)) for key in order]
    write_index(tmp_path / "train.idx", order, offsets)
    (tmp_path / "train.lst").write_text("3\t9.000000\tb/3.jpg\n0\t7\ta/0.jpg\n2\t9\tb/2.jpg\r\n1\t7\ta/1.jpg")
    return tmp_path


def test_from_a_list_in_any_order(im2rec_set):
    dataset = open_dataset(im2rec_set)
    assert identity_names(dataset) == {7: "a", 9: "b"}
    names = ImageNames(dataset)
    assert [names[sample] for sample in range(4)] == ["a/0.jpg", "a/1.jpg", "b/2.jpg", "b/3.jpg"]
    assert list(ListFile(im2rec_set / "train.lst"))[1] == (0, 7, "a/0.jpg")


def test_a_list_that_lacks_images(im2rec_set):
    (im2rec_set / "train.lst").write_text("0\t7\ta/0.jpg\n3\t9\tb/3.jpg\n")
    names = ImageNames(open_dataset(im2rec_set))
    assert [names[sample] for sample in range(4)] == [
        "a/0.jpg", f"{im2rec_set.name}/1", f"{im2rec_set.name}/2", "b/3.jpg"]


def test_the_third_party_sample(real_data):
    dataset = open_dataset(real_data / "third_party" / "mxnet_rec_sample")
    assert identity_names(dataset) == {0: "man", 1: "woman"}
    assert [ImageNames(dataset)[sample] for sample in (0, 7)] == ["man/man_1.jpg", "woman/woman_4.jpg"]


@pytest.mark.parametrize(("text", "reason"), [
    ("7\ta\n7\tb\n9\tc\n", "label 7 is both 'a' and 'b'"),
    ("7\ta\n9\ta\n", "'a' is both label 7 and 9"),
    ("7\ta\n", "label 9 has images and no name"),
    ("7\ta\n9 b\n", "line 2: expected 'label<tab>name', found '9 b"),
    ("7\t\n9\tb\n", "label 7 has no name"),
])
def test_contradictions_in_labels(im2rec_set, text, reason):
    (im2rec_set / "labels.tsv").write_text(text)
    with pytest.raises(DataError) as caught:
        identity_names(open_dataset(im2rec_set))
    assert str(caught.value).startswith(f"{im2rec_set / 'labels.tsv'}: {reason}")


@pytest.mark.parametrize("line", ["x\t7\ta", "1", "1\tnan\ta", "1\tinf\ta", "", "-1\t7\ta", "1\t1e30\ta"])
def test_malformed_lists(im2rec_set, line):
    (im2rec_set / "train.lst").write_text(f"0\t7\ta/0.jpg\n{line}\n")
    with pytest.raises(DataError, match="line 2: expected 'key<tab>label<tab>path'"):
        identity_names(open_dataset(im2rec_set))


@pytest.mark.parametrize("text", ["1\ta/0.jpg\t7\n0\tb/1.jpg\t9\n", "# my notes\n", "\n0\t7\ta/0.jpg\n"])
def test_a_list_of_another_form_is_as_good_as_none(im2rec_set, text):
    (im2rec_set / "train.lst").write_text(text)
    dataset = open_dataset(im2rec_set)
    assert identity_names(dataset) is None
    assert ImageNames(dataset)[3] == f"{im2rec_set.name}/3"


def test_folders_that_are_no_identities(im2rec_set):
    for text in ("0\t7\tall/0\n1\t7\tall/1\n2\t9\tall/2\n3\t9\tall/3\n", "0\t7\ta/0\n1\t7\tb/1\n", "0\t7\t0\n"):
        (im2rec_set / "train.lst").write_text(text)
        assert identity_names(open_dataset(im2rec_set)) is None


def test_no_names(im2rec_set):
    (im2rec_set / "train.lst").unlink()
    dataset = open_dataset(im2rec_set)
    assert identity_names(dataset) is None
    assert ImageNames(dataset)[3] == f"{im2rec_set.name}/3"


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_text_is_names_or_refused(im2rec_set, count):
    """Hostile labels, image lists and pairs: nothing but a DataError comes out."""
    fields = st.sampled_from(
        ["0", "1", "7", "9", "a", "b", "nan", "1e999", "-1", "٣", "9" * 5000, "", " ", "\udc80", "x/y"])
    lines = st.lists(st.lists(fields, max_size=5).map("\t".join), max_size=6).map("\n".join)

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(text=lines | st.text(max_size=40), name=st.sampled_from(["labels.tsv", "train.lst", "pairs.txt"]))
    def check(text, name):
        for path in ("labels.tsv", "train.lst", "pairs.txt"):
            (im2rec_set / path).unlink(missing_ok=True)
        (im2rec_set / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        with suppress(DataError):
            dataset = open_dataset(im2rec_set)
            names = identity_names(dataset)
            assert names is None or names.keys() >= {7, 9}
            assert all(ImageNames(dataset)[sample] for sample in range(4))
        with suppress(DataError):
            assert read_pair_list(im2rec_set / "pairs.txt")

    check()
