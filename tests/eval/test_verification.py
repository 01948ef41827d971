"""eval/verification.py against the protocol written out pair by pair, and against a real network on real faces."""

import json
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from eval import verification
from eval.embed import load_embedder
from eval.verification import (
    VerificationSet,
    embed_with_mirror,
    evaluate,
    evaluate_with_curve,
    load_bin,
    reduce_to,
    score,
    squared_distances,
)
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.errors import DataError, NumericsError, SettingsError

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["set", "degrade", "pairs", "accuracy", "accuracy_std", "val", "far", "eer", "mean_norm",
        "different", "threshold@far"]
PROJECTION = np.random.default_rng(0).normal(size=(14 * 14 * 3, 24)).astype(np.float32) / 100


def embed(images):
    """A cheap network that is no friend of mirrors: coarse pixels times a matrix."""
    coarse = images.reshape(len(images), 14, 8, 14, 8, 3).mean(axis=(2, 4)).reshape(len(images), 588)
    return (coarse.astype(np.float32) - 127.5) @ PROJECTION


def make_set(count=45, noise=100):
    """Pairs of blurry noise; the same pairs share most of it."""
    generator = np.random.default_rng(7)
    issame = np.arange(count) % 2 == 0
    bases = generator.integers(0, 256, (count, 2, 8, 8, 3))
    bases[issame, 1] = np.clip(bases[issame, 0] + generator.normal(0, noise, (issame.sum(), 8, 8, 3)), 0, 255)
    small = bases.reshape(-1, 8, 8, 3).astype(np.uint8)
    images = np.stack([cv2.resize(image, (112, 112), interpolation=cv2.INTER_CUBIC) for image in small])
    return VerificationSet("made", images, issame)


def assert_close(result, wanted, **tolerance):
    assert list(result) == list(wanted)
    for key, value in wanted.items():
        if isinstance(value, dict):
            assert_close(result[key], value, **tolerance)
        else:
            assert result[key] == (pytest.approx(value, **tolerance) if isinstance(value, float) else value), key


def png(image):
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def write_bin(path, images, issame):
    path.write_bytes(pickle.dumps(([i if isinstance(i, bytes) else png(i) for i in images], list(map(bool, issame)))))
    return path


def test_load_bin_keeps_order_and_colours(tmp_path):
    pairs = make_set(12)
    pairs.images[0] = 250, 10, 30  # red: the channels are R, G, B
    loaded = load_bin(write_bin(tmp_path / "lfw.bin", pairs.images, pairs.issame))
    assert loaded.name == "lfw"
    np.testing.assert_array_equal(loaded.images, pairs.images)
    np.testing.assert_array_equal(loaded.issame, pairs.issame)


