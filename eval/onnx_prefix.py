"""Whether an ONNX graph normalises its pixels by itself: not by the names of its nodes, but by what they compute.

Owns the reading of the graph's beginning, its prefix: what is done to the image before the first operation that is not
the same for every pixel (a convolution, a matrix product). The prefix is cut out and run on three images; what it does
must be a·pixel + b per channel, and says what pixels the graph wants:

    subtract and divide   mean −b/a and deviation 1/a of the pixels it was made for
    BatchNormalization    mean and deviation of the pixels it was trained on: it kept them

Sub and Mul further inside are the network's own. So is a prefix that is neither of these (a BatchNormalization on
pixels that were normalised before, an input scaled by 1). Proven by tests/eval/test_onnx_input.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import external_data_helper, helper, numpy_helper

from eval.onnx_file import first_line
from eval.pixels import IMAGE_SIZE

POINTWISE = frozenset(
    {"Identity", "Cast", "Transpose", "Sub", "Add", "Mul", "Div", "Neg", "BatchNormalization"}
    | {"Gather", "Split", "Concat", "Slice"}  # of channels
)
MAX_CONSTANTS = 1 << 22  # numbers; a mean image has 37,632, a network's weights more than this
# Deviations: of pixels from 0 to 255 (faces have 50 to 75; what people divide by goes from 58 to 256), and of pixels
# from 0 to 1. Normalised pixels deviate by 0.5, but around 0.
BYTE_DEVIATION, BYTE_MEAN = (16.0, 512.0), (-1.0, 256.0)
UNIT_DEVIATION, UNIT_MEAN = (0.1, 0.75), (0.2, 0.8)


@dataclass(frozen=True)
class Prefix:
    """What a graph does to its pixels first.

    takes: "bytes" (pixels 0 to 255), "units" (0 to 1), or "" (the network's own operations, or nothing known).
    operations: their kinds, in order.  mean, deviation: [3], of the pixels that they were made for, in its units.
    """

    takes: str
    operations: tuple[str, ...]
    mean: np.ndarray
    deviation: np.ndarray

    def __str__(self) -> str:
        shown = [" ".join(dict.fromkeys(f"{v:.4g}" for v in values)) for values in (self.mean, self.deviation)]
        return f"{', '.join(self.operations)}: mean {shown[0]}, deviation {shown[1]}"


def read_prefix(model: onnx.ModelProto, folder: Path, where: Any) -> Prefix | None:
    """Find out what a graph does to its pixels first.

    Args:
        model: the graph; weights outside the file need not be loaded.
        folder: where these lie.
        where: eval.onnx_input.GraphInput, the input of the images.

    Returns:
        None when it does nothing, and when what it does is not a·pixel + b, or cannot be run apart.
    """
    found = _follow(model.graph, where.name)
    if found is None:
        return None
    nodes, end = found
    norm = next((node for node in nodes if node.op_type == "BatchNormalization"), None)
    try:
        run = _Part(model, folder, where)
        line = _line_of(run, norm.input[0] if norm else end)
        statistics = [run.constant(name) for name in norm.input[3:5]] if norm else None
    except _NotPlainError:
        return None
    slope, offset = line
    if statistics is None:
        mean, deviation = -offset / slope, 1 / np.abs(slope)
    else:
        mean, deviation = (statistics[0] - offset) / slope, np.sqrt(statistics[1]) / np.abs(slope)
    changing = tuple(node.op_type for node in nodes if node.op_type not in ("Identity", "Cast", "Transpose"))
    return Prefix(_taken(mean, deviation), changing, mean, deviation) if changing else None


def _taken(mean: np.ndarray, deviation: np.ndarray) -> str:
    def within(values: np.ndarray, bounds: tuple[float, float]) -> bool:
        return bool(((values >= bounds[0]) & (values <= bounds[1])).all())

    if within(deviation, BYTE_DEVIATION) and within(mean, BYTE_MEAN):
        return "bytes"
    return "units" if within(deviation, UNIT_DEVIATION) and within(mean, UNIT_MEAN) else ""


def _follow(graph: onnx.GraphProto, start: str) -> tuple[list[onnx.NodeProto], str] | None:
    """The pointwise nodes behind the input and the one tensor in which they end; None when there is no such tensor."""
    reached, ends, nodes = {start}, set(), []
    for node in graph.node:  # in the order of computation, as ONNX demands
        read = reached & set(node.input)
        if not read or node.op_type in ("Shape", "Size"):  # a size says nothing of pixels
            continue
        if node.op_type in POINTWISE and not node.domain:
            nodes.append(node)
            reached |= set(node.output)
        else:
            ends |= read
    ends |= reached & {output.name for output in graph.output}
    return (nodes, ends.pop()) if nodes and len(ends) == 1 else None


class _NotPlainError(Exception):
    """The prefix is not what this file understands."""


class _Part:
    """Any tensor near the input of a graph, computed apart from the rest."""

    def __init__(self, model: onnx.ModelProto, folder: Path, where: Any) -> None:
        self._model, self._folder, self.where = model, folder, where
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def constant(self, name: str) -> np.ndarray:
        """An initializer, float64."""
        if name not in self._constants:
            raise _NotPlainError
        return numpy_helper.to_array(self._loaded(self._constants[name])).astype(np.float64)

    def _loaded(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        if int(np.prod(copy.dims, dtype=np.float64)) > MAX_CONSTANTS:
            raise _NotPlainError
        if copy.data_location == onnx.TensorProto.EXTERNAL:
            external_data_helper.load_external_data_for_tensor(copy, str(self._folder))
            copy.data_location = onnx.TensorProto.DEFAULT
        return copy

    def __call__(self, target: str, images: list[np.ndarray]) -> list[np.ndarray]:
        """The tensor for each of these inputs, float64."""
        wanted, nodes, constants = [target], [], {}
        while wanted:
            name = wanted.pop()
            if name in self._constants:
                constants[name] = self._loaded(self._constants[name])
            elif name in self._makers and self._makers[name] not in nodes:
                nodes.append(self._makers[name])
                wanted += [part for part in self._makers[name].input if part]
        kept = [node for node in self._model.graph.node if node in nodes]
        source = next(item for item in self._model.graph.input if item.name == self.where.name)
        output = onnx.ValueInfoProto(name=target)
        graph = helper.make_graph(kept, "prefix", [source], [output], list(constants.values()))
        part = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                part.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return [
                session.run([target], {self.where.name: self.where.feed(image)[self.where.name]})[0].astype(np.float64)
                for image in images
            ]
        except Exception as error:  # onnxruntime's errors have no common class of their own
            raise _NotPlainError(first_line(error)) from None


def _line_of(part: _Part, target: str) -> tuple[np.ndarray, np.ndarray]:
    """a, b [3] of target = a·pixel + b, per channel of the target (of a mean image, b is the mean)."""
    if target == part.where.name:
        return np.ones(3), np.zeros(3)
    shape = (part.where.batch_size or 1, 3, IMAGE_SIZE, IMAGE_SIZE)
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    images = [np.zeros_like(noise), np.full_like(noise, 255), noise]
    dark, light, mixed = (_planes(values) for values in part(target, images))
    slope, offset, sources = np.empty(3), np.empty(3), set()
    for channel in range(3):
        a, b = (light[:, channel] - dark[:, channel]) / 255, dark[:, channel]
        errors = [np.abs(a * noise[:, source] + b - mixed[:, channel]).max() for source in range(3)]
        scale = np.abs(a).max()  # float16 is exact to a thousandth
        if not (min(errors) <= 2e-3 * 255 * scale and np.ptp(a) <= 1e-2 * scale and scale > 0):
            raise _NotPlainError
        slope[channel], offset[channel] = a.mean(), b.mean()
        sources.add(int(np.argmin(errors)))
    if len(sources) != 3:
        raise _NotPlainError
    return slope, offset


def _planes(values: np.ndarray) -> np.ndarray:
    """[n, 3, 112, 112] of what may be [n, 112, 112, 3]."""
    if values.ndim == 4 and values.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE, 3):
        values = values.transpose(0, 3, 1, 2)
    if values.ndim != 4 or values.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise _NotPlainError
    return values
