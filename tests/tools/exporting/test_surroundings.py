"""What stands round the network: pixels, unit length, quality, batch, metadata; each against numpy."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from eval.embed import load_embedder
from eval.pixels import Given, normalise
from recognition.errors import SettingsError
from tools.export_onnx import export
from tools.exporting.form import Form
from tools.exporting.graph import make_room
from tools.exporting.surroundings import looks_normalising


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def facts_of(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


@pytest.fixture
def raw(given_file: Callable[..., Path], faces: np.ndarray) -> np.ndarray:
    return session(given_file()).run(None, {"pixels": normalise(faces[:5])})[0]


def insightface_takes_plain_pixels(path: Path) -> bool:
    """What that package looks for: names of nodes, among the first eight."""
    names = [node.name for node in onnx.load(str(path)).graph.node[:8]]
    return any(name.startswith(("Sub", "_minus")) for name in names) and any(
        name.startswith(("Mul", "_mul")) for name in names
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["inside", "uint8"])
def test_pixels_are_normalised_inside(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray, raw: np.ndarray, precision: str, kind: str
) -> None:
    out = tmp_path / "out.onnx"
    export(given_file(), out, faces, form=Form(precision, preprocessing=kind))  # type: ignore[arg-type]
    pixels = faces[:5].transpose(0, 3, 1, 2).astype(np.uint8 if kind == "uint8" else np.float32)
    (got,) = session(out).run(None, {"data": pixels})
    np.testing.assert_allclose(got, raw, atol=1e-4 if precision == "fp32" else 2e-2)
    assert insightface_takes_plain_pixels(out)
    assert [json.loads(facts_of(out)[key]) for key in ("mean", "std")] == [0, 1]
    assert facts_of(out)["preprocessing"] == "inside: RGB, (pixel − 127.5) / 127.5"
    # An evaluation finds out by itself what to feed it.
    embedder = load_embedder(out, 1, "cpu")
    np.testing.assert_allclose(embedder.embed(faces[:5]), raw, atol=1e-4 if precision == "fp32" else 2e-2)


def test_three_means_and_another_order(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    out, given = tmp_path / "out.onnx", Given((120.0, 110.0, 100.0), (50.0, 60.0, 70.0), "BGR")
    reference = load_embedder(given_file(), 1, "cpu", given).embed(faces[:4])
    export(given_file(), out, faces, form=Form(preprocessing="inside"), given=given)
    (got,) = session(out).run(None, {"data": faces[:4, ..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)})
    np.testing.assert_allclose(got, reference, atol=1e-4)
    assert facts_of(out)["color_order"] == "BGR"
    export(given_file(), out, faces, given=given)
    assert facts_of(out)["mean"] == "[120.0, 110.0, 100.0]"
    np.testing.assert_allclose(load_embedder(out, 1, "cpu").embed(faces[:4]), reference, atol=1e-5)


def test_what_normalises_by_itself_does_so_once(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray
) -> None:
    out, again = tmp_path / "inside.onnx", tmp_path / "again.onnx"
    export(given_file(), out, faces, form=Form(preprocessing="inside"))
    with pytest.raises(SettingsError, match="normalises by itself already"):
        export(out, again, faces, form=Form(preprocessing="inside"))
    report = export(out, again, faces, form=Form("fp16"))
    assert report.min_cosine > 0.9999
    assert [json.loads(facts_of(again)[key]) for key in ("mean", "std")] == [0, 1]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_file_of_another_form_is_known_to_have_it(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray, precision: str
) -> None:
    """What the metadata of an exported file say of its graph holds when it is exported again."""
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    export(given_file(), first, faces, form=Form(unit=True, preprocessing="inside"))
    export(first, again, faces, form=Form(precision))  # type: ignore[arg-type]
    facts = facts_of(again)
    assert facts["embedding"] == "unit length"
    assert facts["preprocessing"] == "inside: RGB, (pixel − 127.5) / 127.5"
    assert insightface_takes_plain_pixels(again)
    expected = load_embedder(first, 1, "cpu").embed(faces[:5])
    np.testing.assert_allclose(load_embedder(again, 1, "cpu").embed(faces[:5]), expected, atol=0.2)
    with pytest.raises(SettingsError, match="--quality: its embeddings have unit length and no norm to judge by"):
        export(first, again, faces, form=Form(precision, quality=True))  # type: ignore[arg-type]


def test_what_is_added_twice_has_two_names(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray, raw: np.ndarray
) -> None:
    """Names of this project's own in a file that tells nothing of it."""
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    export(given_file(), first, faces, form=Form(unit=True, preprocessing="inside"))
    model = onnx.load(str(first))
    del model.metadata_props[:]
    onnx.save(model, str(first))
    export(first, again, faces, form=Form(unit=True, preprocessing="uint8"))
    (got,) = session(again).run(None, {"data": faces[:5].transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(got, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-5)
    assert facts_of(again)["preprocessing"] == "inside"


def test_names_inside_subgraphs_follow() -> None:
    branch = helper.make_graph([helper.make_node("Neg", ["length"], ["b"])], "branch", [], [
        helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])])
    nodes = [helper.make_node("Abs", ["x"], ["length"]), helper.make_node("Abs", ["x"], ["length_inside"]),
             helper.make_node("If", ["c"], ["out"], then_branch=branch, else_branch=branch)]
    graph = helper.make_graph(nodes, "g", [], [])
    make_room(graph, ["length", "none"])
    assert [node.output[0] for node in graph.node] == ["length_inside1", "length_inside", "out"]
    assert [attribute.g.node[0].input[0] for attribute in graph.node[2].attribute] == ["length_inside1"] * 2


