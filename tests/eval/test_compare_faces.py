"""`python -m eval.embed MODEL compare A B`: thresholds, where they come from, and verdicts."""

import json
import pickle

import cv2
import numpy as np
import pytest

from eval import compare_faces, embed_command
from eval.compare_faces import compare
from eval.norm_quality import NormQuality, judged
from eval.pictures import FaceMaker
from eval.thresholds import Threshold, from_pairs
from eval.verification import evaluate, load_bin
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.errors import DataError, SettingsError
from tests.eval.evaluated_runs import evaluation, row
from tools.export_onnx import export
from tools.exporting.form import Form

MATRIX = np.random.default_rng(0).normal(size=(7 * 7 * 3, 6)).astype(np.float32)


class Cheap:
    """Coarse pixels times a matrix, no friend of mirrors; the norm is that of the picture's contrast."""

    name, dim, notes, pixels = "cheap", 6, [], None

    def __init__(self, quality=None):
        self.quality = quality

    def embed(self, images):
        coarse = images.reshape(len(images), 7, 16, 7, 16, 3).mean(axis=(2, 4)).reshape(len(images), -1)
        return (coarse.astype(np.float32) - 127.5) @ MATRIX / 1000

    def embed_and_judge(self, images):
        return judged(self.embed(images), self.quality)


def picture(number, noise=0.0):
    coarse = np.random.default_rng(number).integers(0, 256, (7, 7, 3)).astype(np.float32)
    coarse += np.random.default_rng(number + 999).normal(0, 1, coarse.shape) * noise
    return np.kron(np.clip(coarse, 0, 255), np.ones((16, 16, 1))).astype(np.uint8)


@pytest.fixture
def faces(tmp_path):
    """Two pictures of one face, one of another."""
    paths = []
    for name, image in (("a", picture(1)), ("b", picture(1, 40)), ("c", picture(2))):
        paths.append(str(tmp_path / f"{name}.png"))
        cv2.imwrite(paths[-1], image[:, :, ::-1])
    return paths


def write_pairs(path, same=10, different=40):
    issame = [True] * same + [False] * different
    images = [image for at, match in enumerate(issame)
              for image in (picture(at), picture(at, 40) if match else picture(1000 + at))]
    encoded = [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in images]
    path.write_bytes(pickle.dumps((encoded, issame), protocol=2))
    return path


def test_the_similarity_is_the_protocols_cosine(faces):
    one, two = (cv2.imread(path)[:, :, ::-1] for path in (faces[0], faces[2]))
    network = Cheap()
    straight = network.embed(np.stack([one, two]))
    both = straight + network.embed(np.stack([one, two])[:, :, ::-1])

    def cosine(rows):
        return float(rows[0] @ rows[1] / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1]))

    for flip, rows in ((True, both), (False, straight)):
        found = compare(network, [faces[0], faces[2]], FaceMaker(), None, flip)
        assert found["similarity"] == pytest.approx(cosine(rows), abs=1e-6)
        assert found["pictures"][0]["norm"] == pytest.approx(np.linalg.norm(straight[0]), rel=1e-6)
        assert found["verdict"] is None
        assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_verdicts(faces):
    alike = compare(Cheap(), faces[:2], FaceMaker(), None)["similarity"]
    for value, verdict in ((alike, "same person"), (np.nextafter(alike, 2), "different people")):
        threshold = Threshold(float(value), 1e-3, "a test")
        assert compare(Cheap(), faces[:2], FaceMaker(), threshold)["verdict"] == verdict
    norm = [one["norm"] for one in compare(Cheap(), faces[:2], FaceMaker(), None)["pictures"]]
    low = NormQuality(0.0, 1.0, (norm[0] + norm[1]) / 2)  # one of them is below it
    found = compare(Cheap(low), faces[:2], FaceMaker(), Threshold(-1.0, None, "given"))
    assert found["verdict"] == "cannot tell"
    assert sorted(one["recognizable"] for one in found["pictures"]) == [False, True]
    np.testing.assert_allclose([one["quality"] for one in found["pictures"]], norm, rtol=1e-6)


@pytest.mark.parametrize("flip", [True, False])
def test_a_threshold_from_pairs_is_that_of_the_verification(tmp_path, flip):
    path = write_pairs(tmp_path / "pairs.bin")
    row = evaluate(Cheap().embed, load_bin(path), flip=flip)
    found = from_pairs(Cheap().embed, path, 0.1, flip)
    assert found == Threshold(row["threshold@far"]["0.1"], 0.1, "pairs, 40 pairs of different people")
    with pytest.raises(SettingsError, match=r"too few .* 0\.001: .* 1000 of .*\.bin has 40, enough for --far 0\.1"):
        from_pairs(Cheap().embed, path, 1e-3, flip)
    assert from_pairs(Cheap().embed, path, None, flip) == found  # the strictest of 40 pairs
    write_pairs(path, different=9)
    with pytest.raises(SettingsError, match=r"too few pairs for FAR 0\.1: it needs 10 .* has 9"):
        from_pairs(Cheap().embed, path, None, flip)


def test_a_verdict_agrees_with_the_pairs_it_rests_on(tmp_path):
    """Of the pairs of different people exactly the FAR's share is called one person, the protocol's own scores."""
    path = write_pairs(tmp_path / "pairs.bin")
    threshold, verdicts = from_pairs(Cheap().embed, path, 0.1), []
    for at in range(10, 50):
        names = [str(tmp_path / f"{side}.png") for side in "ab"]
        for name, image in zip(names, (picture(at), picture(1000 + at)), strict=True):
            cv2.imwrite(name, image[:, :, ::-1])
        verdicts.append(compare(Cheap(), names, FaceMaker(), threshold)["verdict"])
    assert verdicts.count("same person") == 4


