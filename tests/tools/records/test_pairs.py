"""pairs: from LFW's list over folders and sets, and drawn; read by the evaluation and by a plain unpickling."""

import json
import pickle
from itertools import pairwise

import cv2
import numpy as np
import pytest

from eval.pair_list import read_pair_list
from eval.verification import load_bin
from recognition.data.shard_writer import ShardWriter
from recognition.errors import DataError, SettingsError
from tests.tools.rec_runs import run
from tools.records.draw_pairs import FOLDS, draw_pairs


def png(number, side=112):
    """A picture whose top left pixel says which one it is."""
    image = np.full((side, side, 3), 128, np.uint8)
    image[0, 0] = number % 256, number // 256, 7
    return cv2.imencode(".png", image)[1].tobytes()


PEOPLE = {"Ann Lee": [1, 2, 4], "Bob": [1], "Çelik": [3, 7]}


@pytest.fixture
def folder(tmp_path):
    for person, (name, numbers) in enumerate(PEOPLE.items()):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for number in numbers:
            (tmp_path / "faces" / name / f"{name}_{number:04d}.png").write_bytes(png(100 * person + number))
    return tmp_path / "faces"


@pytest.fixture
def record_set(folder, tmp_path):
    """The same faces as a set, its list file with their names."""
    (tmp_path / "set").mkdir()
    with ShardWriter(tmp_path / "set" / "train.rec") as shard:
        for label, name in enumerate(PEOPLE):
            for path in sorted((folder / name).iterdir()):
                shard.add(label, path.read_bytes(), f"{name}/{path.name}")
    (tmp_path / "set" / "labels.tsv").write_text("".join(f"{label}\t{name}\n" for label, name in enumerate(PEOPLE)))
    return tmp_path / "set"


def batched(items, size):
    assert len(items) % size == 0
    return [items[start : start + size] for start in range(0, len(items), size)]


LIST = "Ann Lee\t1\t4\nÇelik\t7\t3\nAnn Lee\t2\tBob\t1\nBob\t1\tÇelik\t3\n"
FACES = [1, 4, 207, 203, 2, 101, 101, 203]


