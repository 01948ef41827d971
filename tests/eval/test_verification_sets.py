"""eval/verification_sets.py and eval/pair_list.py: folders with pairs.txt, in LFW's form and not in it."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.pair_list import read_pair_list
from eval.verification_sets import check_set, load_folder, load_set
from recognition.errors import DataError

LINES = ["Ann\t1\t2", "Bob\t1\t2", "Ann\t1\tBob\t1", "Ann\t2\tBob\t2"] * 2


def face(name, number):
    return np.random.default_rng(ord(name[0]) * 10 + number).integers(0, 256, (112, 112, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two people, two pictures each, one of them a JPEG of flat colour; eight pairs in two folds."""
    place = tmp_path / "lfw"
    for name in ("Ann", "Bob"):
        (place / name).mkdir(parents=True)
        for number in (1, 2):
            bgr = cv2.cvtColor(face(name, number), cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(place / name / f"{name}_{number:04d}.png"), bgr)
    (place / "Bob" / "Bob_0002.png").unlink()
    cv2.imwrite(str(place / "Bob" / "Bob_0002.jpg"), np.full((112, 112, 3), (10, 30, 250), np.uint8))
    (place / "pairs.txt").write_text("\n".join(["2\t2", *LINES]) + "\n")
    return place


def test_a_folder_is_its_list_in_order(folder):
    pairs = load_set(folder)
    check_set(folder)
    assert (pairs.name, pairs.folds) == ("lfw", 2)
    assert pairs.issame.tolist() == [True, True, False, False] * 2
    for place, (name, number) in {0: ("Ann", 1), 1: ("Ann", 2), 2: ("Bob", 1), 4: ("Ann", 1), 13: ("Bob", 1)}.items():
        np.testing.assert_array_equal(pairs.images[place], face(name, number))
    assert np.abs(pairs.images[3].astype(int) - (250, 30, 10)).max() < 6  # R, G, B
    first, second = pairs.people
    np.testing.assert_array_equal(first == second, pairs.issame)


@pytest.mark.parametrize(("first", "folds"), [("", 10), ("4", 10), ("4\t1", 4), ("1 4", None), ("0\t4", None)])
def test_the_first_line_states_folds_and_pairs(folder, first, folds):
    (folder / "pairs.txt").write_text("\n".join([*filter(None, [first]), *LINES]).replace("\t", " "))
    if folds is None:
        with pytest.raises(DataError, match=r"two at least|states 0"):
            load_folder(folder)
    else:
        assert load_folder(folder).folds == folds


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["2\t3", *LINES], "8 pairs; its first line states 12"),
        ([], "0 pairs"),
        (["Ann\t1"], "line 1: expected 'name n n'"),
        (["Ann\t1\t2", "Ann\tx\t2"], "line 2: expected"),
        (["Ann\t1\t3"], "line 1: no picture .*Ann_0003"),
        (["../lfw/Ann\t1\t2"], "line 1: '../lfw/Ann' is not a folder's name"),
        (["..\t1\t2"], "not a folder's name"),
    ],
)
def test_lists_that_cannot_be_used(folder, lines, text):
    (folder / "pairs.txt").write_text("\n".join(lines))
    for read in (load_folder, check_set):
        with pytest.raises(DataError, match=text) as error:
            read(folder)
        assert str(error.value).startswith(str(folder / "pairs.txt"))


def test_pictures_that_cannot_be_used_are_named(folder):
    picture = folder / "Ann" / "Ann_0002.png"
    narrow = np.zeros((112, 96, 3), np.uint8)
    for content, text in ((narrow, "expected 112×112 pixels, got 96×112"), (None, "not a JPEG")):
        if content is None:
            picture.write_bytes(b"nothing")
        else:
            cv2.imwrite(str(picture), content)
        with pytest.raises(DataError, match=text) as error:
            load_folder(folder)
        assert f"line 2: {picture}: " in str(error.value)


def test_a_folder_without_a_list(tmp_path):
    with pytest.raises(DataError, match=r"pairs\.txt: No such file"):
        load_set(tmp_path)


@settings(max_examples=150, deadline=None)
@given(text=st.lists(st.lists(st.sampled_from(["Ann", "1", "2", "-1", "²", "99999999999", "..", ""]), max_size=5)))
def test_any_list_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any_pairs.txt"
    path.write_text("\n".join("\t".join(fields) for fields in text))
    try:
        pairs, folds = read_pair_list(path)
    except DataError:
        return
    assert pairs
    assert folds >= 1


@pytest.mark.slow
def test_the_list_and_the_bin_file_of_real_faces_agree(real_data):
    pairs, folds = read_pair_list(real_data / "lfw" / "pairs_folds_8_9_10.txt")
    assert folds == 10
    issame = load_set(real_data / "lfw" / "lfw_folds_8_9_10.bin").issame
    assert [pair.same for pair in pairs] == issame.tolist()
