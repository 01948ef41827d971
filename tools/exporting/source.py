"""What is exported: a network of this project, or anybody's ONNX file, as a bare float32 graph and a reference.

The reference is what the exported file has to agree with: torch on the CPU in float32, or onnxruntime on the given file
as it is. Proven by tests/tools/test_export_onnx.py and tests/tools/exporting/test_source.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from eval.embed import Embed, load_embedder
from eval.norm_quality import UNIT
from eval.onnx_file import check_onnx_file, first_line
from eval.onnx_input import described_pixels
from eval.pixels import IMAGE_SIZE, RAW, Given, Pixels
from recognition.backbones.model_file import is_state_dict, load_model, read_checked, resolve_model
from recognition.errors import CheckpointError, SettingsError
from tools.exporting import graph
from tools.exporting.form import PUBLISHED
from tools.exporting.quality import Norms, norms_of_info, norms_of_metadata, norms_of_run
from tools.exporting.scores import scores_of_run

IMAGES_AT_ONCE = 8  # of torch on a CPU: what is computed has to stay in the cache


@dataclass(frozen=True)
class Source:
    """A network to be exported.

    model: the bare graph (tools/exporting/graph.py), its batch as `batch` says.  embed: the reference, raw.
    pixels: what the network takes.  known: for the metadata.  norms: the run's, if it has any.
    batch: the only number of images that the graph takes; None: any.  unit: its embeddings are known to have unit
    length.  inside: how it is known to normalise pixels by itself, as its metadata are to say.
    """

    path: Path
    model: onnx.ModelProto
    embed: Embed
    pixels: Pixels
    known: Mapping[str, Any]
    norms: Norms | None
    batch: int | None = None
    unit: bool = False
    inside: str | None = None


def open_source(
    path: Path, backbone: str | None = None, given: Given | None = None, wants_norms: bool = False
) -> Source:
    """Open a run folder, a .pt file (`backbone` names a bare state dict's) or an .onnx file.

    `given`: what pixels an .onnx file or a bare state dict takes.  `wants_norms`: fail where a run's
    checkpoints cannot be read, which are looked at for μ and σ that its model file does not tell.
    CheckpointError when there is no usable model; SettingsError when an ONNX file cannot be taken on, when `backbone`
    is said of one, or when `given` contradicts a model file of this project, whose pixels are known.
    """
    file, given = resolve_model(path), given or Given()
    if file.suffix == ".onnx":
        if backbone is not None:
            raise SettingsError(f"{file}: --backbone {backbone}: is for bare state dicts; an .onnx file has its graph")
        return _of_onnx(file, given)
    module, settings, info = load_model(file, backbone)
    pixels = _pixels_of_weights(file, given)
    norms = norms_of_info(info)
    if norms is None and path.is_dir():
        try:
            norms = norms_of_run(path)
        except CheckpointError:
            if wants_norms:
                raise
    model = graph.trace(module)
    graph.fold_norm_before_linear(model.graph)
    graph.tidy(model)
    model.graph.name = settings.name
    known = {**info, "backbone": settings.name}
    if not known.get("scores") and (scores := scores_of_run(file)):
        known |= {"scores": scores, "scores_in": "float32"}  # of an exported file
    return Source(file, model, torch_embed(module, pixels), pixels, known, norms)


def _pixels_of_weights(path: Path, given: Given) -> Pixels:
    """What a model file's network takes: what is said of a bare state dict; this project's are trained on the usual."""
    usual = Pixels()
    pixels = Pixels(given.mean or usual.mean, given.std or usual.std, given.color_order or usual.color_order)
    if pixels != usual and not is_state_dict(read_checked(path)):
        raise SettingsError(f"{path}: --mean, --std, --color-order: {pixels}, but it was trained on {usual}")
    return pixels


def torch_embed(module: nn.Module, pixels: Pixels | None = None) -> Embed:
    """uint8 RGB [n, 112, 112, 3] → float32 [n, d] by a backbone in eval mode on the CPU; `pixels`: what it takes."""
    prepare = (pixels or Pixels()).prepare

    def embed(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            parts = [
                module(torch.from_numpy(prepare(images[start : start + IMAGES_AT_ONCE]))).float().numpy()
                for start in range(0, len(images), IMAGES_AT_ONCE)
            ]
        return np.concatenate(parts)

    return embed


def _of_onnx(path: Path, given: Given) -> Source:
    check_onnx_file(path)
    reference = load_embedder(path, 1, "cpu", given)
    try:
        model = onnx.load(str(path))
    except Exception as error:  # whatever reading the weights beside it provokes
        raise CheckpointError(f"{path}: not readable: {first_line(error)}") from None
    said = _metadata(model)
    known = {key: _read(value) for key, value in said.items() if key in PUBLISHED}
    known |= {key: said[key] for key in ("scores_of",) if key in said}
    ours = described_pixels(said, path) is not None
    unit = ours and said.get("embedding") == UNIT
    norms = norms_of_metadata(said) if ours and not unit else None
    batch = _make_bare(model, path)
    inside = _inside(said if ours else {}, reference.pixels)
    return Source(path, model, reference.embed, reference.pixels, known, norms, batch, unit, inside)


def _inside(said: Mapping[str, str], pixels: Pixels) -> str | None:
    """How a graph that is fed plain pixels normalises them: in the words of its metadata, where this project's."""
    if (pixels.mean, pixels.std) != (RAW.mean, RAW.std):
        return None
    words = said.get("preprocessing", "")
    return words if words.startswith("inside") else "inside"


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _make_bare(model: onnx.ModelProto, path: Path) -> int | None:
    """Bring somebody's graph into the bare form; returns its fixed batch."""
    content = model.graph
    initial = {tensor.name for tensor in content.initializer}
    inputs = [value for value in content.input if value.name not in initial]  # old files list their weights there
    shapes = [_shape(value) for value in (*inputs, *content.output)]
    if len(shapes) != 2 or len(shapes[0]) != 4 or len(shapes[1]) != 2 or shapes[0][1:] != [3, IMAGE_SIZE, IMAGE_SIZE]:
        raise SettingsError(f"{path}: expected one input [n, 3, {IMAGE_SIZE}, {IMAGE_SIZE}] and one output [n, d], "
                            f"got {shapes}")
    types = {value.type.tensor_type.elem_type for value in (*inputs, *content.output)}
    if types != {TensorProto.FLOAT} or any(t.data_type == TensorProto.FLOAT16 for t in content.initializer):
        raise SettingsError(f"{path}: expected a float32 network; export it anew from what it was made of")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv") for node in content.node):
        raise SettingsError(f"{path}: quantised already; export it anew from what it was made of")
    del content.input[:]
    content.input.extend(inputs)
    for value, name in ((content.input[0], graph.INPUT), (content.output[0], graph.OUTPUT)):
        if value.name != name:
            graph.make_room(content, [name])  # a tensor that has our name by chance
            graph.rename(content, value.name, name)
            value.name = name
    graph.tidy(model)
    graph.fold_norm_before_linear(content)
    content.name = "network"
    size = shapes[0][0]
    return size if isinstance(size, int) else None


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]


def free_batch(model: onnx.ModelProto) -> None:
    """Let a graph made for a batch of a certain size take any: Reshapes to that size keep the size that comes instead.

    Whether that was all that held the batch shows when the graph is run; it is compared at several sizes.
    """
    content = model.graph
    values = {tensor.name: tensor for tensor in content.initializer}
    size = content.input[0].type.tensor_type.shape.dim[0].dim_value
    for place, node in enumerate(content.node):
        if node.op_type != "Reshape" or node.input[1] not in values:
            continue
        shape = numpy_helper.to_array(values[node.input[1]]).copy()
        if len(shape) and shape[0] == size and (shape != 0).all():
            shape[0] = 0  # what comes in
            graph.make_room(content, [f"shape_of_{place}"])
            content.initializer.append(numpy_helper.from_array(shape, f"shape_of_{place}"))
            node.input[1] = f"shape_of_{place}"
            for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                node.attribute.remove(attribute)
    for value in (content.input[0], content.output[0]):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    graph.merge_initializers(content)
