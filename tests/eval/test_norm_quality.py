"""eval/norm_quality.py: what a model's file says of quality, and what is made of a norm."""

import numpy as np
import onnx
import pytest

from eval.embed import load_embedder
from eval.norm_quality import NormQuality, quality_in
from eval.pixels import Given
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.errors import CheckpointError
from tools.export_onnx import export
from tools.exporting.form import Form


def test_numbers_of_a_model_file_and_text_of_an_onnx_file():
    wanted = NormQuality(20.0, 4.0, -2.0)
    assert quality_in({"step": 3, "quality_mean": 20, "quality_std": 4.0, "quality_threshold": -2.0}, "m") == wanted
    assert quality_in({"quality_mean": "20.0", "quality_std": "4", "quality_threshold": "-2"}, "m") == wanted
    norms = {"mean": 20.0, "deviation": 4.0, "tau": 2.0, "of": "momentum"}
    assert quality_in({"run": "a", "norms": norms}, "m") == wanted
    assert quality_in({"run": "a", "norms": None}, "m") is quality_in({"run": "a", "norms": {"mean": 3}}, "m") is None
    unit = {"quality_mean": "20.0", "quality_std": "4", "quality_threshold": "-2", "embedding": "unit length"}
    assert quality_in(unit, "m") is None
    assert quality_in(unit, "m", has_output=True) == wanted
    assert quality_in({"embedding": "unit length"}, "m", has_output=True) is None
    assert quality_in({**unit, "embedding": "raw"}, "m") == wanted
    assert quality_in({"run": "a", "step": 3}, "m") is None


def test_z_and_what_is_recognizable():
    quality = NormQuality(20.0, 4.0, -2.0)
    norm = np.array([20, 24, 12, 11.99], np.float32)
    z = quality.z(norm)
    np.testing.assert_allclose(quality.z(norm), [0, 1, -2, -2.0025], rtol=1e-5)
    assert quality.z(norm).dtype == np.float32
    assert quality.recognizable(z).tolist() == [True, True, True, False]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One network that carries its measure, as a model file and as ONNX files of every form."""
    folder = tmp_path_factory.mktemp("models")
    settings = BackboneSettings("tiny", embedding_size=8)
    info = {"norms": {"mean": 40.0, "deviation": 4.0, "tau": 1.0, "of": "momentum"}}
    save_model(folder / "model.pt", build(settings), settings, info)
    forms = {"raw": Form(quality=True), "unit": Form(unit=True, quality=True), "mute": Form(unit=True)}
    for name, form in forms.items():
        export(folder / "model.pt", folder / f"{name}.onnx", form=form)
    plain = onnx.load(str(folder / "raw.onnx"))  # as a QAFace run's model.onnx: the numbers, no second output
    keep = [output for output in plain.graph.output if output.name == "embedding"]
    del plain.graph.output[:]
    plain.graph.output.extend(keep)
    onnx.save(plain, str(folder / "plain.onnx"))
    return folder


def test_all_forms_of_a_network_know_the_same_quality(models):
    images = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), np.uint8)
    embedding, wanted = load_embedder(models / "model.pt", 1, "cpu").embed_and_judge(images)
    np.testing.assert_allclose(wanted, (np.linalg.norm(embedding, axis=1) - 40) / 4, rtol=1e-5)
    for name in ("plain", "raw", "unit"):
        embedder = load_embedder(models / f"{name}.onnx", 1, "cpu")
        found, z = embedder.embed_and_judge(images)
        np.testing.assert_allclose(z, wanted, atol=1e-3)
        np.testing.assert_array_equal(found, embedder.embed(images))
        assert embedder.quality == NormQuality(40.0, 4.0, -1.0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    asked = load_embedder(models / "unit.onnx", 1, "cpu", Given(output="embedding"))
    np.testing.assert_array_equal(asked.embed_and_judge(images)[1], z)


def test_unit_length_without_an_output_has_none(models):
    model = onnx.load(str(models / "mute.onnx"))
    for key, value in {"quality_mean": "40", "quality_std": "4", "quality_threshold": "-1"}.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(models / "told.onnx"))
    for name in ("mute", "told"):
        embedder = load_embedder(models / f"{name}.onnx", 1, "cpu")
        assert embedder.embed_and_judge(np.zeros((1, 112, 112, 3), np.uint8))[1] is embedder.quality is None


def test_a_quality_of_another_shape(models):
    model = onnx.load(str(models / "raw.onnx"))
    for node in model.graph.node:
        node.output[:] = ["inside" if name == "quality" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Expand", ["inside", "twice"], ["quality"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1]), "twice"))
    del next(output for output in model.graph.output if output.name == "quality").type.tensor_type.shape.dim[:]
    model.graph.output[1].type.tensor_type.ClearField("shape")
    onnx.save(model, str(models / "twice.onnx"))
    with pytest.raises(CheckpointError, match=r"expected quality \[3\], got \[2, 3\]"):
        load_embedder(models / "twice.onnx", 1, "cpu").embed_and_judge(np.zeros((3, 112, 112, 3), np.uint8))


@pytest.mark.parametrize(("info", "reason"), [
    ({"quality_mean": 1.0, "quality_std": 1.0}, "m: its quality: lacks 'quality_threshold'"),
    ({"quality_mean": "much", "quality_std": 1.0, "quality_threshold": 0}, "m: its quality: Expecting value"),
    ({"quality_mean": 1.0, "quality_std": 0, "quality_threshold": 0}, "std 0"),
    ({"quality_mean": "NaN", "quality_std": 1.0, "quality_threshold": 0}, "mean nan"),
    ({"quality_mean": [1], "quality_std": 1.0, "quality_threshold": 0}, "m: its quality"),
])  # fmt: skip
def test_what_cannot_be_used_is_said(info, reason):
    with pytest.raises(CheckpointError, match=reason):
        quality_in(info, "m")
