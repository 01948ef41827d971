"""Exported files in the programs that people feed them to: onnxruntime, OpenCV, and the insightface package.

The insightface package gets an environment of its own, build/insightface, by the first slow test that asks for it, or
is where INSIGHTFACE_PYTHON says (an interpreter in which `import insightface` works).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

from eval.embed import load_embedder
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.data.align import TEMPLATE, align_face
from tools.export_onnx import export
from tools.exporting.form import Form
from tools.exporting.images import generated_images

ROOT = Path(__file__).resolve().parents[2]
FACES = generated_images(40)  # uint8 RGB

INSIGHTFACE = """
import json, sys
import numpy
from insightface.app.common import Face
from insightface.model_zoo import get_model
folder = sys.argv[1]
found = {}
for name in sys.argv[2:]:
    model = get_model(name, providers=["CPUExecutionProvider"])
    faces = list(numpy.load(folder + "/faces.npy"))
    aligned = model.get_feat(faces) if model.input_shape[0] != 1 else None
    alone = numpy.concatenate([model.get_feat(face) for face in faces])
    photo = model.get(numpy.load(folder + "/photo.npy"), Face(kps=numpy.load(folder + "/landmarks.npy")))
    aligned = alone if aligned is None else aligned
    numpy.savez(f"{folder}/{len(found)}.npz", aligned=aligned, alone=alone, photo=photo)
    found[name] = [type(model).__name__, model.input_mean, model.input_std, list(model.input_size)]
print(json.dumps(found))
"""


def insightface_python() -> str:
    """An interpreter that has insightface: INSIGHTFACE_PYTHON's, or build/insightface, made when it is not there."""
    if python := os.environ.get("INSIGHTFACE_PYTHON"):
        return python
    folder = ROOT / "build" / "insightface"
    python = str(folder / "bin" / "python")
    works = [python, "-c", "import insightface"]
    if not Path(python).exists() or subprocess.run(works, capture_output=True, check=False).returncode:
        # Without its dependencies, which bring an OpenCV that needs a desktop's libraries.
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = ["numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.32.0", "opencv-python-headless==5.0.0.93",
                  "scikit-image==0.26.0", "requests==2.34.2", "tqdm==4.70.1"]
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], [*install, *wanted],
                        [*install, "--no-deps", "insightface==2.1"], works):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no insightface: {' '.join(command)}: {done.stderr.strip()[-300:]}")
    return python


def cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    one, two = one.astype(np.float64), two.astype(np.float64)
    return (one * two).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)


def export_random(folder: Path, backbone: str) -> Path:
    """The plain file of a network with random weights."""
    torch.manual_seed(3)
    settings = BackboneSettings(backbone, embedding_size=32)
    save_model(folder / f"{backbone}.pt", build(settings), settings, {"run": "r"})
    export(folder / f"{backbone}.pt", folder / f"{backbone}.onnx", FACES)
    return folder / f"{backbone}.onnx"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """`exported(**form)`: the same network's file in any form, each made once."""
    folder = tmp_path_factory.mktemp("exported")
    plain = export_random(folder, "tiny")

    def make(**form):
        path = folder / ("_".join(str(part) for item in form.items() for part in item) + ".onnx")
        if form and not path.exists():
            export(plain, path, np.tile(FACES, (4, 1, 1, 1)), form=Form(**form))
        return path if form else plain

    return make


def test_onnxruntime_gives_the_same_with_any_number_of_threads(exported):
    """Of 40 faces in one batch, and of each alone, by plain sessions as clients open them."""
    model = exported()
    data = np.ascontiguousarray(((FACES.astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2))
    found = []
    for threads in (1, 2):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"data": data})[0])
        found.append(np.concatenate([session.run(["embedding"], {"data": face[None]})[0] for face in data]))
    for other in found:
        assert cosines(other, found[0]).min() > 0.999999
        np.testing.assert_allclose(np.linalg.norm(other, axis=1), np.linalg.norm(found[0], axis=1), rtol=1e-5)
    swapped = session.run(None, {"data": np.ascontiguousarray(data[:, ::-1])})[0]
    assert cosines(swapped, found[0]).max() < 0.999  # these images would tell the colours' order


