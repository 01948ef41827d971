"""Which faces an export looks at."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.data.shard_writer import ShardWriter
from recognition.errors import DataError
from tools.export_onnx import faces
from tools.exporting.form import Form
from tools.exporting.images import generated_images, read_images, run_images
from tools.exporting.source import open_source


def test_generated_images_are_always_the_same_and_not_flat() -> None:
    images = generated_images(3)
    assert images.shape == (3, 112, 112, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, generated_images(3))
    assert images.std(axis=(1, 2)).min() > 20


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    faces = generated_images(6)
    for number, face in enumerate(faces):
        write(tmp_path / f"person {number % 2}" / f"{number}.png", face)
    (tmp_path / "notes.txt").write_text("no picture")
    read = read_images(tmp_path, 10)
    assert {face.tobytes() for face in read} == {face.tobytes() for face in faces}
    assert len(read_images(tmp_path, 4)) == 4
    write(tmp_path / "large.png", np.zeros((200, 150, 3), np.uint8))
    with pytest.raises(DataError, match=r"large.png: expected 112×112 pixels, got 150×200; expected aligned faces"):
        read_images(tmp_path, 10)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a RecordIO set nor a picture"):
        read_images(tmp_path, 10)


def test_sets(small_set: Path) -> None:
    assert read_images(small_set, 40).shape == (40, 112, 112, 3)
    assert read_images(small_set, 1000).shape == (96, 112, 112, 3)
    assert read_images(small_set / "pairs.bin", 7).shape == (7, 112, 112, 3)


def test_bad_records_are_passed_over(tmp_path: Path) -> None:
    good = cv2.imencode(".png", generated_images(1)[0])[1].tobytes()
    with ShardWriter(tmp_path / "train.rec") as shard:
        for number in range(4):
            shard.add(0, good if number == 2 else b"no picture", str(number))
    (tmp_path / "property").write_text("1,112,112\n")
    assert read_images(tmp_path, 4).shape == (1, 112, 112, 3)


def test_images_of_the_run_are_found_in_its_config(tmp_path: Path) -> None:
    assert run_images(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"data.root": f"{tmp_path / 'set'},elsewhere"}}))
    assert run_images(tmp_path) is None
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.rec").write_bytes(b"")
    assert run_images(tmp_path) == tmp_path / "set"


def test_no_more_are_read_than_have_a_use(tmp_path: Path) -> None:
    settings = BackboneSettings("tiny", embedding_size=16)
    norms = {"mean": 11.0, "deviation": 1.5, "tau": 2.5, "of": "momentum"}
    save_model(tmp_path / "model.pt", build(settings), settings, {"norms": norms})
    source = open_source(tmp_path / "model.pt")
    asked = []

    def read(count: int) -> np.ndarray:
        asked.append(count)
        return generated_images(1)

    for form in (Form(), Form("fp16"), Form("int8"), Form(quality=True), Form("int8", quality=True),
                 Form(quality=True, norms="run"), Form(quality=True, norms="images")):
        faces(read, source, form)
    assert asked == [32, 32, 288, 32, 288, 32, 1032]
    faces(read, dataclasses.replace(source, norms=None), Form("int8", quality=True))
    assert asked[-1] == 1032
