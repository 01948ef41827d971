"""shuffle, merge and split: the same images under the labels they should have, the same bytes again, nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognition.data.dataset import open_dataset
from recognition.data.recordio import FLOAT32_WHOLE
from recognition.data.shard_writer import ShardWriter
from recognition.errors import DataError, SettingsError
from tests.tools.rec_runs import run
from tools.records.reorder import MAX_BUCKETS

ROOT = Path(__file__).resolve().parents[3]
_OK, PNG = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))


def image(number):
    """A picture of 8×8 and, behind its end, what makes it one of its kind and its records of different lengths."""
    return PNG.tobytes() + number.to_bytes(4, "big") * (1 + number % 5)


def make_set(folder, people, first=0, names=True):
    """A set of people {name: number of images}; images are numbered from `first`."""
    folder.mkdir(parents=True)
    with ShardWriter(folder / "train.rec") as shard:
        number = first
        for label, (name, count) in enumerate(people.items()):
            for _ in range(count):
                shard.add(label, image(number), f"{name}/{number}.png")
                number += 1
    (folder / "property").write_text(f"{len(people)},8,8\n")
    if names:
        (folder / "labels.tsv").write_text("".join(f"{label}\t{name}\n" for label, name in enumerate(people)))
    else:
        (folder / "train.lst").unlink()
    return folder


def facts(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def contents(folder):
    """(name of the identity, image) of every sample, in order."""
    dataset = open_dataset(folder)
    names = dict(line.split("\t") for line in (folder / "labels.tsv").read_text().splitlines())
    return [(names[str(label)], bytes(dataset.encoded(at))) for at, label in enumerate(dataset.labels.tolist())]


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


PEOPLE = {"Ann": 3, "Bob": 1, "Çelik": 5, "Dee": 2}


@pytest.fixture
def one(tmp_path):
    return make_set(tmp_path / "one", PEOPLE)


# shuffle


def test_shuffle_keeps_every_image_and_its_label(tmp_path, capsys):
    people = {f"p{number}": 1 + number % 4 for number in range(60)}
    make_set(tmp_path / "set", people)
    report = facts(capsys, "shuffle", tmp_path / "set", tmp_path / "out")
    assert (report["images"], report["classes"], report["layout"]) == (150, 60, "im2rec")
    before, after = contents(tmp_path / "set"), contents(tmp_path / "out")
    assert Counter(before) == Counter(after)
    assert before != after
    assert facts(capsys, "verify", tmp_path / "out")["problems"] == []
    listed = [line.split("\t") for line in (tmp_path / "out" / "train.lst").read_text().splitlines()]
    for (_, _, path), (name, encoded) in zip(listed, after, strict=True):  # the images' names came along
        assert encoded == image(int(path.removeprefix(f"{name}/").removesuffix(".png")))
    places = np.array([before.index(entry) for entry in after])  # of the whole set, not of neighbourhoods
    assert np.abs(places - np.arange(150)).mean() > 30
    made_of = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (made_of["verb"], [source["images"] for source in made_of["sources"]]) == ("shuffle", [150])


def test_shuffle_is_a_function_of_the_seed_and_not_of_memory_or_shards(one, tmp_path):
    run("shuffle", one, tmp_path / "a")
    run("shuffle", one, tmp_path / "b", "--memory", 100 / 1e9)  # some ten bucket files
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    run("shuffle", one, tmp_path / "c", "--shards", 3)
    assert contents(tmp_path / "a") == contents(tmp_path / "c")
    assert len(list((tmp_path / "c").glob("train_*.rec"))) == 3
    run("shuffle", one, tmp_path / "d", "--seed", 1)
    assert contents(tmp_path / "a") != contents(tmp_path / "d")
    run("shuffle", tmp_path / "d", tmp_path / "e")  # of a set whose list is in another order than its source's
    assert Counter(contents(tmp_path / "e")) == Counter(contents(one))


def test_labels_above_float32_stay(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    labels = [3, FLOAT32_WHOLE + 1, FLOAT32_WHOLE + 5]
    with ShardWriter(tmp_path / "set" / "train.rec", label_base=FLOAT32_WHOLE) as shard:
        for number, label in enumerate(labels):
            shard.add(label, image(number), "name")
    (tmp_path / "set" / "train.lst").unlink()
    (tmp_path / "set" / "property").write_text(f"{FLOAT32_WHOLE + 9},8,8\nlabel_base={FLOAT32_WHOLE}\n")
    facts(capsys, "shuffle", tmp_path / "set", tmp_path / "out")
    out = open_dataset(tmp_path / "out")
    assert out.num_classes == FLOAT32_WHOLE + 9
    assert sorted((label, bytes(out.encoded(at))) for at, label in enumerate(out.labels.tolist())) == [
        (label, image(number)) for number, label in enumerate(labels)]


# merge


def test_merge_joins_identities_by_name(one, tmp_path, capsys):
    make_set(tmp_path / "two", {"Dee": 2, "Eve": 1, "Ann": 1}, first=100)
    report = facts(capsys, "merge", tmp_path / "out", one, tmp_path / "two")
    assert (report["images"], report["classes"], report["joined"], report["layout"]) == (15, 5, 2, "face")
    assert (tmp_path / "out" / "labels.tsv").read_text() == "0\tAnn\n1\tBob\n2\tÇelik\n3\tDee\n4\tEve\n"
    merged = contents(tmp_path / "out")
    assert Counter(merged) == Counter(contents(one) + contents(tmp_path / "two"))
    assert open_dataset(tmp_path / "out").labels.tolist() == sorted(open_dataset(tmp_path / "out").labels.tolist())
    assert (tmp_path / "out" / "labels_from.tsv").read_text().splitlines() == [
        "0\t0\t0", "1\t0\t1", "2\t0\t2", "3\t0\t3", "3\t1\t0", "4\t1\t1", "0\t1\t2"]
    assert facts(capsys, "verify", tmp_path / "out")["warnings"] == []


def test_merge_keeps_label_ranges_apart_when_asked(one, tmp_path, capsys):
    make_set(tmp_path / "else" / "one", {"Ann": 2, "Bob": 1}, first=100, names=False)
    with pytest.raises(SettingsError, match=r"one: no labels\.tsv and no list file.*--separate"):
        run("merge", tmp_path / "out", one, tmp_path / "else" / "one")
    report = facts(capsys, "merge", tmp_path / "out", one, tmp_path / "else" / "one", "--separate")
    assert [source["labels"] for source in report["sources"]] == ["0 to 3", "4 to 5"]
    assert (tmp_path / "out" / "labels.tsv").read_text().split("\n")[3:] == [
        "3\tone/Dee", "4\tone-2/0", "5\tone-2/1", ""]
    labels = open_dataset(tmp_path / "out").labels.tolist()
    assert labels == [0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3, 4, 4, 5]


def test_merge_takes_numbers_for_names_only_when_asked(one, tmp_path, capsys):
    make_set(tmp_path / "two", {"0": 2, "7": 1}, first=100)
    make_set(tmp_path / "three", {"7": 1, "8": 1}, first=200)
    sets = (tmp_path / "two", tmp_path / "three")
    with pytest.raises(SettingsError, match=r"two: all names are numbers, .*--separate keeps .*--by-name joins"):
        run("merge", tmp_path / "out", *sets)
    with pytest.raises(SettingsError, match=r"two: all names are numbers"):
        run("merge", tmp_path / "out", one, sets[0])
    with pytest.raises(SystemExit):
        run("merge", tmp_path / "out", *sets, "--by-name", "--separate")
    assert not (tmp_path / "out").exists()
    assert facts(capsys, "merge", tmp_path / "out", *sets, "--by-name")["joined"] == 1
    assert facts(capsys, "merge", tmp_path / "apart", *sets, "--separate")["joined"] == 0


def test_merge_refuses_a_file_given_twice(one, tmp_path):
    (tmp_path / "link").symlink_to(one)
    for again in (one, tmp_path / "link", one / "train.rec", tmp_path / "one" / ".." / "one"):
        with pytest.raises(SettingsError, match=r"train\.rec: given twice"):
            run("merge", tmp_path / "out", one, again)
    assert not (tmp_path / "out").exists()


def test_verbs_that_copy_pass_over_a_list_of_the_older_form(tmp_path, capsys):
    make_set(tmp_path / "set", PEOPLE, names=False)
    (tmp_path / "set" / "train.lst").write_text("1\tAnn/0.png\t0\n" * 11)
    facts(capsys, "shuffle", tmp_path / "set", tmp_path / "mixed")
    facts(capsys, "split", tmp_path / "set", tmp_path / "parts", "--share", 0.5)
    assert facts(capsys, "merge", tmp_path / "merged", tmp_path / "set", "--separate")["images"] == 11


def test_merged_shards_and_small_memory_give_the_same(one, tmp_path):
    run("shuffle", one, tmp_path / "mixed")
    run("merge", tmp_path / "a", tmp_path / "mixed")
    run("merge", tmp_path / "b", tmp_path / "mixed", "--memory", 1e-7)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == sorted(contents(one))
    run("merge", tmp_path / "c", tmp_path / "mixed", "--shards", 4)
    assert contents(tmp_path / "a") == contents(tmp_path / "c")


def test_merge_refuses_sets_of_other_sizes(one, tmp_path):
    make_set(tmp_path / "two", {"Eve": 1})
    (tmp_path / "two" / "property").write_text("1,112,96\n")
    with pytest.raises(DataError, match=r"two: images of 96×112 pixels, but .*one has 8×8"):
        run("merge", tmp_path / "out", one, tmp_path / "two")
    assert not (tmp_path / "out").exists()


# split


def test_split_has_no_identity_in_both(tmp_path, capsys):
    people = {f"p{number}": 1 + number % 4 for number in range(40)}
    make_set(tmp_path / "set", people)
    report = facts(capsys, "split", tmp_path / "set", tmp_path / "out", "--share", 0.25)
    train, held = contents(tmp_path / "out" / "train"), contents(tmp_path / "out" / "held_out")
    assert Counter(train + held) == Counter(contents(tmp_path / "set"))
    assert not {name for name, _ in train} & {name for name, _ in held}
    assert (report["train"]["classes"], report["held_out"]["classes"]) == (30, 10)
    assert np.unique(open_dataset(tmp_path / "out" / "train").labels).tolist() == list(range(30))
    assert (report["train"]["layout"], report["held_out"]["layout"]) == ("face", "face")
    run("split", tmp_path / "set", tmp_path / "again", "--share", 0.25)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "again")
    run("split", tmp_path / "set", tmp_path / "other", "--share", 0.25, "--seed", 5)
    assert contents(tmp_path / "other" / "held_out") != held


def test_split_by_a_list(one, tmp_path):
    (tmp_path / "list.txt").write_text("Çelik\n\nBob\n")
    run("split", one, tmp_path / "out", "--list", tmp_path / "list.txt")
    assert {name for name, _ in contents(tmp_path / "out" / "held_out")} == {"Bob", "Çelik"}
    (tmp_path / "list.txt").write_text("Bob\nNobody\n")
    with pytest.raises(DataError, match=r"list\.txt: line 2: no identity with the name 'Nobody'"):
        run("split", one, tmp_path / "out", "--list", tmp_path / "list.txt", "--replace")
    (tmp_path / "list.txt").write_text("\n".join(PEOPLE))
    with pytest.raises(DataError, match="lists 4 of 4 identities"):
        run("split", one, tmp_path / "out", "--list", tmp_path / "list.txt", "--replace")
    nameless = make_set(tmp_path / "nameless", PEOPLE, names=False)
    (tmp_path / "list.txt").write_text("2\n0\n")
    run("split", nameless, tmp_path / "numbers", "--list", tmp_path / "list.txt")
    assert (tmp_path / "numbers/held_out/labels_from.tsv").read_text() == "0\t0\t0\n1\t0\t2\n"
    assert (tmp_path / "numbers/train/labels_from.tsv").read_text() == "0\t0\t1\n1\t0\t3\n"
    assert not list((tmp_path / "numbers").rglob("labels.tsv"))  # numbers are no names
    with pytest.raises(SettingsError, match=r"nobody knows who is who"):
        run("merge", tmp_path / "whole", tmp_path / "numbers" / "train", tmp_path / "numbers" / "held_out")


# What is there already


def test_nothing_is_overwritten_unasked(one, tmp_path):
    run("shuffle", one, tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(SettingsError, match="out: is not empty; --replace"):
        run("shuffle", one, tmp_path / "out", "--seed", 1)
    assert files_of(tmp_path / "out") == before
    run("shuffle", one, tmp_path / "out", "--seed", 1, "--replace")
    assert files_of(tmp_path / "out") != before
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match=r"out: was not written by this command \(thesis\.tex\)"):
        run("shuffle", one, tmp_path / "out", "--replace")
    for target in (one, one / "inside", tmp_path):
        with pytest.raises(SettingsError, match=r"holds the source .* or lies in it"):
            run("shuffle", one, target, "--replace")
    foreign = make_set(tmp_path / "foreign", PEOPLE)
    with pytest.raises(DataError, match=r"foreign: was not written by this command \(no provenance\.json\)"):
        run("merge", foreign, one, "--replace")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "one", "out"]


def test_a_killed_shuffle_leaves_nothing_that_opens(tmp_path):
    make_set(tmp_path / "set", {"Ann": 10_000})
    command = [sys.executable, "tools/rec_builder.py", "shuffle", str(tmp_path / "set"), str(tmp_path / "out")]
    process = subprocess.Popen([*command, "--memory", "1e-3"], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (tmp_path / ".out.writing" / "train.rec").exists():
        assert process.poll() is None
        time.sleep(0.002)
    with pytest.raises(SettingsError, match="another process is writing it"):
        run("shuffle", tmp_path / "set", tmp_path / "out")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert run("shuffle", tmp_path / "set", tmp_path / "out") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]
    assert open_dataset(tmp_path / "out").num_images == 10_000


@pytest.mark.parametrize("arguments", [
    ("shuffle", "a", "b", "--memory", "0"), ("shuffle", "a", "b", "--memory", "nan"), ("split", "a", "b"),
    ("split", "a", "b", "--share", "1.5"), ("merge", "a"), ("shuffle", "a", "b", "--seed", "-1"),
])
def test_options_that_cannot_be_end_with_status_2(arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2


def test_too_many_buckets_and_shards_are_said(one, tmp_path):
    make_set(tmp_path / "many", {"Ann": MAX_BUCKETS + 1})
    with pytest.raises(SettingsError, match=r"--memory 1e-09 for 6\.\de-05 GB; expected at least 1\.\de-07"):
        run("shuffle", tmp_path / "many", tmp_path / "out", "--memory", 1e-9)
    with pytest.raises(SettingsError, match="--shards 12; expected 1 to 11"):
        run("shuffle", one, tmp_path / "out", "--shards", 12)
    assert not (tmp_path / "out").exists()