@pytest.mark.parametrize(("form", "scale", "shift"), [
    ({}, 1 / 127.5, 127.5), ({"preprocessing": "inside"}, 1.0, 0.0), ({"batch": 1}, 1 / 127.5, 127.5),
    ({"precision": "fp16"}, 1 / 127.5, 127.5), ({"quality": True, "norms": "images"}, 1 / 127.5, 127.5),
])  # fmt: skip
def test_opencv_reads_the_file(exported, form, scale, shift):
    model = exported(**form)
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    network = cv2.dnn.readNetFromONNX(str(model))
    wanted = load_embedder(model, 1, "cpu").embed(FACES)
    for batch in (1,) if "batch" in form else (1, 3):
        pictures = [np.ascontiguousarray(face[:, :, ::-1]) for face in FACES[:batch]]  # BGR, as imread gives them
        network.setInput(cv2.dnn.blobFromImages(pictures, scale, (112, 112), (shift,) * 3, swapRB=True), "data")
        got = network.forward("embedding")
        assert got.shape == (batch, 32)
        assert cosines(got, wanted[:batch]).min() > 0.99999
    cv2.utils.logging.setLogLevel(before)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.9999), ("int8", 0.98)])
def test_smaller_files_open_as_any(exported, precision, least):
    """What they take and give is float32, and a client notices nothing but small differences."""
    wanted = load_embedder(exported(), 1, "cpu").embed(FACES)
    small = load_embedder(exported(precision=precision), 1, "cpu")
    assert small.notes[0].endswith("RGB, (pixel − 127.5) / 127.5")
    assert cosines(small.embed(FACES), wanted).min() > least


def test_eval_takes_the_embedding_of_a_file_with_a_quality(exported):
    plain = load_embedder(exported(), 1, "cpu")
    path = exported(quality=True, norms="images")
    two = load_embedder(path, 1, "cpu")
    got = two.embed(FACES)
    np.testing.assert_allclose(got, plain.embed(FACES), rtol=1e-4, atol=1e-4)
    assert plain.quality is None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    data = np.ascontiguousarray(((FACES.astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2))
    quality = session.run(["quality"], {"data": data})[0]
    np.testing.assert_allclose(two.quality.z(np.linalg.norm(got, axis=1)), quality, atol=2e-3)


@pytest.mark.slow
def test_the_insightface_package_loads_the_file(exported, tmp_path):
    """As ArcFaceONNX, pixels normalised outside and inside: the same embedding, also of a photo it aligns itself."""
    python = insightface_python()
    forms = [{}, {"preprocessing": "inside"}, {"precision": "fp16"}, {"batch": 1}]
    files = [*(exported(**form) for form in forms), export_random(tmp_path, "iresnet18")]
    photo = cv2.resize(FACES[0], (300, 260), interpolation=cv2.INTER_CUBIC)
    turn = np.array([[1.2, -0.2], [0.2, 1.2]])
    landmarks = TEMPLATE @ turn.T + (60, 30) + np.random.default_rng(1).normal(0, 2, (5, 2))
    np.save(tmp_path / "photo.npy", photo[:, :, ::-1])
    np.save(tmp_path / "landmarks.npy", landmarks.astype(np.float32))
    faces = FACES[:10]
    np.save(tmp_path / "faces.npy", faces[:, :, :, ::-1])
    command = [python, "-c", INSIGHTFACE, str(tmp_path), *map(str, files)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    crop = align_face(photo, landmarks.astype(np.float32))
    for number, file in enumerate(files):
        normal = [0.0, 1.0] if number == 1 else [127.5, 127.5]
        assert found[str(file)] == ["ArcFaceONNX", *normal, [112, 112]]
        ours = load_embedder(file, 1, "cpu")
        wanted = ours.embed(faces)
        with np.load(tmp_path / f"{number}.npz") as theirs:
            assert cosines(theirs["aligned"], wanted).min() > 0.9999
            assert cosines(theirs["alone"], wanted).min() > 0.9999
            assert cosines(theirs["photo"][None], ours.embed(crop[None])).min() > 0.9999
            swapped = ours.embed(np.ascontiguousarray(faces[:, :, :, ::-1]))
            assert cosines(theirs["aligned"], swapped).max() < 0.9999  # these images would tell the colours' order
