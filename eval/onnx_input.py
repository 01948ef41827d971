"""What an ONNX network takes, found from its file: the input, its layout, and what must be done to the pixels.

Owns the order of belief: what the user says, then the metadata that `tools/export_onnx.py` writes, then what the graph
does to its input before the first operation that is not the same for every pixel (eval/onnx_prefix.py), then the
field's usual. Proven by tests/eval/test_onnx_input.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from eval.onnx_prefix import read_prefix
from eval.pixels import COLOR_ORDERS, IMAGE_SIZE, RAW, UNITS, Given, Pixels, triple
from recognition.errors import CheckpointError, SettingsError

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
# What tools/export_onnx.py writes; others' metadata may use one of these words for something else.
OUR_METADATA = ("input_size", "color_order", "mean", "std", "embedding_size")
EXPECTED = f"expected an input of float32 [N, 3, {IMAGE_SIZE}, {IMAGE_SIZE}] or [N, {IMAGE_SIZE}, {IMAGE_SIZE}, 3]"


@dataclass(frozen=True)
class GraphInput:
    """Where the images go in; batch_size None: any number at once.  switches: inputs to be held at False."""

    name: str
    layout: str
    batch_size: int | None
    dtype: Any
    switches: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def feed(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs of the graph for float32 [n, 3, 112, 112]."""
        if self.layout == "NHWC":
            batch = np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
        if self.dtype != np.float32:
            batch = batch.astype(self.dtype)
        return {self.name: batch, **{name: np.zeros(shape, bool) for name, shape in self.switches}}


def find_input(session: Any, model: onnx.ModelProto, path: str, given: Given) -> GraphInput:
    """Find the graph's input for images and its layout.

    Raises:
        CheckpointError: no input takes such images, or several do. SettingsError: no such input or layout.
    """
    nodes = {node.name: node for node in session.get_inputs()}
    if given.input is not None and given.input not in nodes:
        raise SettingsError(f"{path}: no input {given.input!r}; it has {list(nodes)}")
    # A switch between training and use, as TensorFlow's graphs have one, is no reason to give up.
    switches = {name: node for name, node in nodes.items() if node.type == "tensor(bool)" and _small(node.shape)}
    images = [given.input] if given.input else [name for name in nodes if name not in switches]
    left = [name for name in nodes if name not in switches and name not in images]
    if len(images) != 1 or left:
        raise CheckpointError(f"{path}: expected one input, got {list(nodes)}")
    node = nodes[images[0]]
    found = f"got {node.name}: {node.type} {node.shape}"
    layout = _layout(node.shape, _readers(model, node.name))
    if node.type not in TYPES or layout is None:
        raise CheckpointError(f"{path}: {EXPECTED}, {found}")
    if given.layout and not _fits(node.shape, given.layout):
        raise SettingsError(f"{path}: layout {given.layout} does not fit: {found}")
    batch = node.shape[0] if isinstance(node.shape[0], int) else None
    held = tuple((name, tuple(node.shape)) for name, node in switches.items() if name != images[0])
    return GraphInput(node.name, given.layout or layout, batch, TYPES[node.type], held)


def _small(shape: list[Any]) -> bool:
    return all(side == 1 for side in shape)


def _fits(shape: list[Any], layout: str) -> bool:
    wanted = (3, IMAGE_SIZE, IMAGE_SIZE) if layout == "NCHW" else (IMAGE_SIZE, IMAGE_SIZE, 3)
    return len(shape) == 4 and all(
        got == want or not isinstance(got, int) for got, want in zip(shape[1:], wanted, strict=True)
    )


def _layout(shape: list[Any], readers: list[onnx.NodeProto]) -> str | None:
    """The layout that fits the shape; where both do, an input that is transposed at once to NCHW is NHWC."""
    fitting = [layout for layout in ("NCHW", "NHWC") if _fits(shape, layout)]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    turned = any(
        node.op_type == "Transpose" and any(list(attribute.ints) == [0, 3, 1, 2] for attribute in node.attribute)
        for node in readers
    )
    return "NHWC" if turned else "NCHW"


def _readers(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def find_pixels(model: onnx.ModelProto, path: Path, where: GraphInput, given: Given) -> tuple[Pixels, list[str]]:
    """What has to be done to the pixels, and what to tell people of it.

    Raises:
        CheckpointError: metadata like this project's that cannot be understood.
    """
    described = described_pixels({entry.key: entry.value for entry in model.metadata_props}, path)
    prefix = read_prefix(model, path.parent, where)
    wanted = {"bytes": RAW, "units": UNITS}.get(prefix.takes) if prefix else None
    found = described or wanted or (RAW if where.dtype == np.uint8 else Pixels())
    pixels = Pixels(given.mean or found.mean, given.std or found.std, given.color_order or found.color_order)
    notes = [f"its metadata: {described}"] if described else []
    if wanted and (pixels.mean, pixels.std) == (wanted.mean, wanted.std):
        notes.append(f"normalises by itself ({prefix}), so it gets {pixels}")
    elif wanted:
        notes.append(f"warning: it normalises by itself ({prefix}) and now gets {pixels}")
    elif prefix:
        notes.append(f"begins with {prefix}; that looks like the network's own, so it gets {pixels}")
    return pixels, notes


def described_pixels(metadata: Mapping[str, str], path: Path) -> Pixels | None:
    """What metadata written by tools/export_onnx.py say; None where they are somebody else's."""
    if not all(key in metadata for key in OUR_METADATA):
        return None
    try:
        size = json.loads(metadata["input_size"])
        pixels = Pixels(triple(json.loads(metadata["mean"])), triple(json.loads(metadata["std"])),
                        metadata["color_order"])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: metadata: {error}") from None
    if size != [IMAGE_SIZE, IMAGE_SIZE] or pixels.color_order not in COLOR_ORDERS or min(pixels.std) <= 0:
        raise CheckpointError(
            f"{path}: metadata: expected input_size [{IMAGE_SIZE}, {IMAGE_SIZE}], color_order RGB or BGR, std above 0; "
            f"got {size}, {pixels.color_order}, {list(pixels.std)}"
        )
    return pixels