def bomb():
    """A PNG of 120 bytes that claims 30000 × 30000 pixels."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"no image", "not a JPEG"),
        (b"", "not a JPEG"),
        (png(np.zeros((112, 112, 3), np.uint8))[:60], "cut"),
        (png(np.zeros((112, 96, 3), np.uint8)), "expected 112×112 pixels, got 96×112"),
        (bomb(), "30000×30000"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(tmp_path, content, text):
    pairs = make_set(12)
    images = [*pairs.images[:7], content, *pairs.images[8:]]
    path = write_bin(tmp_path / "lfw.bin", images, pairs.issame)
    with pytest.raises(DataError, match=text) as error:
        load_bin(path)
    assert str(error.value).startswith(f"{path}: pair 3, image 7: ")


def by_hand(pairs):
    """The protocol up to distances, an image at a time, in float64."""
    units, norms = [], []
    for image in pairs.images:
        straight = embed(image[None])[0].astype(np.float64)
        mirrored = embed(np.fliplr(image)[None])[0].astype(np.float64)
        norms += [np.linalg.norm(straight), np.linalg.norm(mirrored)]
        units.append((straight + mirrored) / np.linalg.norm(straight + mirrored))
    return [np.sum((units[2 * i] - units[2 * i + 1]) ** 2) for i in range(len(pairs.issame))], np.mean(norms)


def test_evaluate_is_the_protocol():
    pairs = make_set()
    distances, mean_norm = by_hand(pairs)
    distances = np.array(distances)
    accuracies = []
    for test in np.array_split(np.arange(45), 10):
        rest = np.setdiff1d(np.arange(45), test)
        right = [((distances[rest] < t) == pairs.issame[rest]).sum() for t in np.arange(0, 4, 0.01)]
        threshold = np.arange(0, 4, 0.01)[int(np.argmax(right))]
        accuracies.append(((distances[test] < threshold) == pairs.issame[test]).mean())
    result = evaluate(embed, pairs)
    assert list(result) == KEYS
    assert result["set"] == "made"
    assert result["degrade"] is None
    assert result["pairs"] == 45
    assert result["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert result["accuracy_std"] == pytest.approx(np.std(accuracies), abs=1e-12)
    assert 0.8 < result["accuracy"] < 1
    assert result["mean_norm"] == pytest.approx(mean_norm, rel=1e-5)
    assert 0 < result["val"] <= 1
    assert 0 <= result["far"] < 0.2
    assert 0 < result["eer"] < 0.3
    json.dumps(result, allow_nan=False)


def test_thresholds_are_cosines_of_image_plus_mirror():
    pairs = make_set(60)
    sums = embed(pairs.images) + embed(pairs.images[:, :, ::-1])
    unit = sums.astype(np.float64) / np.linalg.norm(sums.astype(np.float64), axis=1, keepdims=True)
    cosines = (unit[0::2] * unit[1::2]).sum(axis=1)
    result = evaluate(embed, pairs)
    assert result["different"] == 30
    refused = np.sort(cosines[~pairs.issame])[::-1]
    found = result["threshold@far"]
    above = cosines[cosines > refused[3]].min()  # three of thirty may reach the threshold, the fourth may not
    assert found["0.1"] == pytest.approx((refused[3] + above) / 2, abs=1e-9)
    assert [far for far, threshold in found.items() if threshold is not None] == ["0.1"]
    assert np.count_nonzero(verification.similarity(squared_distances(sums))[~pairs.issame] >= found["0.1"]) == 3


def test_the_length_of_embeddings_changes_only_their_mean():
    pairs = make_set()
    one, two = evaluate(embed, pairs), evaluate(lambda images: 2 * embed(images), pairs)
    assert two.pop("mean_norm") == pytest.approx(2 * one.pop("mean_norm"), rel=1e-6)
    assert one == two


def test_mirroring_every_image_changes_nothing():
    pairs = make_set()
    mirrored = VerificationSet(pairs.name, np.ascontiguousarray(pairs.images[:, :, ::-1]), pairs.issame)
    assert_close(evaluate(embed, mirrored), evaluate(embed, pairs), abs=1e-6)


def test_parts_embedded_apart_give_the_whole(monkeypatch):
    monkeypatch.setattr(verification, "EMBED_AT_ONCE", 16)
    pairs = make_set()
    whole_sum, whole_norm = embed_with_mirror(embed, pairs.images)
    assert whole_sum.shape == (90, 24)
    assert whole_norm.shape == (90,)
    parts = [embed_with_mirror(embed, pairs.images[rows]) for rows in (slice(0, 31), slice(31, 60), slice(60, 90))]
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    np.testing.assert_allclose(joined[0], whole_sum, rtol=1e-5, atol=1e-4)
    assert_close(score(*joined, pairs.issame, "made"), evaluate(embed, pairs), rel=1e-6)


def test_a_part_may_be_empty():
    pairs = make_set()
    whole, norm = embed_with_mirror(embed, pairs.images)
    nothing, no_norm = embed_with_mirror(embed, pairs.images[:0])
    joined = np.concatenate([nothing, whole]), np.concatenate([no_norm, norm])
    assert score(*joined, pairs.issame, "made") == score(whole, norm, pairs.issame, "made")


def test_reducing_throws_away_what_is_smaller_than_a_pixel():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (1, 16, 7, 16, 7, 3), dtype=np.uint8)
    within = np.moveaxis(image, 3, 2).reshape(1, 256, 49, 3)
    shuffled = generator.permuted(within, axis=2).reshape(1, 16, 16, 7, 7, 3)
    shuffled = np.moveaxis(shuffled, 2, 3)
    original, other = image.reshape(1, 112, 112, 3), shuffled.reshape(1, 112, 112, 3)
    assert (original != other).mean() > 0.9
    np.testing.assert_allclose(reduce_to(original, 16).astype(int), reduce_to(other, 16), atol=1)
    assert np.abs(reduce_to(original, 56).astype(int) - reduce_to(other, 56)).max() > 20


def test_reducing_keeps_size_flat_colour_and_the_original():
    images = np.full((2, 112, 112, 3), (10, 100, 200), np.uint8)
    np.testing.assert_array_equal(reduce_to(images, 8), images)
    pairs = make_set(10)
    before = pairs.images.copy()
    np.testing.assert_array_equal(reduce_to(pairs.images, 112), pairs.images)
    result = evaluate(embed, pairs, degrade=2)
    assert result["degrade"] == 2
    np.testing.assert_array_equal(pairs.images, before)
    assert result["mean_norm"] < evaluate(embed, pairs)["mean_norm"]
    for side in (0, 113, -8):
        with pytest.raises(SettingsError, match=f"1 to 112 pixels, got {side}"):
            reduce_to(pairs.images, side)


def test_the_order_of_pairs_inside_a_fold_changes_nothing():
    pairs = make_set()
    sums, norms = embed_with_mirror(embed, pairs.images)
    generator = np.random.default_rng(3)
    order = np.concatenate([generator.permutation(fold) for fold in np.array_split(np.arange(45), 10)])
    rows = np.stack([2 * order, 2 * order + 1], axis=1).reshape(-1)
    assert (order != np.arange(45)).any()
    assert_close(score(sums[rows], norms[rows], pairs.issame[order], "made"), score(sums, norms, pairs.issame, "made"),
                 abs=1e-6)


@pytest.mark.parametrize("size", [1, 7, 89, 90, 91])
def test_odd_batch_sizes_change_nothing(monkeypatch, size):
    pairs = make_set()
    wanted = evaluate(embed, pairs)
    monkeypatch.setattr(verification, "EMBED_AT_ONCE", size)
    assert_close(evaluate(embed, pairs), wanted, rel=1e-5)


def test_ties_are_not_luck():
    """All distances equal: every threshold above them says "same"; the figures do not depend on the pairs' order."""
    issame = np.tile([True, False, False], 10)
    result = score(np.ones((60, 4), np.float32), np.ones(60), issame)
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["eer"] == pytest.approx(0.5)
    assert score(np.ones((60, 4), np.float32), np.ones(60), np.tile([False, True, False], 10)) == result


