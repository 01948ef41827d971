"""eval/ijb_lists.py: good folders in the forms they come in, broken ones with the place named."""

import shutil

import numpy as np
import pytest

from eval import ijb_lists
from eval.ijb_lists import find_target, load_ijb, protocols_of
from recognition.errors import DataError, SettingsError


def rewrite(folder, name, change):
    path = folder / "meta" / f"ijbc_{name}"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))


def test_positions_and_subjects(tmp_path, make_ijb):
    loaded = load_ijb(make_ijb(tmp_path / "set"))
    assert loaded.template_ids.tolist() == [700 + 13 * template for template in range(18)]
    assert (len(loaded.first), loaded.issame.sum()) == (153, 18)
    assert ((loaded.first % 6 == loaded.second % 6) == loaded.issame).all()
    search = loaded.search
    assert {name: sorted(rows) for name, rows in search.galleries.items()} == {"G1": [0, 1], "G2": [2, 3]}
    assert sorted(search.probe) == list(range(6, 18))
    assert [search.subject[rows].tolist() for rows in ([0, 1, 2, 3], [4, 5], [6, 17])] == [
        [40, 41, 42, 43], [-1, -1], [40, 45]]  # fmt: skip
    assert (loaded.states > 0).all()


def test_lists_with_a_line_per_image_and_more_columns(tmp_path, make_ijb):
    folder = make_ijb(tmp_path / "set")
    before = load_ijb(folder).search
    for name in ("1N_gallery_G1.csv", "1N_probe_mixed.csv"):
        rewrite(folder, name, lambda lines: [f"\ufeff{lines[0]},FILENAME", *(f"{x},img/1.jpg" for x in lines[1:]),
                                             *(f"{x},frames/2.jpg" for x in lines[:0:-1])])  # fmt: skip
    after = load_ijb(folder).search
    np.testing.assert_array_equal(after.probe, before.probe)
    np.testing.assert_array_equal(after.galleries["G1"], before.galleries["G1"])


def test_the_pair_list_is_read_in_parts(tmp_path, make_ijb, monkeypatch):
    folder = make_ijb(tmp_path / "set")
    whole = load_ijb(folder)
    monkeypatch.setattr(ijb_lists, "LINES_AT_ONCE", 10)
    for name in ("first", "second", "issame"):
        np.testing.assert_array_equal(getattr(load_ijb(folder), name), getattr(whole, name))
    rewrite(folder, "template_pair_label.txt", lambda lines: [*lines[:37], "700 9 0", *lines[38:]])
    with pytest.raises(DataError, match="line 38: template 9 has no face"):
        load_ijb(folder)


def test_which_target_and_which_protocols(tmp_path, make_ijb):
    folder = make_ijb(make_ijb(tmp_path / "set", "ijbc"), "ijbb")
    assert find_target(folder, "IJBB") == "IJBB"
    assert load_ijb(folder, "IJBB").search.galleries.keys() == {"S1", "S2"}
    with pytest.raises(SettingsError, match="say which with --target IJBB or --target IJBC"):
        load_ijb(folder)
    meta = folder / "meta"
    assert protocols_of(folder, "IJBC") == (["1:1", "1:N"], [])
    assert protocols_of(folder, "IJBC", ["1:N", "1:1"]) == (["1:1", "1:N"], [])
    (meta / "ijbc_1N_gallery_G2.csv").unlink()
    assert protocols_of(folder, "IJBC") == (["1:1"], [f"no 1:N: {meta} lacks ijbc_1N_gallery_G2.csv"])
    with pytest.raises(DataError, match=r"ijbc_1N_gallery_G2.csv: no such list; 1:N needs it"):
        protocols_of(folder, "IJBC", ["1:N"])
    (meta / "ijbb_template_pair_label.txt").unlink()
    assert protocols_of(folder, "IJBB") == (["1:N"], [f"no 1:1: {meta} lacks ijbb_template_pair_label.txt"])
    only_search = load_ijb(folder, "IJBB")
    assert len(only_search.issame) == 0
    (meta / "ijbb_face_tid_mid.txt").unlink()
    assert find_target(folder) == "IJBC"
    with pytest.raises(DataError, match=r"expected ijbb_face_tid_mid.txt, got \['IJBC'\]"):
        find_target(folder, "IJBB")


