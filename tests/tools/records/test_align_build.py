"""From ordinary pictures to aligned training images: by landmarks that are given, and by those that are found."""

import csv
import json

import cv2
import numpy as np
import pytest

from recognition.data.align import align_face
from recognition.data.dataset import open_dataset
from recognition.data.face_detector import FaceDetector
from recognition.data.image_file import decode_rgb, encode_jpeg
from recognition.errors import DataError, SettingsError
from tools import rec_builder
from tools.records import workers


def built(source, out, *options):
    assert rec_builder.main(["build", str(source), str(out), *map(str, options), "--json", f"{out}.json"]) == 0
    return json.loads((out.parent / f"{out.name}.json").read_text())


def points_of(path):
    with open(path, newline="") as file:
        return {row["path"]: np.array([[float(row[f"{axis}{n}"]) for axis in "xy"] for n in range(1, 6)])
                for row in csv.DictReader(file)}


def names_of(folder):
    return [line.split("\t")[2] for line in (folder / "train.lst").read_text().splitlines()]


@pytest.fixture
def pictures(tmp_path):
    """Two people with two smooth pictures of 150×200, and landmarks of three of them."""
    generator = np.random.default_rng(5)
    lines = ["score,path," + ",".join(f"x{n},y{n}" for n in range(1, 6))]
    for name in ("a/1.jpg", "a/2.png", "b/1.jpg", "b/2.jpg"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = cv2.resize(generator.integers(0, 256, (5, 7, 3), np.uint8), (200, 150), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(path), image)
        points = np.array([[60, 50], [110, 48], [85, 75], [65, 100], [105, 99]]) + generator.normal(0, 2, (5, 2))
        lines.append("0.9," + name + "," + ",".join(f"{value:.3f}" for value in points.ravel()))
    (tmp_path / "landmarks.csv").write_text("\n".join(lines[:-1]) + "\n")
    return tmp_path / "pictures"


def test_pictures_are_warped_from_their_landmarks(pictures, tmp_path):
    report = built(pictures, tmp_path / "set", "--align", tmp_path / "landmarks.csv")
    assert (report["images"], report["encoded"], report["copied"]) == (3, {"jpeg": 2, "png": 1}, 0)
    assert report["without_face"] == [{"path": "b/2.jpg", "reason": "no landmarks of it are listed"}]
    assert (tmp_path / "set" / "without_face.tsv").read_text() == "b/2.jpg\tno landmarks of it are listed\n"
    points, dataset = points_of(tmp_path / "landmarks.csv"), open_dataset(tmp_path / "set")
    for row, name in enumerate(names_of(tmp_path / "set")):
        wanted = align_face(decode_rgb((pictures / name).read_bytes()), points[name].astype(np.float32))
        assert bytes(dataset.encoded(row)) == encode_jpeg(wanted, 95)


def test_landmarks_of_a_list_are_used(pictures, tmp_path):
    points = points_of(tmp_path / "landmarks.csv")
    lines = ["1\ta/1.jpg\t0"]
    for number, (name, five) in enumerate(points.items()):
        numbers = [0, 0, 9, 9, *five[:, 0], *five[:, 1]]
        lines.append("\t".join(["0", name, str(number // 2), *map(str, numbers)]))
    (pictures / "older.lst").write_text("\n".join(lines[1:]))
    built(pictures / "older.lst", tmp_path / "list")
    built(pictures, tmp_path / "csv", "--align", tmp_path / "landmarks.csv")
    assert (tmp_path / "list" / "train.rec").read_bytes() == (tmp_path / "csv" / "train.rec").read_bytes()


def test_faults_of_landmarks(pictures, tmp_path):
    text = (tmp_path / "landmarks.csv").read_text()
    for old, new, reason in [
        ("x3,", "z3,", "line 1: no column x3"), ("a/1.jpg", "x/1.jpg", None),
        ("0.9,a/1.jpg,", "0.9,a/1.jpg,nan,", "fields"),
        ("b/1.jpg", "a/1.jpg", "a/1.jpg stands there twice"), ("score,path", "score,file", "no column path"),
    ]:
        (tmp_path / "bad.csv").write_text(text.replace(old, new))
        if reason is None:
            assert built(pictures, tmp_path / "set", "--align", tmp_path / "bad.csv")["images"] == 2
            continue
        with pytest.raises(DataError) as caught:
            built(pictures, tmp_path / "other", "--align", tmp_path / "bad.csv")
        assert reason in str(caught.value)
    (tmp_path / "bad.csv").write_text(text.replace("/", "_"))
    with pytest.raises(DataError, match=r"landmarks of none of the source's 4 pictures; it has 'a_1\.jpg', the source"):
        built(pictures, tmp_path / "other", "--align", tmp_path / "bad.csv")


def test_a_model_that_is_none(pictures, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    for processes in (100, 1):
        monkeypatch.setattr(workers, "_FACES_FOR_A_PROCESS", processes)
        with pytest.raises(SettingsError, match=r"model\.onnx: OpenCV cannot use it as a YuNet face detector"):
            built(pictures, tmp_path / "set", "--detect", tmp_path / "model.onnx", "--workers", 2)
    assert not (tmp_path / "set").exists()


def test_ordinary_pictures_become_a_training_set(real_data, tmp_path):
    """Landmarks found agree with those listed to a fiftieth of a pixel, and the images with those of --align."""
    source, model = real_data / "lfw_uncropped", real_data / "third_party" / "yunet" / "yunet_n_dynamic.onnx"
    report = built(source, tmp_path / "found", "--detect", model, "--workers", 1)
    assert (report["images"], report["identities"], report["without_face"]) == (60, 12, [])
    listed, found = points_of(source / "landmarks.csv"), points_of(tmp_path / "found" / "landmarks.csv")
    assert max(np.abs(listed[name] - found[name]).max() for name in listed) < 0.02
    built(source, tmp_path / "listed", "--align", source / "landmarks.csv")
    one, two = open_dataset(tmp_path / "found"), open_dataset(tmp_path / "listed")
    gaps = [np.abs(decode_rgb(one.encoded(row)).astype(int) - decode_rgb(two.encoded(row))).mean() for row in range(60)]
    assert max(gaps) < 1  # grey level, of landmarks that were rounded to 0.01 pixels
    assert rec_builder.main(["verify", str(tmp_path / "found")]) == 0
    built(source, tmp_path / "two", "--detect", model, "--workers", 2)
    assert (tmp_path / "two" / "train.rec").read_bytes() == (tmp_path / "found" / "train.rec").read_bytes()


def test_pictures_without_a_face_are_listed(real_data, tmp_path):
    model = real_data / "third_party" / "yunet" / "yunet_n_dynamic.onnx"
    faces = sorted((real_data / "lfw_uncropped").glob("*/*.jpg"))
    for number, path in enumerate([*faces[:2], None]):
        (tmp_path / "pictures" / "someone").mkdir(parents=True, exist_ok=True)
        image = np.full((250, 250, 3), 90, np.uint8) if path is None else cv2.imread(str(path))
        cv2.imwrite(str(tmp_path / "pictures" / "someone" / f"{number}.png"), image)
    report = built(tmp_path / "pictures", tmp_path / "set", "--detect", model)
    assert report["without_face"] == [{"path": "someone/2.png", "reason": "no face was found"}]
    assert (report["images"], report["encoded"]) == (2, {"png": 2})


def test_the_largest_central_face_at_any_scale(real_data):
    """Beside a smaller one at the border, and in a picture of 2000 pixels, the same face is found at the same place."""
    detector = FaceDetector(real_data / "third_party" / "yunet" / "yunet_n_dynamic.onnx")
    paths = sorted((real_data / "lfw_uncropped").glob("*/*.jpg"))
    first, second = (decode_rgb(path.read_bytes()) for path in (paths[0], paths[7]))
    alone = detector.find(first).landmarks
    canvas = np.zeros((400, 700, 3), np.uint8)
    canvas[75:325, 225:475] = first
    canvas[:150, :150] = cv2.resize(second, (150, 150), interpolation=cv2.INTER_AREA)
    assert np.abs(detector.find(canvas).landmarks - (225, 75) - alone).max() < 3
    large = cv2.resize(first, (2000, 2000), interpolation=cv2.INTER_CUBIC)
    assert np.abs((detector.find(large).landmarks + 0.5) / 8 - 0.5 - alone).max() < 3
    assert detector.find(np.zeros((30, 1, 3), np.uint8)) is None
