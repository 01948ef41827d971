"""float16 and int8: what is in the file, how near it is, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from recognition.errors import NumericsError, SettingsError
from tools.export_onnx import export, lines
from tools.exporting.form import Form
from tools.exporting.precision import kept_in_float, to_int8


def types_of(path: Path) -> dict[str, set[int]]:
    """Types of the initializers, by the kind of node that reads them."""
    graph = onnx.load(str(path)).graph
    values = {tensor.name: tensor.data_type for tensor in graph.initializer}
    found: dict[str, set[int]] = {}
    for node in graph.node:
        found.setdefault(node.op_type, set()).update(values[name] for name in node.input if name in values)
    return found


def test_half(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    plain = export(given_file(), tmp_path / "plain.onnx", faces)
    report = export(given_file(), tmp_path / "half.onnx", faces, form=Form("fp16"))
    assert report.precision == "fp16"
    assert 0.999 < report.min_cosine < 1
    assert report.num_bytes < 0.65 * plain.num_bytes
    model = onnx.load(str(tmp_path / "half.onnx"))
    assert not [t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert [node.op_type for node in model.graph.node if node.op_type == "Cast"] == ["Cast", "Cast"]
    ends = (*model.graph.input, *model.graph.output)
    assert [value.type.tensor_type.elem_type for value in ends] == [TensorProto.FLOAT] * 2
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    inside = {value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    assert inside == {TensorProto.FLOAT16}, "every tensor inside is float16"


def test_half_refuses_what_float16_cannot_hold(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray
) -> None:
    def large(model: onnx.ModelProto) -> None:
        (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "b3")
        weight.CopyFrom(numpy_helper.from_array(np.full(16, 7e4, np.float32), "b3"))

    with pytest.raises(NumericsError, match=r"b3 has 70000, float16 ends at 65504"):
        export(given_file(change=large), tmp_path / "out.onnx", faces, form=Form("fp16"))

    def foreign(model: onnx.ModelProto) -> None:
        model.graph.node[1].CopyFrom(helper.make_node("FastGelu", ["c1"], ["p1"], domain="com.microsoft"))
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    with pytest.raises(SettingsError, match=r"the operator com\.microsoft\.FastGelu is none of ONNX's own"):
        export(given_file(change=foreign), tmp_path / "out.onnx", faces, form=Form("fp16"))
    assert not (tmp_path / "out.onnx").exists()


def test_int8(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    plain = export(given_file(), tmp_path / "plain.onnx", faces)
    report = export(given_file(), tmp_path / "int8.onnx", faces, form=Form("int8"))
    assert 0.98 < report.min_cosine < 0.999999
    assert report.num_bytes < 0.6 * plain.num_bytes  # of a network this small the nodes count
    model = onnx.load(str(tmp_path / "int8.onnx"))
    assert {entry.domain for entry in model.opset_import} == {""}
    assert [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)] == [1, 1]
    kinds = types_of(tmp_path / "int8.onnx")
    assert TensorProto.FLOAT not in kinds["Gemm"], "weights are read through DequantizeLinear"
    assert kinds["PRelu"] == {TensorProto.FLOAT}
    assert "Clip" not in kinds, "the range of the convolution's output does what Clip did"
    makers = {name: node for node in model.graph.node for name in node.output}
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    first, second = (node for node in model.graph.node if node.op_type == "Conv")
    assert values[first.input[1]].data_type == TensorProto.FLOAT, "in front of PRelu"
    for node in model.graph.node:
        if node.op_type == "Gemm" or node == second:
            weight, scale = makers[node.input[1]].input[:2]
            assert values[weight].data_type == TensorProto.INT8
            assert list(values[scale].dims) == [values[weight].dims[0]], "a scale for every output channel"


def test_the_first_layer_is_quantised_in_front_of_a_clip(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray
) -> None:
    def clip(model: onnx.ModelProto) -> None:
        for node in [node for node in model.graph.node if node.op_type == "Constant"][:2]:
            model.graph.node.remove(node)
            model.graph.node.insert(0, node)
        model.graph.node[3].CopyFrom(helper.make_node("Clip", ["c1", "low", "high"], ["p1"]))

    export(given_file(change=clip), tmp_path / "int8.onnx", faces, form=Form("int8"))
    assert types_of(tmp_path / "int8.onnx")["Conv"] == set()


def test_ranges_are_means_over_batches_of_their_extremes() -> None:
    """Two batches of 16, one picture in the second with a hundredfold value: the range takes half of what it adds."""
    weight = numpy_helper.from_array(np.ones((4, 3 * 112 * 112), np.float32) / 1e5, "w")
    nodes = [helper.make_node("Flatten", ["data"], ["flat"], "flat"),
             helper.make_node("Gemm", ["flat", "w"], ["embedding"], "gemm", transB=1)]
    network = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 4])], [weight],
    )  # fmt: skip
    data = np.zeros((32, 3, 112, 112), np.float32)
    data[:, 0, 0, 0], data[20, 0, 0, 0] = 1, 100
    model = helper.make_model(network, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    quantised = to_int8(model, data).graph
    first = next(node for node in quantised.node if node.op_type == "QuantizeLinear" and node.input[0] == "flat")
    scale = next(tensor for tensor in quantised.initializer if tensor.name == first.input[1])
    assert numpy_helper.to_array(scale) * 255 == pytest.approx((1 + 100) / 2)


@pytest.mark.parametrize("behind", ["PRelu", "Clip"])
def test_where_8_bits_do_not_pay(behind: str) -> None:
    nodes = [
        helper.make_node("Conv", ["data", "w"], ["first"], "first"),
        helper.make_node(behind, ["first", "a"], ["a1"], "a1"),
        helper.make_node("Conv", ["a1", "w"], ["deep"], "depthwise", group=8),
        helper.make_node(behind, ["deep", "a"], ["a2"], "a2"),
        helper.make_node("Conv", ["a2", "w"], ["wide"], "pointwise"),
        helper.make_node(behind, ["wide", "a"], ["a3"], "a3"),
        helper.make_node("MatMul", ["a3", "w"], ["linear"], "linear"),
        helper.make_node("MatMul", ["a3", "linear"], ["attention"], "attention"),
    ]
    weights = [numpy_helper.from_array(np.zeros(1, np.float32), name) for name in ("w", "a")]
    graph = helper.make_graph(nodes, "g", [], [], weights)
    slow = ["first", "depthwise"] if behind == "PRelu" else []
    assert kept_in_float(graph) == ["attention", *slow]


def test_int8_wants_images_and_says_so(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    with pytest.raises(SettingsError, match="--precision int8 is calibrated on faces: --images SET"):
        export(given_file(), tmp_path / "out.onnx", form=Form("int8"))
    export(given_file(), tmp_path / "int8.onnx", faces, form=Form("int8"))
    with pytest.raises(SettingsError, match="quantised already"):
        export(tmp_path / "int8.onnx", tmp_path / "out.onnx", faces)
    export(given_file(), tmp_path / "half.onnx", faces, form=Form("fp16"))
    with pytest.raises(SettingsError, match="expected a float32 network"):
        export(tmp_path / "half.onnx", tmp_path / "out.onnx", faces)


@pytest.mark.parametrize(
    ("count", "batch", "said"),
    [(160, None, None), (96, None, None), (95, None, "63 images, fewer than 64; --images SET"),
     (63, None, "63 images, fewer than 64, and the comparison is on the same pictures; --images SET"),
     (120, 30, "60 images, fewer than 64; --images SET")],
)  # fmt: skip
def test_few_images_to_calibrate_on_are_told(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray, count: int, batch: int | None, said: str | None
) -> None:
    """Of 64 or more, 32 are kept for the comparison; what does not fill a fixed batch is left out."""
    form = Form("int8", batch=batch)
    report = export(given_file(batch or "n"), tmp_path / "out.onnx", faces[:count], form=form)
    warned = [line for line in lines(report) if line.startswith("warning")]
    assert warned == ([] if said is None else [f"warning: int8 is calibrated on {said}"])
    assert lines(export(given_file(batch or "n"), tmp_path / "out.onnx", faces[:2])) == []
    if batch is not None:
        with pytest.raises(SettingsError, match="--precision int8: 29 images do not fill its batch of 30"):
            export(given_file(batch), tmp_path / "out.onnx", faces[:29], form=form)


def test_a_limit_of_ones_own(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    with pytest.raises(NumericsError, match=r"expected at least 0\.9999999 in int8"):
        export(given_file(), tmp_path / "out.onnx", faces, form=Form("int8", least_cosine=0.9999999))
    assert not (tmp_path / "out.onnx").exists()