def test_without_the_mirror_image():
    pairs = make_set()
    sums, norms = embed_with_mirror(embed, pairs.images, flip=False)
    np.testing.assert_array_equal(sums, embed(pairs.images))
    np.testing.assert_allclose(norms, np.linalg.norm(sums, axis=1))
    assert evaluate(embed, pairs, flip=False) == score(sums, norms, pairs.issame, "made")
    assert evaluate(embed, pairs, flip=False) != evaluate(embed, pairs)


def test_folds_are_the_sets():
    pairs = make_set()
    three = VerificationSet("made", pairs.images, pairs.issame, folds=3)
    sums, norms = embed_with_mirror(embed, pairs.images)
    distance = squared_distances(sums)
    accuracies = verification.metrics.fold_accuracy(distance, pairs.issame, 3)
    assert evaluate(embed, three)["accuracy_std"] == pytest.approx(accuracies.std())
    assert evaluate(embed, three)["accuracy_std"] != evaluate(embed, pairs)["accuracy_std"]
    with pytest.raises(DataError, match="46 folds need at least 46 pairs, got 45"):
        score(sums, norms, pairs.issame, "made", folds=46)


def test_a_curve_has_the_hardest_pairs():
    pairs = make_set()
    row, curve = evaluate_with_curve(embed, pairs, 16, "sets/made.bin")
    assert row == evaluate(embed, pairs, 16)
    assert (curve["set"], curve["degrade"], curve["path"]) == ("made", 16, "sets/made.bin")
    alike = -squared_distances(embed_with_mirror(embed, reduce_to(pairs.images, 16))[0])
    false_match = sorted((-alike[i], i) for i in range(45) if not pairs.issame[i])[:8]
    false_non_match = sorted((alike[i], i) for i in range(45) if pairs.issame[i])[:8]
    assert curve["hardest"]["false_match"] == [[i, pytest.approx(-score)] for score, i in false_match]
    assert curve["hardest"]["false_non_match"] == [[i, pytest.approx(score)] for score, i in false_non_match]
    assert curve["roc"] == verification.metrics.roc_summary(alike, pairs.issame)
    people = np.arange(45), np.where(pairs.issame, np.arange(45), 0)
    named = VerificationSet("made", pairs.images, pairs.issame, people=people)
    by_people = evaluate_with_curve(embed, named, 16)[1]["roc"]
    assert by_people["tar"] == curve["roc"]["tar"]
    assert by_people["low"] != curve["roc"]["low"]
    json.dumps(curve, allow_nan=False)
    assert evaluate_with_curve(embed, VerificationSet("one kind", pairs.images, np.ones(45, bool)))[1] is None