def test_unit_length(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray, raw: np.ndarray) -> None:
    export(given_file(), tmp_path / "out.onnx", faces, form=Form(unit=True))
    (got,) = session(tmp_path / "out.onnx").run(None, {"data": normalise(faces[:5])})
    np.testing.assert_allclose(got, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    assert facts_of(tmp_path / "out.onnx")["embedding"] == "unit length"
    assert not looks_normalising(onnx.load(str(tmp_path / "out.onnx")).graph)


def test_a_zero_embedding_stays_zero(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    from tools.exporting.surroundings import add_length

    model = onnx.load(str(given_file()))
    for node in model.graph.node:
        node.output[0] = "embedding" if node.output[0] == "out" else node.output[0]
    model.graph.output[0].name = "embedding"
    for tensor in model.graph.initializer:
        if tensor.name in ("w3", "b3"):
            tensor.raw_data = bytes(len(tensor.raw_data))
    add_length(model.graph, True, None)
    onnx.save(model, str(tmp_path / "zero.onnx"))
    (got,) = session(tmp_path / "zero.onnx").run(None, {"pixels": normalise(faces[:2])})
    assert not got.any()


def test_a_fixed_batch(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray, raw: np.ndarray) -> None:
    out = tmp_path / "out.onnx"
    report = export(given_file(), out, faces, form=Form(batch=5, quality=True, norms="images"))
    assert [row[0] for row in report.batches] == [5]
    shapes = [node.shape for node in (*session(out).get_inputs(), *session(out).get_outputs())]
    assert shapes == [[5, 3, 112, 112], [5, 16], [5]]
    embedding, _ = session(out).run(None, {"data": normalise(faces[:5])})
    np.testing.assert_allclose(embedding, raw, atol=1e-4)
    with pytest.raises(SettingsError, match="--batch: expected 1 or more, got 0"):
        Form(batch=0)


def test_metadata_tell_the_form(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    def ours(model: onnx.ModelProto) -> None:
        for key, value in {"run": "demo", "scores": '[{"set": "/sets/lfw.bin", "accuracy": 0.9}]'}.items():
            model.metadata_props.add(key=key, value=value)

    out = tmp_path / "out.onnx"
    export(given_file(change=ours), out, faces, form=Form("fp16", unit=True))
    assert facts_of(out) == {
        "input_size": "[112, 112]", "color_order": "RGB", "mean": "127.5", "std": "127.5", "preprocessing": "outside",
        "precision": "fp16", "embedding": "unit length", "embedding_size": "16", "run": "demo",
        "scores": '[{"set": "lfw.bin", "accuracy": 0.9}]', "scores_of": "float32 network",
    }  # fmt: skip
    assert b"someone" not in out.read_bytes()
