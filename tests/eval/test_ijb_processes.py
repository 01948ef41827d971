"""eval/ijb_processes.py: the same embeddings as in one process, and what ends all of them."""

import multiprocessing
import os
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from eval import ijb, ijb_cache, ijb_faces
from eval.embed import load_embedder
from eval.ijb import evaluate_ijb
from eval.ijb_cache import EmbeddingCache
from eval.ijb_faces import UnreadableImagesError, missing_chunks
from eval.ijb_lists import load_ijb
from eval.ijb_processes import fill_cache
from recognition.errors import CheckpointError, DistributedError, NumericsError, SettingsError


@pytest.fixture
def folder(tmp_path, make_ijb, monkeypatch):
    for module in (ijb_cache, ijb_faces):
        monkeypatch.setattr(module, "CHUNK", 8)
    return make_ijb(tmp_path / "set")


def write_network(path, last="Identity"):
    """Coarse pixels, [N, 48]; `Log` of them is NaN in dark places."""
    nodes = [helper.make_node("AveragePool", ["data"], ["mean"], kernel_shape=[28, 28], strides=[28, 28]),
             helper.make_node("Flatten", ["mean"], ["flat"]), helper.make_node(last, ["flat"], ["out"])]  # fmt: skip
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                       for name, shape in (("data", ["N", 3, 112, 112]), ("out", ["N", 48])))  # fmt: skip
    graph = helper.make_graph(nodes, "coarse", [inputs], [outputs])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_two_processes_embed_what_one_would(tmp_path, folder, capsys):
    model = write_network(tmp_path / "coarse.onnx")
    out = [tmp_path / "one.json", tmp_path / "two.json"]
    place = ["--cache", str(tmp_path / "cache")]
    assert ijb.main([str(model), str(folder), "--no-cache", "--json", str(out[0])]) is None
    assert ijb.main([str(model), str(folder), *place, "--processes", "2", "--json", str(out[1])]) is None
    assert out[0].read_text() == out[1].read_text()
    loaded = load_ijb(folder)
    (kept,) = (tmp_path / "cache").iterdir()
    chunks = -(-len(loaded.images) // 8)
    assert len(list(kept.glob("*.npy"))) == 2 * chunks
    with pytest.raises(SettingsError, match="--processes needs a cache"):
        ijb.main([str(model), str(folder), "--no-cache", "--processes", "2"])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_model_replaced_meanwhile_leaves_no_embeddings_under_its_name(tmp_path, folder, monkeypatch, processes):
    """Once right after it was opened here, and once before the processes open it."""
    model = write_network(tmp_path / "coarse.onnx")
    name = "open_model" if processes == 1 else "fill_cache"
    before = getattr(ijb, name)

    def replacing(*arguments, **options):
        if processes == 1:
            opened = before(*arguments, **options)
            write_network(model, "Neg")
            return opened
        write_network(model, "Neg")
        return before(*arguments, **options)

    monkeypatch.setattr(ijb, name, replacing)
    place = tmp_path / "cache"
    when = "while it was opened" if processes == 1 else "since the command began"
    with pytest.raises(CheckpointError, match=rf"coarse\.onnx: changed {when}"):
        ijb.main([str(model), str(folder), "--cache", str(place), "--processes", str(processes)])
    assert not list(place.rglob("*.npy"))


def test_all_of_them_name_the_unreadable_images_together(tmp_path, folder):
    images = load_ijb(folder).images
    spoilt = [images[at] for at in (11, 18, 25)]  # chunks 1, 2 and 3 are of two processes
    for name in spoilt:
        (folder / "loose_crop" / name).write_bytes(b"no picture")
    loaded, before = load_ijb(folder), multiprocessing.active_children()
    cache = EmbeddingCache(tmp_path / "cache", {}, loaded)
    opener = partial(load_embedder, write_network(tmp_path / "coarse.onnx"), 1)
    with pytest.raises(UnreadableImagesError, match="3 images cannot be used: ") as error:
        fill_cache([opener, opener], loaded, cache, flip=True, threads=1)
    assert all(f"/{name}: not a JPEG" in str(error.value) for name in spoilt)
    assert set(multiprocessing.active_children()) <= set(before)


@pytest.mark.slow
def test_other_failures_keep_their_kind_and_leave_no_process(tmp_path, folder):
    loaded, before = load_ijb(folder), multiprocessing.active_children()
    cache = EmbeddingCache(tmp_path / "cache", {}, loaded)
    good = partial(load_embedder, write_network(tmp_path / "coarse.onnx"), 1)
    spoilt = partial(load_embedder, write_network(tmp_path / "log.onnx", "Log"), 1)
    with pytest.raises(NumericsError, match=r"embeddings are not finite: \d+\.png"):
        fill_cache([spoilt, spoilt], loaded, cache, flip=True, threads=1)
    with pytest.raises(DistributedError, match="an embedding process ended with 9; the same command goes on"):
        fill_cache([good, partial(os._exit, 9)], loaded, cache, flip=True, threads=1)
    assert set(multiprocessing.active_children()) <= set(before)
    fill_cache([good, good], loaded, cache, flip=True, threads=1)
    assert missing_chunks(cache, True) == []
    network = load_embedder(tmp_path / "coarse.onnx", 1).embed
    np.testing.assert_array_equal(
        ijb_faces.embed_faces(network, loaded, cache=cache), ijb_faces.embed_faces(network, loaded)
    )
    assert evaluate_ijb(network, folder, cache=(tmp_path / "cache", {})) == evaluate_ijb(network, folder)