@pytest.fixture
def run(tmp_path):
    """A run folder with a model that carries its measure of quality, and its evaluation."""
    folder = tmp_path / "run"
    folder.mkdir()
    settings = BackboneSettings("tiny", embedding_size=8)
    quality = {"quality_mean": 1.0, "quality_std": 1.0, "quality_threshold": -2.0}
    save_model(folder / "model_last.pt", build(settings), settings, quality)
    return evaluation(folder, [row("lfw", 3000, one=-0.9, two=2.0)])


def test_command(run, faces, tmp_path, capsys):
    def said(*options):
        embed_command.main([str(run), "compare", *faces[:2], "--threads", "1", *options])
        return capsys.readouterr().out

    text = said("--json", str(tmp_path / "out.json"))
    assert "threshold 2.0000 (at FAR 0.001, lfw, 3000 pairs of different people)" in text
    assert text.endswith("verdict: different people (at FAR 0.001, the strictest that the pairs support)\n")
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["verdict"], found["far"], found["threshold"]) == ("different people", 1e-3, 2.0)
    assert f"{faces[0]}: norm {found['pictures'][0]['norm']:.2f}, quality " in text
    assert f"similarity {found['similarity']:.4f} (cosine of image plus mirror)" in text
    assert said("--far", "0.01").endswith("verdict: same person (at FAR 0.01)\n")
    assert said("--threshold", "-1").endswith("threshold -1.0000 (given)\nverdict: same person\n")
    text = said("--no-flip")
    assert "no threshold known: those of a model's verification are of image plus mirror. --threshold X" in text
    assert text.endswith("verdict: none\n")
    pairs = write_pairs(tmp_path / "pairs.bin")
    assert "at FAR 0.1, pairs, 40 pairs of different people" in said("--pairs", str(pairs), "--far", "0.1", "--no-flip")
    assert "(at FAR 0.1, the strictest that the pairs support)\n" in said("--pairs", str(pairs))
    with pytest.raises(SettingsError, match=r"too few pairs for FAR 0\.001"):
        said("--pairs", str(pairs), "--far", "0.001")
    with pytest.raises(SettingsError, match=r"no thresholds at FAR 0\.5"):
        said("--far", "0.5")


def test_command_on_a_model_that_was_trained_on(run, faces, capsys):
    settings = BackboneSettings("tiny", embedding_size=8)
    save_model(run / "model_last.pt", build(settings), settings, {})
    embed_command.main([str(run), "compare", *faces[:2], "--threads", "1"])
    text = capsys.readouterr().out
    assert "no threshold known: evaluation.json is of model.onnx as it was then: model_last.pt has another SHA" in text
    assert text.endswith("verdict: none\n")
    with pytest.raises(SettingsError, match="another SHA-256"):
        embed_command.main([str(run), "compare", *faces[:2], "--threads", "1", "--far", "0.01"])


def test_command_where_the_quality_is_too_low(run, faces, tmp_path, capsys):
    settings = BackboneSettings("tiny", embedding_size=8)
    quality = {"quality_mean": 1e6, "quality_std": 1.0, "quality_threshold": -2.0}
    save_model(tmp_path / "m.pt", build(settings), settings, quality)
    embed_command.main([str(tmp_path / "m.pt"), "compare", *faces[:2], "--threads", "1"])
    text = capsys.readouterr().out
    assert text.count(", below the threshold -2\n") == 2
    assert text.endswith("verdict: cannot tell (quality below the threshold)\n")


def test_command_where_the_quality_is_not_known(faces, tmp_path, capsys):
    settings = BackboneSettings("tiny", embedding_size=8)
    save_model(tmp_path / "m.pt", build(settings), settings, {})
    export(tmp_path / "m.pt", tmp_path / "unit.onnx", form=Form(unit=True))
    for name, reason in (("m.pt", "the model carries no measure of it"),
                         ("unit.onnx", "the embeddings have unit length, and no other output tells it")):
        embed_command.main([str(tmp_path / name), "compare", *faces[:2], "--threads", "1"])
        assert capsys.readouterr().out.count(f", quality not known: {reason}\n") == 2


def test_pictures_and_options_that_cannot_be(run, faces, tmp_path, capsys):
    with pytest.raises(DataError, match=r"none\.png: No such file"):
        embed_command.main([str(run), "compare", faces[0], str(tmp_path / "none.png")])
    cv2.imwrite(str(tmp_path / "big.png"), np.zeros((200, 150, 3), np.uint8))
    with pytest.raises(SettingsError, match=r"big\.png: 150×200 pixels; .*--detect"):
        embed_command.main([str(run), "compare", faces[0], str(tmp_path / "big.png")])
    for options in (["--far", "0"], ["--far", "1"], ["--threshold", "2"], ["--threshold", "0.3", "--far", "0.1"]):
        with pytest.raises(SystemExit) as error:
            compare_faces.main([str(run), *faces[:2], *options])
        assert error.value.code == 2
    capsys.readouterr()


def test_help_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        compare_faces.main(["MODEL", "--help"])
    assert ended.value.code == 0
    assert "MODEL compare A B" in capsys.readouterr().out