@pytest.mark.parametrize("kind", ["folder", "record_set"])
@pytest.mark.parametrize("first", ["", "2\n", "1\t2\n"])
def test_a_list(kind, first, request, tmp_path, capsys):
    (tmp_path / "pairs.txt").write_text(first + LIST)
    source = request.getfixturevalue(kind)
    assert run("pairs", source, tmp_path / "out.bin", "--list", tmp_path / "pairs.txt", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"], found["genuine"], found["identities"], found["images_used_again"]) == (4, 2, 3, 2)
    loaded = load_bin(tmp_path / "out.bin")
    assert loaded.issame.tolist() == [True, True, False, False]
    assert (loaded.images[:, 0, 0, 2] + 256 * loaded.images[:, 0, 0, 1].astype(int)).tolist() == FACES
    bins, issame = pickle.loads((tmp_path / "out.bin").read_bytes(), encoding="bytes")  # as others read it
    assert bins == [png(number) for number in FACES]
    assert issame == [True, True, False, False]
    assert (tmp_path / "out.txt").read_text() == LIST


def test_lists_with_blanks(tmp_path):
    (tmp_path / "pairs.txt").write_text("10 300\n")
    with pytest.raises(DataError, match=r"pairs\.txt: 0 pairs; its first line states 6000"):
        read_pair_list(tmp_path / "pairs.txt")[0]
    (tmp_path / "pairs.txt").write_text("Bob 1 2\n\nBob 1 Ann 3\r\n")
    assert [(pair.first, pair.second, pair.same, pair.line) for pair in read_pair_list(tmp_path / "pairs.txt")[0]] == [
        (("Bob", 1), ("Bob", 2), True, 1), (("Bob", 1), ("Ann", 3), False, 3)]


@pytest.mark.parametrize("line", [
    "Bob 1", "Bob one 2", "Bob 1 Ann", "Bob 1 Ann 2 3", "Bob\t1\t-2", "1 2 3 4 5", "Bob 1 ٣"])
def test_malformed_lists(tmp_path, line):
    (tmp_path / "pairs.txt").write_text(f"Bob 1 2\n{line}\n")
    with pytest.raises(DataError, match=r"pairs\.txt: line 2: expected"):
        read_pair_list(tmp_path / "pairs.txt")[0]


@pytest.mark.parametrize(("line", "reason"), [
    ("Dee\t1\t2", r"pairs\.txt: line 2: nobody is called 'Dee'"),
    ("Ann Lee\t1\t3", r"pairs\.txt: line 2: 'Ann Lee' has no picture 3, but 1, 2, 4"),
])
def test_faces_that_are_not_there(folder, tmp_path, line, reason):
    (tmp_path / "pairs.txt").write_text(f"Ann Lee\t1\t2\n{line}\n")
    with pytest.raises(DataError, match=reason):
        run("pairs", folder, tmp_path / "out.bin", "--list", tmp_path / "pairs.txt")
    assert not (tmp_path / "out.bin").exists()


def test_pictures_that_are_none_or_of_another_size(folder, tmp_path):
    (tmp_path / "pairs.txt").write_text("Ann Lee\t1\t2\n")
    for content, reason in ((b"no picture", "not a JPEG"), (png(1, side=96), "96×96 pixels; evaluation takes 112×112")):
        (folder / "Ann Lee" / "Ann Lee_0002.png").write_bytes(content)
        with pytest.raises(DataError, match=rf"Ann Lee_0002\.png: {reason}"):
            run("pairs", folder, tmp_path / "out.bin", "--list", tmp_path / "pairs.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "pairs.txt"]


def test_pictures_without_numbers_are_counted(folder, tmp_path):
    (folder / "Bob" / "in the rain.png").write_bytes(png(55))
    (tmp_path / "pairs.txt").write_text("Bob\t1\t2\n")
    run("pairs", folder, tmp_path / "out.bin", "--list", tmp_path / "pairs.txt")
    assert load_bin(tmp_path / "out.bin").images[:, 0, 0, 2].tolist() == [101, 55]


def test_nothing_is_overwritten_unasked(folder, tmp_path):
    (tmp_path / "pairs.txt").write_text("Ann Lee\t1\t2\n")
    (tmp_path / "out.txt").write_text("mine")
    arguments = ("pairs", folder, tmp_path / "out.bin", "--list", tmp_path / "pairs.txt")
    with pytest.raises(SettingsError, match=r"out\.txt: exists; --replace"):
        run(*arguments)
    assert (tmp_path / "out.txt").read_text() == "mine"
    assert run(*arguments, "--replace") == 0
    with pytest.raises(SettingsError, match=r"out\.bin: exists"):
        run(*arguments)
    with pytest.raises(SettingsError, match=r"expected a name that ends in \.bin"):
        run("pairs", folder, tmp_path / "out.pkl", "--list", tmp_path / "pairs.txt")


# Drawn


def test_drawn_pairs():
    pictures = [1 + person % 6 for person in range(200)]
    pairs = draw_pairs(pictures, 200, seed=3)
    faces = [face for pair in pairs for face in pair]
    assert len(set(faces)) == 400  # 693 pictures are enough for no picture to come twice
    assert all(0 <= at < pictures[person] for person, at in faces)
    folds = batched(pairs, 20)
    people = [{person for pair in fold for person, _ in pair} for fold in folds]
    assert all(not (first & second) for first, second in pairwise(people))
    assert sum(map(len, people)) == len(set().union(*people))
    for fold in folds:
        assert [first[0] == second[0] for first, second in fold] == [True] * 10 + [False] * 10
    assert draw_pairs(pictures, 200, seed=3) == pairs
    assert draw_pairs(pictures, 200, seed=4) != pairs


def test_drawn_pairs_come_from_everybody():
    """Nobody gives two genuine pairs before everybody has given one."""
    pairs = draw_pairs([40] + [2] * 99, 200, seed=0)
    givers = [first[0] for first, second in pairs if first[0] == second[0]]
    assert len(set(givers)) == 100


def test_pictures_are_used_again_only_when_there_are_no_others():
    pictures = [3] * 20  # a fold has two people: 6 pictures, 6 genuine pairs, 9 impostor pairs
    pairs = draw_pairs(pictures, 20 * 6, seed=0)
    assert len({frozenset(pair) for pair in pairs}) == 120
    for fold in batched(pairs, 12):
        genuine, impostor = fold[:6], fold[6:]
        assert {first[0] for first, _ in genuine[:2]} == {first[0] for pair in impostor[:1] for first in pair}
        assert len({face for pair in (*genuine[:2], impostor[0]) for face in pair}) == 6  # each picture once, at first
    with pytest.raises(SettingsError, match="--random 140: fold 1 of 10 has 2 people with 6 different genuine"):
        draw_pairs(pictures, 140, seed=0)
    with pytest.raises(SettingsError, match="0 different genuine pairs"):
        draw_pairs([1] * 100, 20, seed=0)
    with pytest.raises(SettingsError, match="pictures of 19 people; expected at least 20"):
        draw_pairs([2] * 19, 20, seed=0)
    for count in (0, 19, 30):
        with pytest.raises(SettingsError, match="expected a multiple of 20"):
            draw_pairs(pictures, count, seed=0)


@pytest.mark.parametrize("seed", range(20))
def test_all_pairs_there_are(seed):
    """Asked for as many as there are, it finds them all: 3 genuine a person; 9 for two people of three pictures."""
    pairs = draw_pairs([3, 1] * 10 + [1] * 10, 20 * 3, seed)
    assert len({frozenset(pair) for pair in pairs}) == 60


def test_a_drawn_set_and_its_list(real_data, tmp_path, capsys):
    faces = real_data / "lfw" / "train"
    run("pairs", faces, tmp_path / "drawn.bin", "--random", 200)
    run("pairs", faces, tmp_path / "listed.bin", "--list", tmp_path / "drawn.txt")
    assert (tmp_path / "drawn.bin").read_bytes() == (tmp_path / "listed.bin").read_bytes()
    loaded = load_bin(tmp_path / "drawn.bin")
    assert loaded.issame.reshape(FOLDS, 20).sum(axis=1).tolist() == [10] * 10


def test_sources_that_are_none(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder or file"):
        run("pairs", tmp_path / "nowhere", tmp_path / "out.bin", "--random", 20)
    with pytest.raises(DataError, match="no pictures in folders of identities, and no set"):
        run("pairs", tmp_path, tmp_path / "out.bin", "--random", 20)
    with pytest.raises(SystemExit):
        run("pairs", tmp_path, tmp_path / "out.bin")
