"""eval/ijb_faces.py: the pass over the pictures, and what ends it."""

import threading
from functools import partial

import numpy as np
import pytest

from eval import ijb_cache, ijb_faces
from eval.crops_ahead import BLOCKS_AHEAD, crops_ahead
from eval.ijb_cache import EmbeddingCache
from eval.ijb_faces import crop_face, embed_faces
from eval.ijb_lists import load_ijb
from recognition.errors import DataError, NumericsError


@pytest.fixture
def folder(tmp_path, make_ijb, monkeypatch):
    for module in (ijb_cache, ijb_faces):
        monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(ijb_faces, "FACES_AT_ONCE", 4)
    return make_ijb(tmp_path / "set")


@pytest.mark.parametrize("threads", [1, 3])
def test_crops_come_in_order_and_not_too_early(folder, threads):
    ijb = load_ijb(folder)
    blocks = [range(at, min(at + 5, len(ijb.images))) for at in range(0, len(ijb.images), 5)]
    asked = []

    def ask():
        for block in blocks:
            asked.append(block)
            yield block

    for number, (block, crops, problems) in enumerate(crops_ahead(partial(crop_face, ijb), ask(), threads)):
        assert block == blocks[number]
        assert not problems
        np.testing.assert_array_equal(crops, np.stack([crop_face(ijb, at) for at in block]))
        assert len(asked) <= number + 1 + BLOCKS_AHEAD


def test_all_unreadable_images_are_named_and_the_network_stops(folder, tmp_path, cheap_network):
    ijb = load_ijb(folder)
    spoilt = [ijb.images[at] for at in (9, 13, 20, 21, 30, 31)]
    for name in spoilt:
        (folder / "loose_crop" / name).write_bytes(b"no picture at all")
    ijb = load_ijb(folder)
    seen = []

    def network(images):
        seen.append(len(images))
        return cheap_network(images)

    cache = EmbeddingCache(tmp_path / "cache", {}, ijb)
    with pytest.raises(DataError, match="6 images cannot be used: ") as error:
        embed_faces(network, ijb, cache=cache)
    message = str(error.value)
    assert [name for name in spoilt if f"{folder}/loose_crop/{name}: not a JPEG" in message] == spoilt[:5]
    assert message.endswith("; …")
    assert seen == [4, 4, 4, 4]  # images and mirror images of the blocks before the first of them
    assert len(list(cache.folder.glob("*.npy"))) == 2  # what was done stays


@pytest.mark.parametrize(("content", "reason"), [(b"x", "not a JPEG"), (None, "No such file")])
def test_one_unreadable_image(folder, cheap_network, content, reason):
    ijb = load_ijb(folder)
    path = folder / "loose_crop" / ijb.images[4]
    path.write_bytes(content) if content else path.unlink()
    with pytest.raises(DataError, match=reason) as error:
        embed_faces(cheap_network, ijb)
    assert str(error.value).startswith(f"{path}: ")


def test_landmarks_that_coincide_name_the_image(folder, cheap_network):
    points = folder / "meta" / "ijbc_name_5pts_score.txt"
    lines = points.read_text().splitlines()
    name = lines[11].split()[0]
    points.write_text("\n".join([*lines[:11], f"{name} {'5 ' * 10} 1", *lines[12:]]))
    with pytest.raises(DataError, match=f"/{name}: all landmarks coincide"):
        embed_faces(cheap_network, load_ijb(folder))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("mirrored", [False, True])
def test_not_finite_embeddings_name_the_images_and_are_not_kept(folder, tmp_path, cheap_network, value, mirrored):
    ijb = load_ijb(folder)
    calls = []

    def spoilt(images):
        result = cheap_network(images)
        calls.append(len(images))
        if len(calls) == (8 if mirrored else 7):  # of the fourth block
            result[2] = value
        return result

    cache = EmbeddingCache(tmp_path / "cache", {}, ijb)
    with pytest.raises(NumericsError, match=f": {ijb.images[14]}$"):
        embed_faces(spoilt, ijb, cache=cache)
    assert len(list(cache.folder.glob("*.npy"))) == 2


def test_no_thread_outlives_a_failure(folder):
    def broken(images):
        raise RuntimeError("of the network")

    with pytest.raises(RuntimeError, match="of the network"):
        embed_faces(broken, load_ijb(folder), threads=3)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("ThreadPool")] == []