def test_figures_that_do_not_exist_are_none():
    pairs = make_set()
    for issame in (np.ones(45, bool), np.zeros(45, bool)):
        result = evaluate(embed, VerificationSet("one kind", pairs.images, issame))
        assert (result["val"], result["far"], result["eer"]) == (None, None, None)
        assert result["accuracy"] > 0.9
        assert "–" in str(verification.table([result]))


def test_not_finite_embeddings_are_an_error_of_numbers():
    pairs = make_set()

    def spoilt(images):
        return np.where(images.reshape(len(images), -1)[:, :1] == pairs.images[5].flat[0], np.nan, embed(images))

    with pytest.raises(NumericsError, match="2 of 90 embeddings are not finite: made: pair 2, image 5"):
        evaluate(spoilt, pairs)


def test_too_few_pairs_and_uneven_lengths():
    pairs = make_set(9)
    with pytest.raises(DataError, match="need at least ten pairs, got 9"):
        evaluate(embed, pairs)
    with pytest.raises(ValueError, match="got 17 for 9 pairs"):
        score(np.zeros((17, 3)), np.zeros(17), pairs.issame)


def test_zero_embeddings_are_no_crash():
    pairs = make_set()
    result = evaluate(lambda images: np.zeros((len(images), 8), np.float32), pairs)
    assert result["mean_norm"] == 0
    assert result["accuracy"] == pytest.approx(23 / 45, abs=0.1)


@pytest.fixture
def model(tmp_path):
    settings = BackboneSettings(name="tiny", embedding_size=16)
    torch.manual_seed(0)
    save_model(tmp_path / "model_last.pt", build(settings), settings, {})
    return tmp_path / "model_last.pt"


def test_command(tmp_path, capsys, model):
    pairs = make_set()
    pairs.issame[:5] = True  # fold 0 has no different pair
    one = write_bin(tmp_path / "one.bin", pairs.images, pairs.issame)
    two = write_bin(tmp_path / "two.bin", pairs.images[:60], pairs.issame[:30])
    out = tmp_path / "new" / "out.json"
    arguments = [str(model), str(one), str(two), "--degrade", "8", "16", "--json", str(out), "--threads", "1"]
    assert verification.main(arguments) is None
    results = json.loads(out.read_text())
    assert [(row["set"], row["degrade"]) for row in results] == [
        (name, side) for name in ("one", "two") for side in (None, 8, 16)
    ]
    assert all(list(row) == KEYS for row in results)
    wanted = evaluate(load_embedder(model, 1).embed, load_bin(two), degrade=16)
    assert_close(results[-1], wanted, rel=1e-5)
    printed = capsys.readouterr().out
    assert f"{one}: VAL leaves out folds [0]" in printed
    assert "16×16" in printed
    assert f"{results[0]['accuracy']:.4f}" in printed


