"""eval/identification.py on generated folders, against the protocol written out probe by probe."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.identification import evaluate_identification, load_identification, main, read_face
from recognition.errors import DataError, NumericsError

ROOT = Path(__file__).resolve().parents[2]


def picture(person, generator, side):
    face = np.random.default_rng(person).integers(0, 256, (5, 5, 3)) + generator.normal(0, 90, (5, 5, 3))
    return cv2.resize(np.clip(face, 0, 255).astype(np.uint8), side, interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def tinyface(tmp_path_factory):
    """12 people with 2 probes and 1 to 4 gallery pictures each, 40 distractors, in sizes from 10×14 to 130×150."""
    folder = tmp_path_factory.mktemp("tiny") / "Testing_Set"
    generator = np.random.default_rng(0)

    def write(place, person):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        side = tuple(int(n) for n in generator.integers(10, 151, 2)) if generator.random() < 0.9 else (112, 112)
        cv2.imwrite(str(folder / place), picture(person, generator, side))

    for person in range(1, 13):
        for number in range(2):
            write(f"Probe/{person}_{number}.jpg", person)
        for number in range(int(generator.integers(1, 5))):
            write(f"Gallery_Match/{person}_{10 + number}.png", person)
    for number in range(40):
        write(f"Gallery_Distractor/{number}.jpg", 1000 + number)
    return folder.parent


def by_hand(embed, folder, flip):
    """Everything pictures by pictures, nothing in blocks."""

    def feature(path):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        if image.shape[:2] != (112, 112):
            area = image.shape[0] > 112 and image.shape[1] > 112
            image = cv2.resize(image, (112, 112), interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)
        vector = embed(image[None])[0].astype(np.float64)
        if flip:
            vector = vector + embed(image[None, :, ::-1])[0]
        return vector / np.linalg.norm(vector)

    test = folder / "Testing_Set"
    entries = [(path.name.split("_")[0], feature(path)) for path in (test / "Gallery_Match").iterdir()]
    entries += [(None, feature(path)) for path in (test / "Gallery_Distractor").iterdir()]
    hits, precisions = dict.fromkeys((1, 5, 10, 20, 50), 0), []
    probes = list((test / "Probe").iterdir())
    for path in probes:
        mine, vector = path.name.split("_")[0], feature(path)
        ranked = sorted(entries, key=lambda entry: -float(vector @ entry[1]))
        places = [place for place, (subject, _) in enumerate(ranked, 1) if subject == mine]
        for k in hits:
            hits[k] += places[0] <= k
        area = 0.0
        for found, place in enumerate(places, 1):
            before = (found - 1) / (place - 1) if place > 1 else 1.0
            area += (before + found / place) / 2 / len(places)
        precisions.append(area)
    return {**{f"rank{k}": n / len(probes) for k, n in hits.items()}, "map": np.mean(precisions)}


@pytest.mark.parametrize("flip", [True, False])
def test_the_protocol_by_hand(tinyface, cheap_network, flip):
    found = evaluate_identification(cheap_network, load_identification(tinyface), flip=flip)
    expected = by_hand(cheap_network, tinyface, flip)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert 0.2 < found["rank1"] < found["rank50"] <= 1  # a set that tells models apart
    assert (found["probes"], found["distractors"], found["without_mate"]) == (24, 40, 0)
    assert set(found["mean_norm"]) == {"probe", "gallery", "distractor"}


def test_lists_and_folders_of_people_say_the_same(tinyface, cheap_network, tmp_path):
    expected = evaluate_identification(cheap_network, load_identification(tinyface))
    lists = tmp_path / "lists"
    people = tmp_path / "people"
    lists.mkdir()
    test = tinyface / "Testing_Set"
    for role, name in {"probe": "Probe", "gallery": "Gallery_Match", "distractor": "Gallery_Distractor"}.items():
        lines = []
        for path in (test / name).iterdir():
            subject = path.name.split("_")[0]
            lines.append(str(path) + ("" if role == "distractor" else f" person-{subject}"))
            copy = people / name / path.name.replace("_", "/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        (lists / f"{role}.txt").write_text("\n".join(lines) + "\n")
    for folder in (lists, people):
        found = evaluate_identification(cheap_network, load_identification(folder))
        assert found["set"] == folder.name
        for key in ("probes", "gallery", "distractors", "without_mate", "rank1", "rank5", "map", "map_steps"):
            assert found[key] == pytest.approx(expected[key], abs=1e-9), key


def test_folders_inside_a_persons_folder_are_no_people(tmp_path):
    image = np.full((20, 20, 3), 9, np.uint8)
    for place in ("Probe/ann/session1/x.png", "Probe/ben/session1/x.png", "Gallery_Match/ann/y.png",
                  "Gallery_Match/ben/2020/may/y.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / place), image)
    pictures = load_identification(tmp_path)
    assert pictures.probe_subject == pictures.gallery_subject == ["ann", "ben"]


def test_without_distractors_and_with_strangers(tinyface, cheap_network, tmp_path):
    test = tinyface / "Testing_Set"
    probes = [f"{path}\t{path.name.split('_')[0]}" for path in sorted((test / "Probe").iterdir())]
    gallery = [f"{path}\t{path.name.split('_')[0]}" for path in sorted((test / "Gallery_Match").iterdir())]
    (tmp_path / "probe.txt").write_text("\n".join([*probes, f"{test}/Probe/1_0.jpg\tsomebody else"]))
    (tmp_path / "gallery.txt").write_text("\n".join(gallery))
    found = evaluate_identification(cheap_network, load_identification(tmp_path))
    assert (found["distractors"], found["without_mate"], found["probes"]) == (0, 1, 25)
    assert found["mean_norm"]["distractor"] is None
    assert found["rank50"] == 1  # of the 24, among fewer than 50 entries
    with_distractors = evaluate_identification(cheap_network, load_identification(tinyface))
    assert found["rank1"] >= with_distractors["rank1"]


def test_resized_as_a_whole(tmp_path):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 20:] = 255
    cv2.imwrite(str(tmp_path / "wide.png"), image)
    face = read_face(tmp_path / "wide.png")
    assert face.shape == (112, 112, 3)
    assert face[:, :50].max() == 0
    assert face[:, 62:].min() == 255
    same = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "right.png"), cv2.cvtColor(same, cv2.COLOR_RGB2BGR))
    assert (read_face(tmp_path / "right.png") == same).all()


def one_of_each(folder):
    image = np.full((20, 20, 3), 9, np.uint8)
    for place in ("Probe/1_0.png", "Gallery_Match/1_1.png", "Gallery_Distractor/5.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / place), image)


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(DataError, match=r"expected a folder Probe or a list probe\.txt"):
        load_identification(tmp_path)
    one_of_each(tmp_path)
    (tmp_path / "Probe" / "2_0.jpg").write_bytes(b"no picture")
    (tmp_path / "Gallery_Distractor" / "6.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 5 pictures cannot be read: .*2_0\.jpg, .*6\.jpg \(not a JPEG"):
        load_identification(tmp_path)
    (tmp_path / "Probe" / "2_0.jpg").rename(tmp_path / "Probe" / "nobody.jpg")
    with pytest.raises(DataError, match=r"1 pictures are not named ID_…: .*nobody\.jpg"):
        load_identification(tmp_path)


def test_a_picture_cut_behind_its_header_is_named(tmp_path, cheap_network):
    one_of_each(tmp_path)
    path = tmp_path / "Gallery_Distractor" / "5.png"
    path.write_bytes(path.read_bytes()[:40])
    pictures = load_identification(tmp_path)
    with pytest.raises(DataError, match=r"5\.png: the image"):
        evaluate_identification(cheap_network, pictures)


def test_lines_that_are_wrong_are_numbered(tmp_path):
    (tmp_path / "probe.txt").write_text("a.png 1\nb.png\n")
    with pytest.raises(DataError, match=r"probe\.txt: line 2: expected `path identity`, got 'b\.png'"):
        load_identification(tmp_path)
    (tmp_path / "probe.txt").write_text("a.png 1\n")
    with pytest.raises(DataError, match=r"gallery\.txt: cannot be read"):
        load_identification(tmp_path)
    (tmp_path / "gallery.txt").write_text("")
    with pytest.raises(DataError, match="no pictures in the gallery"):
        load_identification(tmp_path)
    (tmp_path / "gallery.txt").write_text("b.png 1\n")
    with pytest.raises(DataError, match=r"2 of 2 pictures cannot be read: .*a\.png, .*b\.png \(No such file"):
        load_identification(tmp_path)


def test_embeddings_that_are_not_finite_are_named(tmp_path):
    one_of_each(tmp_path)
    pictures = load_identification(tmp_path)
    with pytest.raises(NumericsError, match=r"1_0\.png"):
        evaluate_identification(lambda images: np.full((len(images), 4), np.nan, np.float32), pictures)


def test_command(tinyface, tmp_path, capsys, real_data):
    model = next((real_data / "third_party" / "mobilefacenet").glob("*.onnx"))
    main([str(model), str(tinyface), "--json", str(tmp_path / "out.json"), "--threads", "1"])
    result = json.loads((tmp_path / "out.json").read_text())
    out = capsys.readouterr().out
    assert "24 probes, 27 in the gallery, 40 distractors" in out
    assert f"{100 * result['rank1']:.2f}" in out
    assert list(result) == [
        "set", "probes", "gallery", "distractors", "without_mate",
        "rank1", "rank5", "rank10", "rank20", "rank50", "map", "map_steps", "mean_norm",
    ]  # fmt: skip


def test_exit_status_of_an_unreadable_picture(tmp_path):
    one_of_each(tmp_path)
    (tmp_path / "Probe" / "1_0.png").write_bytes(b"GIF89a")
    command = [sys.executable, "-m", "eval.identification", "no.onnx", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "1_0.png" in done.stderr
