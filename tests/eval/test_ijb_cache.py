"""eval/ijb_cache.py: what is kept is used, and only for what it was made from."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eval import ijb_cache, ijb_faces
from eval.ijb import evaluate_ijb
from eval.ijb_cache import EmbeddingCache, default_cache, model_identity
from eval.ijb_lists import load_ijb
from eval.pixels import Given, Pixels
from recognition.errors import CheckpointError, DataError

MODEL = {"sha256": "of a model"}


class Counter:
    """A network that counts the images it gets, and may be killed after some."""

    def __init__(self, network: Callable[[np.ndarray], np.ndarray], limit: int | None = None) -> None:
        self.network, self.limit, self.images = network, limit, 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.images += len(images)
        if self.limit is not None and self.images > self.limit:
            raise KeyboardInterrupt
        return self.network(images)


@pytest.fixture
def folder(tmp_path, make_ijb, monkeypatch):
    for module in (ijb_cache, ijb_faces):
        monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(ijb_faces, "FACES_AT_ONCE", 4)
    return make_ijb(tmp_path / "set")


def files(place):
    return sorted(path for path in place.rglob("*") if path.is_file())


def test_the_second_time_nothing_is_embedded(tmp_path, folder, cheap_network):
    plain = evaluate_ijb(cheap_network, folder)
    first, second = Counter(cheap_network), Counter(cheap_network)
    assert evaluate_ijb(first, folder, cache=(tmp_path / "cache", MODEL)) == plain
    faces = len(load_ijb(folder).images)
    assert first.images == 2 * faces
    assert evaluate_ijb(second, folder, cache=(tmp_path / "cache", MODEL)) == plain
    assert second.images == 0
    for option in ("use_detector_score", "use_norm", "flip"):
        cached = evaluate_ijb(second, folder, cache=(tmp_path / "cache", MODEL), **{option: False})
        assert cached == evaluate_ijb(cheap_network, folder, **{option: False})
    assert second.images == 0


def test_mirror_images_are_added_when_they_are_wanted(tmp_path, folder, cheap_network):
    counter = Counter(cheap_network)
    evaluate_ijb(counter, folder, cache=(tmp_path / "cache", MODEL), flip=False)
    faces = len(load_ijb(folder).images)
    assert counter.images == faces
    assert evaluate_ijb(counter, folder, cache=(tmp_path / "cache", MODEL)) == evaluate_ijb(cheap_network, folder)
    assert counter.images == 2 * faces


def test_a_killed_run_goes_on(tmp_path, folder, cheap_network):
    faces = len(load_ijb(folder).images)
    with pytest.raises(KeyboardInterrupt):
        evaluate_ijb(Counter(cheap_network, limit=30), folder, cache=(tmp_path / "cache", MODEL))
    kept = [path for path in files(tmp_path / "cache") if path.suffix == ".npy"]
    assert len(kept) == 2  # of 28 images one chunk of 8 faces and their mirror images was whole
    rest = Counter(cheap_network)
    assert evaluate_ijb(rest, folder, cache=(tmp_path / "cache", MODEL)) == evaluate_ijb(cheap_network, folder)
    assert rest.images == 2 * faces - 16


def test_a_flipped_bit_or_a_cut_file_is_embedded_again(tmp_path, folder, cheap_network, capsys):
    plain = evaluate_ijb(cheap_network, folder, cache=(tmp_path / "cache", MODEL))
    chunks = [path for path in files(tmp_path / "cache") if path.suffix == ".npy"]
    content = bytearray(chunks[0].read_bytes())
    content[-3] ^= 4
    chunks[0].write_bytes(content)
    chunks[3].write_bytes(chunks[3].read_bytes()[:100])
    counter = Counter(cheap_network)
    assert evaluate_ijb(counter, folder, cache=(tmp_path / "cache", MODEL)) == plain
    assert counter.images == 16
    assert "2 damaged files were embedded again" in capsys.readouterr().out
    assert [path.name for path in files(tmp_path / "cache")] == ["made_from.json", *(path.name for path in chunks)]


def test_a_file_of_other_faces_is_embedded_again(tmp_path, folder, cheap_network):
    plain = evaluate_ijb(cheap_network, folder)
    cache = EmbeddingCache(tmp_path / "cache", MODEL, load_ijb(folder))
    cache.write("straight", range(8), np.zeros((1, 16), np.float32))  # sound, but it would stand for eight faces
    content = b"no array"
    (cache.folder / f"mirrored_000000_{hashlib.sha256(content).hexdigest()[:16]}.npy").write_bytes(content)
    assert evaluate_ijb(cheap_network, folder, cache=(tmp_path / "cache", MODEL)) == plain
    assert cache.read("straight", range(8)).shape == cache.read("mirrored", range(8)).shape == (8, 16)


def test_pictures_changed_in_place_are_embedded_again(tmp_path, folder, cheap_network):
    evaluate_ijb(cheap_network, folder, cache=(tmp_path / "cache", MODEL))
    path = folder / "loose_crop" / "1.png"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # of one size still
    counter = Counter(cheap_network)
    evaluate_ijb(counter, folder, cache=(tmp_path / "cache", MODEL))
    assert counter.images == 2 * len(load_ijb(folder).images)


def test_another_model_or_set_uses_nothing_of_it(tmp_path, folder, cheap_network):
    place = tmp_path / "cache"
    evaluate_ijb(cheap_network, folder, cache=(place, MODEL))
    faces = len(load_ijb(folder).images)

    def embedded(model):
        counter = Counter(cheap_network)
        evaluate_ijb(counter, folder, cache=(place, model))
        return counter.images

    assert embedded({"sha256": "of another"}) == 2 * faces
    assert embedded(MODEL) == 0
    points = folder / "meta" / "ijbc_name_5pts_score.txt"
    lines = points.read_text().splitlines()
    name, x, *rest = lines[4].split()
    points.write_text("\n".join([*lines[:4], " ".join([name, f"{float(x) + 1}", *rest]), *lines[5:]]))
    assert embedded(MODEL) == 2 * faces
    scores_only = [" ".join([*line.split()[:-1], "0.5"]) for line in points.read_text().splitlines()]
    points.write_text("\n".join(scores_only))
    assert embedded(MODEL) == 0  # the detector's score is no part of an embedding
    with open(folder / "loose_crop" / "1.png", "ab") as file:
        file.write(b"longer")
    assert embedded(MODEL) == 2 * faces


def test_chunks_that_nobody_signed_are_thrown_away(tmp_path, folder, cheap_network):
    evaluate_ijb(cheap_network, folder, cache=(tmp_path / "cache", MODEL))
    (signature,) = (tmp_path / "cache").glob("*/made_from.json")
    signed = signature.read_text()
    assert json.loads(signed)["model"] == MODEL
    signature.write_text(signed.replace("of a model", "of a m0del"))
    counter = Counter(cheap_network)
    evaluate_ijb(counter, folder, cache=(tmp_path / "cache", MODEL))
    assert counter.images == 2 * len(load_ijb(folder).images)
    assert signature.read_text() == signed


def test_a_move_of_the_set_does_not_matter(tmp_path, folder, cheap_network):
    evaluate_ijb(cheap_network, folder, cache=(tmp_path / "cache", MODEL))
    counter = Counter(cheap_network)
    evaluate_ijb(counter, shutil.move(folder, tmp_path / "elsewhere"), cache=(tmp_path / "cache", MODEL))
    assert counter.images == 0


def test_leftovers_of_killed_writers_go_after_a_while(tmp_path, folder):
    ijb = load_ijb(folder)
    place = EmbeddingCache(tmp_path / "cache", MODEL, ijb).folder
    old, new = place / "straight_000000_0.npy.7.part", place / "straight_000008_0.npy.8.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    EmbeddingCache(tmp_path / "cache", MODEL, ijb)
    assert not old.exists()
    assert new.exists()


def test_no_room_and_no_permission_are_said(tmp_path, folder):
    ijb = load_ijb(folder)
    cache = EmbeddingCache(tmp_path / "cache", MODEL, ijb)
    with pytest.raises(DataError, match=r"no room for \d+\.\d\d GB of embeddings, .* --no-cache does without"):
        cache.require_space(1 << 40, 512)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written: .*; --cache puts embeddings elsewhere"):
        EmbeddingCache(tmp_path / "file" / "cache", MODEL, ijb)


def test_identity_of_a_model(tmp_path):
    weights = numpy_helper.from_array(np.zeros((3, 2), np.float32), "weights")
    nodes = [helper.make_node("GlobalAveragePool", ["data"], ["mean"]), helper.make_node("Flatten", ["mean"], ["flat"]),
             helper.make_node("MatMul", ["flat", "weights"], ["out"])]  # fmt: skip
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
              for name, shape in (("data", ["N", 3, 112, 112]), ("out", ["N", 2]))]  # fmt: skip
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path = tmp_path / "model.onnx"
    onnx.save(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    first = model_identity(path, Pixels())
    assert first == model_identity(path, Pixels(), Given(mean=(127.5, 127.5, 127.5)))
    others = [model_identity(path, Pixels(color_order="BGR")), model_identity(path, Pixels(mean=(0, 0, 0))),
              model_identity(path, Pixels(), Given(output="mean"))]  # fmt: skip
    (tmp_path / "weights.bin").write_bytes(np.ones((3, 2), np.float32).tobytes())
    others.append(model_identity(path, Pixels()))
    path.write_bytes(path.read_bytes().replace(b"flat", b"f1at"))
    others.append(model_identity(path, Pixels()))
    assert all(one != two for at, one in enumerate([first, *others]) for two in others[at:])
    json.dumps(first)
    with pytest.raises(CheckpointError, match="no such"):
        model_identity(tmp_path / "none.onnx", Pixels())


def test_where_embeddings_go_if_nobody_says(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    assert default_cache(run) == default_cache(run / "model.onnx") == run / "ijb_cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert default_cache(tmp_path / "model.onnx") == tmp_path / "own" / "face-recognition-trainer" / "ijb"
