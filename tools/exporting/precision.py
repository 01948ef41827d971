"""A bare float32 graph in float16 or int8; its input and output stay float32.

float16: every float32 weight and tensor inside becomes float16, with a Cast at either end. LayerNormalization's sums
stay float32 (its stash_type); what does not fit into float16 is an error, not an infinity.

int8: static quantisation by onnxruntime in its QDQ form, uint8 activations with one scale a tensor, int8 weights with
one scale an output channel. What was measured on trained networks, and led here (docs/deployment.md):
- a range is the mean, over batches of calibration images, of the smallest and of the largest value: those over all
  images are one odd picture's, and the steps between are wider; percentiles and entropy cost time and gain nothing;
- ReLU and Clip go with the convolution in front of them: without that, its range is that of values that are cut off;
- first and last layer need no exception for the accuracy's sake; in front of PReLU the first layer and depthwise ones
  are faster in float;
- PReLU, the norms, softmax and attention's products of two activations stay float.
Proven by tests/tools/exporting/test_precision.py.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from eval.onnx_file import first_line
from recognition.errors import NumericsError, SettingsError
from tools.exporting.graph import INPUT, OUTPUT, make_room, quiet, rename, tidy

# With weights, and what stays in the same 8 bits behind them.
QUANTISED = ("Conv", "Gemm", "MatMul", "Relu", "Clip", "Flatten", "Reshape")
CALIBRATION_BATCH = 16


def to_half(model: onnx.ModelProto) -> None:
    """Let a bare float32 graph compute in float16, in place.

    Raises:
        NumericsError: a weight beyond float16's range. SettingsError: a graph with subgraphs or operators of others.
    """
    graph = model.graph
    for tensor in graph.initializer:
        _halve(tensor)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise SettingsError(f"--precision fp16: the operator {node.domain}.{node.op_type} is none of ONNX's own")
        for attribute in node.attribute:
            if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                raise SettingsError(f"--precision fp16: {node.op_type} has a subgraph")
            if attribute.type == AttributeProto.TENSOR:
                _halve(attribute.t)
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    del graph.value_info[:]
    make_room(graph, (f"{INPUT}_half", f"{OUTPUT}_half"))
    for name in (INPUT, OUTPUT):
        rename(graph, name, f"{name}_half")
    cast_in = helper.make_node("Cast", [INPUT], [f"{INPUT}_half"], to=TensorProto.FLOAT16)
    graph.node.insert(0, cast_in)
    graph.node.append(helper.make_node("Cast", [f"{OUTPUT}_half"], [OUTPUT], to=TensorProto.FLOAT))
    tidy(model)


def _halve(tensor: onnx.TensorProto) -> None:
    if tensor.data_type != TensorProto.FLOAT:
        return
    value = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    # An infinite bound of a Clip stays one; what becomes infinite is lost.
    if (np.isinf(half) & np.isfinite(value)).any():
        largest = np.abs(value[np.isfinite(value)]).max()
        raise NumericsError(f"--precision fp16: {tensor.name} has {largest:g}, float16 ends at {np.finfo('e').max:g}")
    tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))


def to_int8(model: onnx.ModelProto, data: np.ndarray, batch: int | None = None) -> onnx.ModelProto:
    """A bare float32 graph quantised, its ranges taken from `data`, network inputs float32 [n, 3, 112, 112].

    `batch`: of a graph that takes no other; the images that do not fill one are left out.
    SettingsError when onnxruntime cannot quantise the graph.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "int8.onnx")
        try:
            with quiet():
                quantize_static(
                    model,
                    out,
                    _Batches(data, batch),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=[*QUANTISED],
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                    nodes_to_exclude=kept_in_float(model.graph),
                    extra_options={"CalibMovingAverage": True, "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1}},
                )
        except Exception as error:  # whatever onnxruntime's quantiser meets in a graph that it does not know
            raise SettingsError(f"--precision int8: onnxruntime cannot quantise it: {first_line(error)}") from error
        quantised: onnx.ModelProto = onnx.load(str(out))
    used = {node.domain or "" for node in quantised.graph.node}
    for entry in [entry for entry in quantised.opset_import if entry.domain not in used | {"", "ai.onnx"}]:
        quantised.opset_import.remove(entry)
    tidy(quantised)
    return quantised


def kept_in_float(graph: onnx.GraphProto) -> list[str]:
    """Names of nodes that could be quantised and are not.

    Products of two activations: those of attention lose most and gain least. Where what follows computes in float
    (PReLU), the first layer, with three channels in, and convolutions in groups, with one: the way there and back costs
    more than their few products save.
    """
    weights = {tensor.name for tensor in graph.initializer}
    kept = [node.name for node in graph.node if node.op_type == "MatMul" and not weights & set(node.input)]
    for node in graph.node:
        in_groups = any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
        if node.op_type in ("Conv", "Gemm", "MatMul") and (INPUT in node.input or in_groups):
            behind = {reader.op_type for reader in graph.node if node.output[0] in reader.input}
            kept += [] if behind <= set(QUANTISED) else [node.name]
    return kept


class _Batches:
    """What onnxruntime's calibration reads: batches, then None."""

    def __init__(self, data: np.ndarray, batch: int | None) -> None:
        size = batch or CALIBRATION_BATCH
        count = len(data) // size * size if batch else len(data)
        self._batches: Iterator[dict[str, np.ndarray]] = iter(
            [{INPUT: data[start : start + size]} for start in range(0, count, size)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch."""
        return next(self._batches, None)
