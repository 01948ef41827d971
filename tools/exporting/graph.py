"""A backbone as an ONNX graph: traced by torch's exporter (no TorchScript), folded, and cleaned of its making.

A bare graph has one input `data` [batch, 3, 112, 112], one output `embedding` [batch, d], float32 both, no metadata,
every constant an initializer, none of them twice. Works on any graph: nothing here expects convolutions.
Proven by tests/tools/test_export_onnx.py and tests/tools/exporting/test_source.py.
"""

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from eval.pixels import IMAGE_SIZE

OPSET = 20
INPUT, OUTPUT = "data", "embedding"


def trace(module: nn.Module) -> onnx.ModelProto:
    """The bare graph of a backbone in eval mode, any batch."""
    example = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def fold_norm_before_linear(graph: onnx.GraphProto) -> None:
    """Fold BatchNormalization, flatten, Gemm into the Gemm: W(s·x + t) + b = (W·s)x + (W·t + b), exact without padding.

    The exporter folds a norm after a convolution or a linear map by itself. A norm before a padded convolution stays:
    its shift does not reach the border.
    """
    values = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    for linear in [node for node in graph.node if node.op_type == "Gemm" and len(node.input) == 3]:
        flatten = makers.get(linear.input[0])
        norm = makers.get(flatten.input[0]) if flatten is not None and flatten.input else None
        if flatten is None or norm is None:
            continue
        kinds = norm.op_type == "BatchNormalization" and flatten.op_type in ("Reshape", "Flatten")
        options = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in linear.attribute}
        plain = options.get("transB") == 1 and options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
        needed = {*linear.input[1:3], *(norm.input[1:5] if kinds else ())}
        if not (kinds and plain and uses[norm.output[0]] == uses[flatten.output[0]] == 1 and needed <= values.keys()):
            continue
        if uses[linear.input[1]] > 1 or uses[linear.input[2]] > 1:
            continue
        _scale_and_shift_inputs(linear, norm, values)
        flatten.input[0] = norm.input[0]
        graph.node.remove(norm)
        for name in norm.input[1:5]:
            if uses[name] == 1:
                graph.initializer.remove(values[name])


def _scale_and_shift_inputs(linear: onnx.NodeProto, norm: onnx.NodeProto, values: dict[str, onnx.TensorProto]) -> None:
    """Write W·s and W·t + b into the linear map, in float64; every channel of the norm covers consecutive inputs."""
    gain, shift, mean, variance = (numpy_helper.to_array(values[name]).astype(float) for name in norm.input[1:5])
    weight, bias = (numpy_helper.to_array(values[name]).astype(float) for name in linear.input[1:3])
    epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
    scale = gain / np.sqrt(variance + epsilon)
    per_channel = weight.shape[1] // len(scale)
    bias = bias + weight @ np.repeat(shift - mean * scale, per_channel)
    weight = weight * np.repeat(scale, per_channel)
    for name, new in zip(linear.input[1:3], (weight, bias), strict=True):
        values[name].CopyFrom(numpy_helper.from_array(new.astype(np.float32), name))


def tidy(model: onnx.ModelProto) -> None:
    """Make the file as small as it can be and remove what tells of its making.

    Constants become initializers, equal ones one, those that nothing reads go; so do the shapes noted for tensors
    inside (any reader infers them), stack traces, source files and modules. Nodes are named by place and kind.
    """
    graph = model.graph
    constants_to_initializers(graph)
    merge_initializers(graph)
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:], graph.quantization_annotation[:]
    model.doc_string = graph.doc_string = ""
    model.producer_name = model.producer_version = ""
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    for place, node in enumerate(graph.node):
        node.name = f"node_{place}_{node.op_type}"


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Replace Constant nodes that hold a tensor; the passes that change weights look at initializers alone."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        (attribute,) = node.attribute
        if attribute.name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(attribute.t)
        elif attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
            kind = np.float32 if "float" in attribute.name else np.int64
            value = np.array(onnx.helper.get_attribute_value(attribute), kind)
            tensor = graph.initializer.add()
            tensor.CopyFrom(numpy_helper.from_array(value))
        else:
            continue
        tensor.name = node.output[0]
        graph.node.remove(node)


def merge_initializers(graph: onnx.GraphProto) -> None:
    """Keep one of equal initializers and none that nothing reads."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same = {}
    for tensor in graph.initializer:
        key = tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes()
        same[tensor.name] = first.setdefault(key, tensor.name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
    needed = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in needed and same[tensor.name] == tensor.name]
    kept += [tensor for tensor in graph.initializer if tensor.name in needed and same[tensor.name] != tensor.name]
    if len(kept) < len(graph.initializer):
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a tensor where nodes read and write it and among the weights; graph inputs and outputs keep theirs."""
    for tensor in graph.initializer:
        tensor.name = new if tensor.name == old else tensor.name
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
        for attribute in node.attribute:  # what runs inside a node reads what is outside by its name
            for inside in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                rename(inside, old, new)


def make_room(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Give tensors inside that have one of these names others: what is added to the graph is to have them."""
    taken = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    for name in taken.intersection(names):
        free = next(other for number in count() if (other := f"{name}_inside{number or ''}") not in taken)
        taken.add(free)
        rename(graph, name, free)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and log lines below an error: the exporter reports what it lacks, none of which is used here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