def test_command_with_a_folder_curves_and_a_plot(tmp_path, capsys, model):
    pairs = make_set(24)
    folder = tmp_path / "faces"
    lines = ["2\t6"]
    for pair in range(24):
        names = (f"P{pair}a", f"P{pair}a" if pairs.issame[pair] else f"P{pair}b")
        for side, name in enumerate(names):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{name}_{side + 1:04d}.png").write_bytes(png(pairs.images[2 * pair + side]))
        lines.append(f"{names[0]}\t1\t2" if pairs.issame[pair] else f"{names[0]}\t1\t{names[1]}\t2")
    (folder / "pairs.txt").write_text("\n".join(lines))
    made = write_bin(tmp_path / "made.bin", pairs.images, pairs.issame)
    out, plain, plot = tmp_path / "curves.json", tmp_path / "rows.json", tmp_path / "roc.svg"
    arguments = [str(model), str(folder), str(made), "--threads", "1", "--no-flip", "--plot", str(plot)]
    assert verification.main([*arguments, "--curves", str(out), "--json", str(plain)]) is None
    found = json.loads(out.read_text())
    assert found["verification"] == json.loads(plain.read_text())
    rows, curves = found["verification"], found["curves"]
    assert [(row["set"], row["pairs"]) for row in rows] == [("faces", 24), ("made", 24)]
    assert [(curve["set"], curve["path"]) for curve in curves] == [("faces", str(folder)), ("made", str(made))]
    assert rows[0]["eer"] == rows[1]["eer"]
    assert rows[0]["mean_norm"] == pytest.approx(rows[1]["mean_norm"])
    assert curves[0]["hardest"] == curves[1]["hardest"]
    assert curves[0]["roc"]["low"] != curves[1]["roc"]["low"]  # people drawn, and pairs drawn
    assert "faces" in plot.read_text()
    (mean,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| mean ")]
    assert f"{(rows[0]['accuracy'] + rows[1]['accuracy']) / 2:.4f}" in mean


def test_command_refuses_other_pictures_before_it_embeds(tmp_path):
    with pytest.raises(SettingsError, match=r"roc\.gif: expected a name ending in"):
        verification.main([str(tmp_path / "no.onnx"), str(tmp_path / "no.bin"), "--plot", "roc.gif"])


@pytest.mark.parametrize("side", ["0", "113", "x"])
def test_command_refuses_impossible_sides(side):
    with pytest.raises(SystemExit) as stop:
        verification.main(["model.pt", "set.bin", "--degrade", side])
    assert stop.value.code == 2


def test_command_ends_with_the_status_of_bad_data(tmp_path):
    path = tmp_path / "bad.bin"
    path.write_bytes(b"cos\nsystem\n(S'touch SPRUNG'\ntR.")
    command = [sys.executable, "-m", "eval.verification", "sets_are_read_first.onnx", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert f"{path}: offset 0: not a verification set: the name os.system is not allowed" in done.stderr
    assert not (ROOT / "SPRUNG").exists()


def test_command_ends_with_the_status_of_bad_numbers(tmp_path):
    """A network that takes the root of what is negative for dark pictures only."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
         helper.make_node("Sqrt", ["mean"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    model = tmp_path / "root.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(model))
    images = np.random.default_rng(0).integers(140, 250, (24, 112, 112, 3), dtype=np.uint8)
    images[7] = 0
    path = write_bin(tmp_path / "dark.bin", images, np.arange(12) % 2 == 0)
    command = [sys.executable, "-m", "eval.verification", str(model), str(path), "--device", "cpu", "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "1 of 24 embeddings are not finite: dark: pair 3, image 7" in done.stderr


@pytest.mark.slow
def test_real_network_on_real_faces(real_data):
    embedder = load_embedder(real_data / "third_party" / "mobilefacenet" / "MobileFaceNet.onnx")
    result = evaluate(embedder.embed, load_bin(real_data / "lfw" / "lfw_folds_8_9_10.bin"))
    assert result["pairs"] == 1800
    assert result["accuracy"] == pytest.approx(0.9900, abs=1e-4)  # an independent implementation's figures
    assert result["accuracy_std"] == pytest.approx(0.0161, abs=1e-4)
