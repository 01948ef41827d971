"""`python -m eval.embed MODEL FOLDER OUT`: what is written of which pictures, and what is left out or refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pyarrow import parquet

from eval import embed_command, embedding_file
from eval.embed import TorchEmbedder, load_embedder
from eval.embed_command import embed_pictures
from eval.norm_quality import NormQuality, judged
from eval.pictures import FaceMaker, ReadingError, open_pictures
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.data.align import align_face
from recognition.data.dataset import open_dataset
from recognition.data.face_detector import FaceDetector
from recognition.data.image_file import decode_rgb
from recognition.errors import CheckpointError, DataError, NumericsError, SettingsError
from tools.export_onnx import export
from tools.exporting.form import Form

ROOT = Path(__file__).resolve().parents[2]


def write_picture(path, number, size=112):
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    image = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(path), image)
    return image[:, :, ::-1]


@pytest.fixture
def folder(tmp_path):
    """Five pictures at three depths, one file that is cut, and others that are no pictures."""
    root = tmp_path / "faces"
    for number, name in enumerate(["b.png", "a.PNG", "x/1.png", "x/y/2.jpg", "x/10.webp"]):
        write_picture(root / name, number)
    (root / "x" / "0.jpg").write_bytes((root / "x" / "y" / "2.jpg").read_bytes()[:400])
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"")
    (root / ".thumbnails").mkdir()
    write_picture(root / ".thumbnails" / "1.png", 9)
    return root


NAMES = ["a.PNG", "b.png", "x/1.png", "x/10.webp", "x/y/2.jpg"]  # what can be used, in the order written


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model file that carries its measure of quality."""
    settings = BackboneSettings("tiny", embedding_size=8)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(path, build(settings), settings, {"norms": {"mean": 4.0, "deviation": 0.5, "tau": 2.0}})
    return path


