"""What stands round the network in an exported graph: pixels in front, unit length and quality behind, the batch.

All of it is float32, whatever the network inside is. Preprocessing is a Sub and a Mul of its own in front: folded into
the first convolution the shift would miss the border, which that convolution pads with zeros after it. Well-known
clients take a graph with nodes named Sub… and Mul… among its first eight for one that normalises by itself, and feed it
plain pixels 0 to 255: that is what such a graph takes here, and no other graph has them there.
Proven by tests/tools/exporting/test_surroundings.py.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from eval.pixels import Pixels
from recognition.errors import SettingsError
from tools.exporting.form import Form
from tools.exporting.graph import INPUT, OUTPUT, make_room, rename
from tools.exporting.quality import Norms

INSPECTED_NODES = 8
QUALITY = "quality"
# Names of all tensors that are added.
ADDED = (
    f"raw_{OUTPUT}", "length_axes", "length", "length_least", "length_safe", "length_flat", "length_above",
    "quality_mean", "quality_std", QUALITY,
    "pixels_mean", "pixels_factor", "pixels_float", "pixels_centred", "pixels_normal",
)  # fmt: skip
# What keeps the length of a zero embedding from dividing by zero.
SMALLEST_NORM = 1e-12


def surround(
    model: onnx.ModelProto, form: Form, pixels: Pixels, norms: Norms | None, normalises: bool = False
) -> None:
    """Add all that `form` asks for to a bare graph, in place; `normalises`: it does that to pixels by itself."""
    make_room(model.graph, ADDED)
    if normalises:
        for node in model.graph.node[:INSPECTED_NODES]:
            node.name = f"{node.op_type}_{node.output[0]}" if node.op_type in ("Sub", "Mul") else node.name
    if form.unit or norms is not None:
        add_length(model.graph, form.unit, norms)
    if form.preprocessing != "outside":
        add_pixels(model.graph, pixels, form.preprocessing == "uint8")
    if form.batch is not None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_value = form.batch


def add_length(graph: onnx.GraphProto, unit: bool, norms: Norms | None) -> None:
    """Behind the network: x / ‖x‖ instead of x, and `quality` [batch], (‖x‖ − μ)/σ; ‖x‖ is that of the raw x."""
    (output,) = graph.output
    batch = output.type.tensor_type.shape.dim[0]
    raw = f"raw_{OUTPUT}" if unit else OUTPUT
    if unit:
        rename(graph, OUTPUT, raw)
        output.name = OUTPUT
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "length_axes"))
    graph.node.append(_node("ReduceL2", [raw, "length_axes"], "length", keepdims=1))
    if unit:
        graph.initializer.append(numpy_helper.from_array(np.array(SMALLEST_NORM, np.float32), "length_least"))
        graph.node.append(_node("Max", ["length", "length_least"], "length_safe"))
        graph.node.append(_node("Div", [raw, "length_safe"], OUTPUT))
    if norms is None:
        return
    for name, value in (("quality_mean", norms.mean), ("quality_std", norms.deviation)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    graph.node.append(_node("Squeeze", ["length", "length_axes"], "length_flat"))
    graph.node.append(_node("Sub", ["length_flat", "quality_mean"], "length_above"))
    graph.node.append(_node("Div", ["length_above", "quality_std"], QUALITY))
    graph.output.append(helper.make_tensor_value_info(QUALITY, TensorProto.FLOAT, [batch.dim_param or batch.dim_value]))


def add_pixels(graph: onnx.GraphProto, pixels: Pixels, from_uint8: bool) -> None:
    """In front of the network: (pixel − mean) · 1/std of pixels 0 to 255, as float32 or as uint8."""
    if pixels.mean == (0, 0, 0) and pixels.std == (1, 1, 1) and not from_uint8:
        raise SettingsError("--preprocessing inside: this graph normalises by itself already")
    (given,) = graph.input
    rename(graph, INPUT, "pixels_normal")
    source, front = INPUT, []
    if from_uint8:
        given.type.tensor_type.elem_type = TensorProto.UINT8
        front.append(_node("Cast", [INPUT], "pixels_float", to=TensorProto.FLOAT))
        source = "pixels_float"
    shape = (1,) if len(set(pixels.mean)) == len(set(pixels.std)) == 1 else (1, 3, 1, 1)
    for name, values in (("pixels_mean", pixels.mean), ("pixels_factor", 1 / np.array(pixels.std))):
        array = np.array(values, np.float32)[: np.prod(shape)].reshape(shape)
        graph.initializer.append(numpy_helper.from_array(array, name))
    front.append(_node("Sub", [source, "pixels_mean"], "pixels_centred"))
    front.append(_node("Mul", ["pixels_centred", "pixels_factor"], "pixels_normal"))
    for place, node in enumerate(front):
        graph.node.insert(place, node)


def looks_normalising(graph: onnx.GraphProto) -> bool:
    """Whether well-known clients would feed this graph plain pixels."""
    kinds = {node.op_type for node in graph.node[:INSPECTED_NODES]}
    return {"Sub", "Mul"} <= kinds


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node whose name begins with its kind, as clients look for it."""
    return helper.make_node(kind, inputs, [output], name=f"{kind}_{output}", **attributes)
