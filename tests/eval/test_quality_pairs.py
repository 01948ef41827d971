"""eval/quality_pairs.py against the same figures counted pair by pair."""

import cv2
import numpy as np
import pytest

from eval.ijb import evaluate_ijb
from eval.quality_pairs import EDGES, compare, measure_ijb, measure_set, template_quality
from eval.verification import evaluate, load_bin, reduce_to


def embed(images):
    small = np.stack([cv2.resize(image, (4, 4), interpolation=cv2.INTER_AREA) for image in images])
    return (small.reshape(len(images), -1).astype(np.float32) - 128) / 16


def fnmr_by_hand(cosine, issame, quality, fmr, share):
    """Error among the same pairs left when the `share` of them with the lowest quality is gone."""
    impostors = sorted(cosine[~issame], reverse=True)
    threshold = impostors[int(fmr * len(impostors) + 1e-9)]
    left = sorted(zip(quality[issame], cosine[issame], strict=True))[int(share * issame.sum() + 1e-9) :]
    return sum(score <= threshold for _, score in left) / len(left)


def test_a_verification_set_equals_its_pairs_one_by_one(small_set):
    path = small_set / "pairs.bin"
    rows, compared = measure_set(embed, path, (8,), fmr=0.1)
    pairs = load_bin(path)
    assert rows == [evaluate(embed, pairs), evaluate(embed, pairs, 8)]
    for side, one in zip((None, 8), compared, strict=True):
        images = reduce_to(pairs.images, side) if side else pairs.images
        straight, mirrored = embed(images), embed(images[:, :, ::-1])
        norm = (np.linalg.norm(straight, axis=1) + np.linalg.norm(mirrored, axis=1)) / 2
        sums = (straight + mirrored).astype(float)
        unit = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        cosine = (unit[::2] * unit[1::2]).sum(axis=1)
        assert (one["set"], one["path"], one["degrade"], one["pairs"]) == ("pairs", str(path), side, 20)
        for kind, mask in (("same", pairs.issame), ("different", ~pairs.issame)):
            assert one[kind]["mean"] == pytest.approx(cosine[mask].mean(), abs=1e-6)
            assert one[kind]["count"] == sum(one[kind]["histogram"]) == 10
        quality = np.minimum(norm[::2], norm[1::2])
        curve = one["discard"]
        assert curve["fmr"] == 0.1
        for place in (0, 30, 60, 90):
            wanted = fnmr_by_hand(cosine, pairs.issame, quality, 0.1, curve["discard"][place])
            assert curve["fnmr"][place] == pytest.approx(wanted, abs=1e-9)


def test_template_quality_is_the_mean_of_the_means():
    norm = np.array([1.0, 3.0, 10.0, 7.0, 4.0])
    template, media = np.array([0, 0, 0, 1, 2]), np.array([5, 5, 6, 5, 9])
    assert template_quality(norm, template, media, 3).tolist() == [(2 + 10) / 2, 7, 4]
    order = np.array([4, 2, 0, 3, 1])
    assert template_quality(norm[order], template[order], media[order], 3).tolist() == [6, 7, 4]


def test_pairs_of_one_kind_have_no_discard():
    one = compare(np.array([0.1, 0.9]), np.array([True, True]), np.ones(2), np.ones(2))
    assert one["discard"] is None
    assert one["different"] is None
    assert one["same"]["mean"] == pytest.approx(0.5)
    assert len(one["edges"]) == len(EDGES)


def test_ijb_embeddings_are_kept_and_shared_with_eval_ijb(make_ijb, cheap_network, tmp_path):
    folder, cache = make_ijb(tmp_path / "set"), (tmp_path / "cache", {"model": "one"})
    asked = []

    def network(images):
        asked.append(len(images))
        return cheap_network(images)

    one = measure_ijb(network, folder, fmr=0.1, cache=cache)
    assert sum(asked) > 0
    asked.clear()
    assert measure_ijb(network, folder, fmr=0.1, cache=cache) == one
    with_cache = evaluate_ijb(network, folder, cache=cache)
    assert not asked
    assert measure_ijb(cheap_network, folder, fmr=0.1) == one
    assert evaluate_ijb(cheap_network, folder) == with_cache


def test_an_ijb_folder_has_the_scores_of_eval_ijb(real_data):
    folder = real_data / "lfw_as_ijbc"
    one = measure_ijb(embed, folder, fmr=0.01)
    result = evaluate_ijb(embed, folder, protocols=["1:1"], curve=True)
    assert one["pairs"] == result["1:1"]["pairs"]
    lowest = result["curve"]["hardest"]["false_non_match"][0][2]
    highest = result["curve"]["hardest"]["false_match"][0][2]
    for kind, score in (("same", lowest), ("different", highest)):
        used = np.flatnonzero(one[kind]["histogram"])
        edge = used[0] if kind == "same" else used[-1]
        assert EDGES[edge] - 1e-6 <= score <= EDGES[edge + 1] + 1e-6
    assert one["discard"]["fnmr"][0] == pytest.approx(1 - result["1:1"]["strict"]["0.01"], abs=1e-9)