def read(path):
    """Columns of either format, and what they say of themselves."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
        return columns, json.loads(str(columns.pop("about")))
    table = parquet.read_table(path)
    columns = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    return columns, json.loads(table.schema.metadata[b"about"])


@pytest.mark.parametrize(("ending", "flip"), [("parquet", False), ("npz", True)])
def test_a_folder(folder, tmp_path, model, monkeypatch, capsys, ending, flip):
    monkeypatch.setattr(embed_command, "FACES_AT_ONCE", 2)
    monkeypatch.setattr(embedding_file, "ROWS_AT_ONCE", 2)
    out = tmp_path / "new folder" / f"out.{ending}"
    options = ["--threads", "1", "--device", "cpu", *(["--flip"] if flip else [])]
    assert embed_command.main([str(model), str(folder), str(out), *options]) is None
    said = capsys.readouterr()
    assert "left out: x/0.jpg: " in said.err
    assert f"{out}: 5 embeddings of 8 numbers, 1 pictures left out" in said.out
    assert [path.name for path in out.parent.iterdir()] == [out.name]

    columns, about = read(out)
    assert list(columns) == ["file", "embedding", "norm", "quality", "recognizable"]
    assert columns["file"].tolist() == NAMES
    images = np.stack([decode_rgb((folder / name).read_bytes()) for name in NAMES])
    embedder = load_embedder(model, 1, "cpu")
    straight, mirrored = embedder.embed(images), embedder.embed(np.ascontiguousarray(images[:, :, ::-1]))
    np.testing.assert_allclose(columns["embedding"], straight + mirrored if flip else straight, rtol=1e-4, atol=1e-3)
    norm = np.linalg.norm(straight, axis=1)  # of the image alone, as the model's own μ and σ are
    np.testing.assert_allclose(columns["norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(columns["quality"], (norm - 4) / 0.5, rtol=1e-4)
    assert columns["recognizable"].tolist() == (norm >= 3).tolist()
    assert about == {"model": "model.pt", "flip": flip, "pixels": "RGB, (pixel − 127.5) / 127.5", "quality_mean": 4.0,
                     "quality_std": 0.5, "quality_threshold": -2.0}


def test_types_on_disk(folder, tmp_path, model):
    (folder / "x" / "0.jpg").unlink()
    for ending in ("parquet", "npz"):
        embed_command.main([str(model), str(folder), str(tmp_path / f"out.{ending}"), "--threads", "1"])
    kinds = {field.name: str(field.type) for field in parquet.read_schema(tmp_path / "out.parquet")}
    assert kinds["file"] == "string"
    assert kinds["embedding"].startswith("fixed_size_list<")
    assert kinds["embedding"].endswith("float>[8]")
    assert (kinds["norm"], kinds["quality"], kinds["recognizable"]) == ("float", "float", "bool")
    columns, _ = read(tmp_path / "out.npz")
    assert [columns[name].dtype.str for name in ("embedding", "norm", "quality", "recognizable")] == [
        "<f4", "<f4", "<f4", "|b1"]


def test_a_graph_that_gives_the_quality(folder, tmp_path, model):
    """The same qualities from a file of unit length with an output for them as from the model file it is made of."""
    export(model, tmp_path / "unit.onnx", form=Form(unit=True, quality=True, norms="run"))
    for path, name in ((model, "pt"), (tmp_path / "unit.onnx", "onnx")):
        embed_command.main([str(path), str(folder), str(tmp_path / f"{name}.npz"), "--threads", "1", "--flip"])
    (wanted, told), (found, about) = (read(tmp_path / f"{name}.npz") for name in ("pt", "onnx"))
    np.testing.assert_allclose(found["quality"], wanted["quality"], atol=1e-2)
    assert found["recognizable"].tolist() == (found["quality"] >= -2).tolist() == wanted["recognizable"].tolist()
    np.testing.assert_allclose(found["norm"], 1, rtol=1e-5)
    assert {key: value for key, value in about.items() if key.startswith("quality")} == {
        key: value for key, value in told.items() if key.startswith("quality")}


def test_a_record_set_has_labels_and_no_quality_where_the_model_knows_none(small_set, tmp_path):
    settings = BackboneSettings("tiny", embedding_size=8)
    save_model(tmp_path / "m.pt", build(settings), settings, {"run": "r"})
    embed_command.main([str(tmp_path / "m.pt"), str(small_set), str(tmp_path / "out.npz"), "--threads", "1"])
    columns, about = read(tmp_path / "out.npz")
    assert list(columns) == ["file", "label", "embedding", "norm"]
    dataset = open_dataset(small_set)
    assert columns["label"].tolist() == dataset.labels.tolist()
    assert (columns["file"][0], columns["file"][-1], len(columns["file"])) == ("train.rec:1", "train.rec:96", 96)
    image = decode_rgb(dataset.encoded(95))[None]
    wanted = load_embedder(tmp_path / "m.pt", 1).embed(image)[0]
    np.testing.assert_allclose(columns["embedding"][95], wanted, rtol=1e-4, atol=1e-3)
    assert "quality_mean" not in about


class Cheap:
    """Mean colours as an embedding; what it was given is kept."""

    name, dim, notes, quality = "cheap", 3, [], NormQuality(0.0, 1.0, 0.0)
    pixels = None

    def __init__(self, value=None):
        self.seen, self.value = [], value

    def embed(self, images):
        self.seen.append(images)
        mean = images.mean(axis=(1, 2)).astype(np.float32)
        return mean if self.value is None else np.full_like(mean, self.value)

    def embed_and_judge(self, images):
        return judged(self.embed(images), self.quality)


@pytest.mark.parametrize("block", [1, 2, 128])
@pytest.mark.parametrize("name", ["0.png", "z.png"])  # the first and the last picture
def test_another_size_is_left_out(folder, tmp_path, monkeypatch, capsys, block, name):
    """As what is cut, wherever it stands; the others are written."""
    monkeypatch.setattr(embed_command, "FACES_AT_ONCE", block)
    write_picture(folder / name, 50, 113)
    out = tmp_path / "out.npz"
    assert embed_pictures(Cheap(), open_pictures(folder), FaceMaker(), out, threads=1) == (5, 2)
    assert read(out)[0]["file"].tolist() == NAMES
    said = capsys.readouterr().err
    assert said.count(f"left out: {name}: 113×113 pixels; expected aligned faces of 112×112") == 1
    assert said.count("left out: ") == 2


def test_only_other_sizes_are_refused_unless_asked_for(folder, tmp_path, model, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out.npz"
    for number in range(3):
        big = write_picture(photos / f"{number}.png", 50, 300)
    (photos / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(SettingsError, match=r"none of 4 .*, 3 for their size: 0\.png: 300×300 .*112×112\. --detect Y"):
        embed_command.main([str(model), str(photos), str(out), "--threads", "1"])
    assert capsys.readouterr().err.count("left out: ") == 1, "a line for each of a million photos helps nobody"
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))
    (photos / "0.png").replace(folder / "big.png")
    cheap = Cheap()
    assert embed_pictures(cheap, open_pictures(folder), FaceMaker(resize=True), out, threads=1) == (6, 1)
    area = cv2.resize(np.ascontiguousarray(big), (112, 112), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(cheap.seen[0][2], area)  # a.PNG, b.png, big.png
    with pytest.raises(SettingsError, match="choose one"):
        embed_command.main([str(model), str(folder), str(out), "--resize", "--detect", "yunet.onnx"])


def test_one_picture(folder, tmp_path, model):
    out = tmp_path / "out.npz"
    embed_command.main([str(model), str(folder / "x" / "1.png"), str(out), "--threads", "1"])
    columns, _ = read(out)
    assert columns["file"].tolist() == ["1.png"]
    image = decode_rgb((folder / "x" / "1.png").read_bytes())[None]
    np.testing.assert_allclose(columns["embedding"], load_embedder(model, 1, "cpu").embed(image), rtol=1e-4, atol=1e-3)
    with pytest.raises(DataError, match=r"notes\.txt: expected a folder of pictures, a picture \(\.jpg.*\.rec file"):
        embed_command.main([str(model), str(folder / "notes.txt"), str(out)])


def test_what_a_picture_holds_decides_and_not_its_name(folder, tmp_path, capsys):
    (folder / "b.png").replace(folder / "b.jfif")
    cv2.imwrite(str(folder / "c.tif"), np.zeros((112, 112, 3), np.uint8))
    assert embed_pictures(Cheap(), open_pictures(folder), FaceMaker(), tmp_path / "out.npz", threads=1) == (5, 2)
    assert "b.jfif" in read(tmp_path / "out.npz")[0]["file"]
    assert "left out: c.tif: not a JPEG, PNG, BMP or WebP image" in capsys.readouterr().err


def test_nothing_that_can_be_used(tmp_path, model, capsys):
    with pytest.raises(DataError, match="no such folder"):
        embed_command.main([str(model), str(tmp_path / "none"), "out.npz"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in it or below"):
        embed_command.main([str(model), str(tmp_path / "empty"), "out.npz"])
    (tmp_path / "bad").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "bad" / name).write_bytes(b"no picture")
    (tmp_path / "out.npz").write_bytes(b"an older file")
    with pytest.raises(DataError, match=r"none of 2 pictures can be used; .*out\.npz is not written") as error:
        embed_command.main([str(model), str(tmp_path / "bad"), str(tmp_path / "out.npz")])
    assert error.value.status == 3
    assert capsys.readouterr().err.count("left out: ") == 2
    assert (tmp_path / "out.npz").read_bytes() == b"an older file"


@pytest.mark.slow
def test_the_command_itself(tmp_path, model):
    """As users type it, with exit statuses: both forms, and a folder of which nothing can be used."""
    write_picture(tmp_path / "faces" / "a.png", 1)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no picture")
    out, face = str(tmp_path / "out.npz"), str(tmp_path / "faces" / "a.png")
    for arguments, status, told in [
        (["faces", out], 0, "1 embeddings of 8 numbers, 0 pictures left out"),
        (["compare", face, face], 0, "similarity 1.0000"),
        (["bad", out], 3, "error: none of 1 pictures can be used"),
        (["compare", face, str(tmp_path / "bad" / "a.jpg")], 3, "a.jpg: not a JPEG, PNG, BMP or WebP image"),
    ]:
        command = [sys.executable, "-m", "eval.embed", str(model), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == status, done.stderr
        assert told in done.stdout + done.stderr


def test_what_is_written_where_is_checked_first(folder, tmp_path, model):
    with pytest.raises(SettingsError, match=r"out\.csv: expected a name that ends in \.parquet or \.npz"):
        embed_command.main([str(model), str(folder), str(tmp_path / "out.csv")])
    (tmp_path / "file").write_text("")
    for ending in ("npz", "parquet"):
        with pytest.raises(DataError, match="cannot be written"):
            embed_command.main([str(model), str(folder), str(tmp_path / "file" / f"out.{ending}"), "--threads", "1"])


def test_embeddings_that_are_not_finite_and_disks_that_fail(folder, tmp_path, monkeypatch):
    pictures, out = open_pictures(folder), tmp_path / "out.npz"
    with pytest.raises(NumericsError, match=r"5 of 5 embeddings are not finite: a\.PNG, b\.png"):
        embed_pictures(Cheap(np.nan), pictures, FaceMaker(), out, threads=1)

    def fail(number):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pictures, "read", fail)
    with pytest.raises(ReadingError, match=r"a\.PNG: Input/output error: reading failed"):
        embed_pictures(Cheap(), pictures, FaceMaker(), out, threads=1)
    assert not out.exists()


def test_memory_does_not_grow_with_the_pictures(tmp_path, monkeypatch):
    """Five hundred names, one file: what is held at once is a few blocks of crops and one row group."""
    monkeypatch.setattr(embed_command, "FACES_AT_ONCE", 50)
    monkeypatch.setattr(embedding_file, "ROWS_AT_ONCE", 200)
    image = cv2.imencode(".png", write_picture(tmp_path / "a" / "a.png", 1))[1].tobytes()
    pictures = open_pictures(tmp_path / "a")
    pictures._names *= 500
    monkeypatch.setattr(pictures, "read", lambda number: image)
    cheap, kept = Cheap(), []

    def embed(images):
        kept.append(len(images))
        return images.mean(axis=(1, 2)).astype(np.float32)

    cheap.embed = embed
    assert embed_pictures(cheap, pictures, FaceMaker(), tmp_path / "out.parquet", threads=2) == (500, 0)
    assert kept == [50] * 10
    file = parquet.ParquetFile(tmp_path / "out.parquet")
    assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [200, 200, 100]


def test_a_damaged_measure_of_quality(tmp_path, folder):
    settings = BackboneSettings("tiny", embedding_size=8)
    save_model(tmp_path / "m.pt", build(settings), settings, {"quality_mean": 4.0})
    with pytest.raises(CheckpointError, match="quality"):
        embed_command.main([str(tmp_path / "m.pt"), str(folder), str(tmp_path / "out.npz")])


def test_ordinary_photos(real_data, tmp_path):
    """The face that the detector finds is aligned as for training; a picture without one is left out."""
    yunet = real_data / "third_party" / "yunet" / "yunet_n_dynamic.onnx"
    photos = sorted((real_data / "lfw_uncropped").glob("*/*.jpg"))[:3]
    for number, photo in enumerate(photos):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(photo.read_bytes())
    cv2.imwrite(str(tmp_path / "photos" / "wall.png"), np.full((200, 200, 3), 90, np.uint8))
    cheap = Cheap()
    faces = FaceMaker(yunet, threads=2)
    assert embed_pictures(cheap, open_pictures(tmp_path / "photos"), faces, tmp_path / "out.npz", threads=2) == (3, 1)
    detector = FaceDetector(yunet)
    images = [decode_rgb(photo.read_bytes()) for photo in photos]
    np.testing.assert_array_equal(
        cheap.seen[0], np.stack([align_face(image, detector.find(image).landmarks) for image in images])
    )


def test_torch_embedders_of_a_run_carry_no_quality():
    module = build(BackboneSettings("tiny", embedding_size=8))
    assert TorchEmbedder(module, "a save", 1, "cpu").quality is None
