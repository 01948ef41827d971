"""Somebody's ONNX file as what is exported: made bare, its batch freed, and what cannot be taken on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from eval.embed import load_embedder
from eval.pixels import Given, normalise
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.errors import SettingsError
from tools.export_onnx import export
from tools.exporting.form import Form


def run(path: Path, faces: np.ndarray, name: str = "data") -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: normalise(faces)})[0]


def test_names_and_constants_become_ours(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    expected = run(given_file(), faces[:3], "pixels")
    report = export(given_file(), tmp_path / "out.onnx", faces)
    assert "torch" not in str(report.table()), "it was not asked"
    model = onnx.load(str(tmp_path / "out.onnx"))
    assert (model.ir_version, [(entry.domain, entry.version) for entry in model.opset_import]) == (9, [("", 18)])
    graph = model.graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["data", "embedding"]
    assert "Constant" not in {node.op_type for node in graph.node}
    assert not graph.doc_string
    arrays = [(t.data_type, tuple(t.dims), t.raw_data) for t in graph.initializer]
    assert len(set(arrays)) == len(arrays), "no weight stands there twice"
    np.testing.assert_allclose(run(tmp_path / "out.onnx", faces[:3]), expected, atol=1e-5)


def test_a_batch_of_one_is_freed(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    path, out = given_file(1), tmp_path / "out.onnx"
    expected = np.concatenate([run(path, faces[number : number + 1], "pixels") for number in range(5)])
    report = export(path, out, faces)
    assert [row[0] for row in report.batches] == [1, 3, 32]
    np.testing.assert_allclose(run(out, faces[:5]), expected, atol=1e-5)
    report = export(path, out, faces, form=Form("int8", batch=1))
    assert [row[0] for row in report.batches] == [1]


def test_a_batch_that_cannot_be_freed(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    def bind(model: onnx.ModelProto) -> None:
        """Add weights of the size of a batch of two."""
        node = model.graph.node[-1]
        node.input[2] = "bound"
        model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 16), np.float32), "bound"))

    with pytest.raises(SettingsError, match=r"theirs.onnx: the graph does not run on .* images: .*; --batch 2 keeps"):
        export(given_file(2, bind), tmp_path / "out.onnx", faces)
    assert export(given_file(2, bind), tmp_path / "out.onnx", faces, form=Form(batch=2)).min_cosine > 0.99999


def test_weights_beside_the_file_come_into_it(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray
) -> None:
    path = given_file()
    expected = run(path, faces[:2], "pixels")
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, size_threshold=0, location="theirs.data")
    export(path, tmp_path / "out.onnx", faces)
    (tmp_path / "theirs.data").unlink()
    np.testing.assert_allclose(run(tmp_path / "out.onnx", faces[:2]), expected, atol=1e-5)


def test_a_bare_state_dict_takes_the_pixels_that_are_said(tmp_path: Path, faces: np.ndarray) -> None:
    settings = BackboneSettings("tiny", embedding_size=16)
    module = build(settings).eval()
    torch.save(module.state_dict(), tmp_path / "bare.pth")
    given = Given((110.0, 120.0, 130.0), (50.0, 60.0, 70.0), "BGR")
    data = torch.from_numpy((faces[:3, ..., ::-1].transpose(0, 3, 1, 2) - np.float32([110, 120, 130])[:, None, None])
                            / np.float32([50, 60, 70])[:, None, None])
    with torch.no_grad():
        expected = module(data).numpy()
    outside, inside = tmp_path / "outside.onnx", tmp_path / "inside.onnx"
    export(tmp_path / "bare.pth", outside, faces[:4], "tiny", given=given)
    export(tmp_path / "bare.pth", inside, faces[:4], "tiny", Form(preprocessing="inside"), given=given)
    np.testing.assert_allclose(load_embedder(outside, 1, "cpu").embed(faces[:3]), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(load_embedder(inside, 1, "cpu").embed(faces[:3]), expected, rtol=1e-3, atol=1e-3)
    facts = {entry.key: entry.value for entry in onnx.load(str(outside)).metadata_props}
    assert (facts["mean"], facts["std"], facts["color_order"]) == ("[110.0, 120.0, 130.0]", "[50.0, 60.0, 70.0]", "BGR")


@pytest.mark.parametrize("info", [{}, {"run": "demo"}])
def test_nothing_is_said_in_vain(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray, info: dict[str, str]
) -> None:
    with pytest.raises(SettingsError, match=r"theirs.onnx: --backbone tiny: is for bare state dicts"):
        export(given_file(), tmp_path / "out.onnx", faces, "tiny")
    settings = BackboneSettings("tiny", embedding_size=16)
    save_model(tmp_path / "ours.pt", build(settings), settings, info)
    for given in (Given(mean=(0.0,) * 3), Given(std=(128.0,) * 3), Given(color_order="BGR")):
        with pytest.raises(SettingsError, match=r"ours.pt: --mean, --std, --color-order: .*, but it was trained on"):
            export(tmp_path / "ours.pt", tmp_path / "out.onnx", faces, given=given)
    assert not (tmp_path / "out.onnx").exists()
    export(tmp_path / "ours.pt", tmp_path / "out.onnx", faces[:2], given=Given((127.5,) * 3, (127.5,) * 3, "RGB"))


def test_what_cannot_be_taken_on(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    path = given_file()
    with pytest.raises(SettingsError, match="is the file to be exported; give another OUT"):
        export(path, path, faces)
    export(path, tmp_path / "two.onnx", faces, form=Form(quality=True))
    with pytest.raises(SettingsError, match=r"and one output \[n, d\], got .*'n'\]\]"):
        export(tmp_path / "two.onnx", tmp_path / "out.onnx", faces)
