"""A trained backbone as one ONNX file, with proof that it computes what torch computes.

    python tools/export_onnx.py RUN [OUT] [--images SET] [--backbone NAME]

RUN is a run folder or a .pt file; OUT is RUN's model.onnx unless given. The contract with clients, docs/deployment.md:
input `data` [batch, 3, 112, 112] float32 RGB, already (pixel − 127.5) / 127.5; output `embedding` [batch, d], raw. What
the exporter notes about source files is removed; what a user needs to know of the model stands in its metadata.
Nothing is written unless the graph passes the checker and agrees with torch on images.
Proven by tests/tools/test_export_onnx.py.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from prettytable import PrettyTable
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recognition.backbones import BackboneSettings
from recognition.backbones.model_file import load_model, resolve_model, write_atomically
from recognition.errors import CheckpointError, NumericsError, run_command

OPSET = 20
IMAGE_SIDE = 112
MEAN = STD = 127.5
BATCHES = (1, 3, 7)
MIN_COSINE = 0.99999
# Well-known clients take a graph with a Sub and a Mul among so many first nodes for one that normalises by itself.
INSPECTED_NODES = 8
# Entries of the model file's info that go into the metadata.
PUBLISHED_INFO = ("run", "step", "epoch", "scores")


@dataclass(frozen=True)
class ParityReport:
    """How far onnxruntime is from torch, float32 on the CPU: the worst over `batches`."""

    max_abs_error: float
    min_cosine: float
    batches: tuple[tuple[int, float, float], ...]
    """Batch size, largest absolute error, smallest cosine."""
    images: str
    num_bytes: int
    seconds: float

    def table(self) -> PrettyTable:
        """One row a batch size."""
        table = PrettyTable(["batch", "max |onnx − torch|", "1 − min cosine"])
        table.title = f"onnxruntime against torch on {self.images}"
        for batch, error, cosine in self.batches:
            table.add_row([batch, f"{error:.1e}", f"{max(0.0, 1 - cosine):.1e}"])
        return table


def export(model_path: Path, out: Path, images: np.ndarray | None = None, backbone: str | None = None) -> ParityReport:
    """Write the model at `model_path` (run folder or .pt; `backbone` names a bare state dict's) to `out`.

    `images`, uint8 RGB [n, 112, 112, 3], are what the parity is checked on; generated ones without them.
    NumericsError when a cosine is below 0.99999, CheckpointError when there is no usable model or no room for the file,
    ValueError when the images are of another shape or type.
    """
    started = time.perf_counter()
    source = "generated images" if images is None else f"{min(len(images), max(BATCHES))} given images"
    images = generated_images(max(BATCHES)) if images is None else images
    if images.dtype != np.uint8 or images.shape[1:] != (IMAGE_SIDE, IMAGE_SIDE, 3) or not len(images):
        raise ValueError(f"images: expected uint8 [n, 112, 112, 3], got {images.dtype} {list(images.shape)}")
    path = resolve_model(model_path)
    if path.suffix == ".onnx":
        raise CheckpointError(f"{path}: is an ONNX file already; expected a run folder or a .pt file")
    module, settings, info = load_model(path, backbone)
    model = to_onnx(module, settings, info)
    content = model.SerializeToString()
    rows = compare(module, content, images)
    error, cosine = max(row[1] for row in rows), min(row[2] for row in rows)
    if not cosine >= MIN_COSINE:
        raise NumericsError(f"{path}: onnxruntime is not torch: cosine {cosine:.7f}, expected at least {MIN_COSINE}")
    write_atomically(out, content)
    return ParityReport(error, cosine, rows, source, len(content), time.perf_counter() - started)


def to_onnx(module: nn.Module, settings: BackboneSettings, info: Mapping[str, Any]) -> onnx.ModelProto:
    """The graph of a backbone in eval mode, folded, without traces of its making, with the metadata of the contract."""
    example = torch.zeros(2, 3, IMAGE_SIDE, IMAGE_SIDE)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["data"],
            output_names=["embedding"],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    fold_norm_before_linear(model.graph)
    strip(model)
    model.graph.name = settings.name
    for key, value in metadata(settings, info).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    kinds = {node.op_type for node in model.graph.node[:INSPECTED_NODES]}
    assert not {"Sub", "Mul"} <= kinds, f"clients would take this graph for one that normalises its input: {kinds}"
    return model


def fold_norm_before_linear(graph: onnx.GraphProto) -> None:
    """Fold BatchNormalization, flatten, Gemm into the Gemm: W(s·x + t) + b = (W·s)x + (W·t + b), exact without padding.

    The exporter folds a norm after a convolution or a linear map by itself. A norm before a padded convolution stays:
    its shift does not reach the border.
    """
    values = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    for linear in [node for node in graph.node if node.op_type == "Gemm"]:
        flatten = makers.get(linear.input[0])
        norm = makers.get(flatten.input[0]) if flatten is not None else None
        if flatten is None or norm is None:
            continue
        kinds = norm.op_type == "BatchNormalization" and flatten.op_type in ("Reshape", "Flatten")
        options = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in linear.attribute}
        plain = options.get("transB") == 1 and options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
        if not (kinds and plain and uses[norm.output[0]] == uses[flatten.output[0]] == 1):
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
    epsilon = next(attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
    scale = gain / np.sqrt(variance + epsilon)
    per_channel = weight.shape[1] // len(scale)
    bias = bias + weight @ np.repeat(shift - mean * scale, per_channel)
    weight = weight * np.repeat(scale, per_channel)
    for name, new in zip(linear.input[1:3], (weight, bias), strict=True):
        values[name].CopyFrom(numpy_helper.from_array(new.astype(np.float32), name))


def strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter tells of source files, stack traces and modules, and name nodes by place and kind."""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    model.doc_string = graph.doc_string = ""
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    for place, node in enumerate(graph.node):
        node.name = f"node_{place}_{node.op_type}"


def metadata(settings: BackboneSettings, info: Mapping[str, Any]) -> dict[str, str]:
    """What a user of the file needs to know, as text; anything but text as JSON."""
    facts: dict[str, Any] = {
        "input_size": [IMAGE_SIDE, IMAGE_SIDE],
        "color_order": "RGB",
        "mean": MEAN,
        "std": STD,
        "embedding_size": settings.embedding_size,
        "backbone": settings.name,
        **{key: _without_folders(info[key]) for key in PUBLISHED_INFO if key in info},
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def _without_folders(value: Any) -> Any:
    """The value with every path in it cut to its last part: a published file should not tell of its maker's disk."""
    if isinstance(value, Mapping):
        return {_without_folders(key): _without_folders(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(child) for child in value]
    if isinstance(value, str):
        return PurePosixPath(PureWindowsPath(value).as_posix()).name if "/" in value or "\\" in value else value
    return value


def compare(module: nn.Module, content: bytes, images: np.ndarray) -> tuple[tuple[int, float, float], ...]:
    """(batch size, largest absolute error, smallest cosine) of onnxruntime against torch at each batch size."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    rows = []
    for batch in BATCHES:
        chosen = images[np.arange(batch) % len(images)].astype(np.float32)
        data = np.ascontiguousarray(((chosen - MEAN) / STD).transpose(0, 3, 1, 2))
        got = session.run(["embedding"], {"data": data})[0].astype(np.float64)
        with torch.no_grad():
            expected = module(torch.from_numpy(data)).double().numpy()
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
        rows.append((batch, float(np.abs(got - expected).max()), float(((got * expected).sum(1) / norms).min())))
    return tuple(rows)


def generated_images(count: int) -> np.ndarray:
    """Smooth random pictures with grain, uint8 RGB [count, 112, 112, 3], always the same."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(0, 255, (count, 3, 8, 8)))
    smooth = nn.functional.interpolate(coarse, (IMAGE_SIDE, IMAGE_SIDE), mode="bilinear").permute(0, 2, 3, 1).numpy()
    return (smooth + random.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


def read_images(source: Path, count: int = max(BATCHES)) -> np.ndarray:
    """The first images, uint8 RGB [≤ count, 112, 112, 3], of a RecordIO set or a verification .bin; DataError."""
    # The readers decode with OpenCV; an export of generated images does without.
    from eval.verification import load_bin
    from recognition.data.dataset import open_dataset
    from recognition.data.fallback import decode

    if source.suffix == ".bin":
        return load_bin(source).images[:count]
    dataset = open_dataset(source)
    return np.stack([decode(dataset, sample) for sample in range(min(count, dataset.num_images))])


def run_images(run: Path) -> Path | None:
    """The training set that a run folder's config.json names, if it is still there."""
    try:
        root = Path(json.loads((run / "config.json").read_text())["settings"]["data.root"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return root if root.is_file() or any(root.glob("*.rec")) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings and log lines below an error: the exporter reports what it lacks, none of which is used here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def main(arguments: Sequence[str]) -> int | None:
    """The command."""
    parser = argparse.ArgumentParser(prog="export_onnx.py", description="Write a trained backbone as one ONNX file.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or a .pt file")
    parser.add_argument("out", type=Path, metavar="OUT", nargs="?", help="default: model.onnx in the run folder")
    parser.add_argument("--images", type=Path, metavar="SET", help="RecordIO set or .bin to compare on (the run's set)")
    parser.add_argument("--backbone", metavar="NAME", help="which backbone a bare state dict holds")
    options = parser.parse_args(arguments)
    folder = options.run.is_dir()
    out = options.out or (options.run / "model.onnx" if folder else options.run.with_suffix(".onnx"))
    source = options.images or (run_images(options.run) if folder else None)
    report = export(options.run, out, None if source is None else read_images(source), options.backbone)
    if source is not None:
        report = dataclasses.replace(report, images=f"{report.images} of {source}")
    print(report.table())
    print(f"{out}: {report.num_bytes / 1e6:.1f} MB, {report.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    run_command(main)