def broken(name, change):
    return lambda folder: rewrite(folder, name, change)


def first_line(text):
    return lambda lines: [text, *lines[1:]]


def after_the_head(text):
    return lambda lines: [lines[0], text, *lines[2:]]


FACES, POINTS = "face_tid_mid.txt", "name_5pts_score.txt"
PAIRS, PROBES = "template_pair_label.txt", "1N_probe_mixed.csv"
BROKEN = {
    "no lists": (lambda folder: shutil.rmtree(folder / "meta"), "expected ijbb_face_tid_mid.txt or .*, got neither"),
    "no pairs, no galleries": (
        lambda folder: [path.unlink() for path in (folder / "meta").glob("*_[p1][aN]*")],
        "template_pair_label.txt: no such list; 1:1 needs it",
    ),
    "no images": (lambda folder: shutil.rmtree(folder / "loose_crop"), "loose_crop: cannot be read"),
    "missing images": (lambda folder: (folder / "loose_crop" / "3.png").unlink(), "1 of .* images are missing: 3.png"),
    "an empty image": (lambda folder: (folder / "loose_crop" / "3.png").write_bytes(b""), "1 of .* are empty: 3.png"),
    "a folder as image": (
        lambda folder: [(folder / "loose_crop" / "3.png").unlink(), (folder / "loose_crop" / "3.png").mkdir()],
        "1 of .* images are missing: 3.png",
    ),
    "image outside": (broken(FACES, first_line("../x.png 700 1")), "line 1: expected the name of a file, got '../x"),
    "short line": (broken(FACES, first_line("1.png 700")), "line 1: expected 3 columns, got 2"),
    "no numbers": (broken(FACES, first_line("1.png seven 1")), "line 1: not numbers: seven 1"),
    "too large a number": (broken(FACES, first_line(f"1.png {2**64} 1")), "line 1: not numbers: 1844"),
    "landmark missing": (broken(POINTS, lambda lines: lines[1:]), "no landmarks for 1 faces"),
    "score nan": (
        broken(POINTS, lambda lines: [f"{lines[0].rsplit(maxsplit=1)[0]} nan", *lines[1:]]),
        "png: a landmark or score is not finite",
    ),
    "template unknown": (broken(PAIRS, first_line("700 701 0")), "line 1: template 701 has no face"),
    "label 2": (broken(PAIRS, first_line("700 713 2")), "line 1: expected label 0 or 1, got 2"),
    "label text": (broken(PAIRS, first_line("700 713 yes")), "line 1: not numbers: 700 713 yes"),
    "two columns": (broken(PAIRS, lambda lines: [*lines[:4], "700 713", *lines[5:]]), "line 5: expected 3 columns"),
    "an empty line": (broken(PAIRS, lambda lines: [*lines[:4], "", *lines[5:]]), "line 5: not numbers: $"),
    "only one label": (
        broken(PAIRS, lambda lines: [line for line in lines if line.endswith("1")]),
        "expected pairs of both labels, all 18 have 1",
    ),
    "empty pairs": (broken(PAIRS, lambda lines: []), "empty; expected lines of"),
    "empty faces": (broken(FACES, lambda lines: []), "empty"),
    "no header": (broken(PROBES, lambda lines: lines[1:]), r"line 1: expected a header, got numbers: \d+,4\d"),
    "only a header": (broken(PROBES, lambda lines: lines[:1]), "expected a header line and lines of .*, got one line"),
    "probe unknown": (broken(PROBES, after_the_head("701,40")), "line 2: template 701 has no face"),
    "subject text": (broken(PROBES, after_the_head("700,Ann")), "line 2: not numbers: 700 Ann"),
    "subject negative": (broken(PROBES, after_the_head("700,-5")), "line 2: subject -5; expected 0 or above"),
    "two subjects": (broken(PROBES, after_the_head("700,41")), "line 2: template 700 is of subject 40 in an earlier"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_refused_with_the_place_named(tmp_path, make_ijb, name):
    folder = make_ijb(tmp_path / "set")
    change, text = BROKEN[name]
    change(folder)
    with pytest.raises(DataError, match=text) as error:
        load_ijb(folder)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)
