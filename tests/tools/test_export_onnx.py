"""The exported file: the contract of docs/deployment.md, parity with torch, nothing of its maker, and failures."""

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import load_model, save_model
from recognition.errors import CheckpointError, NumericsError
from tools.export_onnx import export
from tools.exporting import graph
from tools.exporting.graph import fold_norm_before_linear
from tools.exporting.images import generated_images

ROOT = Path(__file__).resolve().parents[2]
INFO = {
    "run": "demo", "step": 12, "epoch": 2, "best": True, "data": "/home/someone/faces",
    "scores": [{"set": "/home/someone/faces/lfw.bin", "accuracy": 0.9}],
}  # fmt: skip
SMALL = ("iresnet18", "mobilefacenet", "tiny", "tiny-group")


def save_trained(path: Path, name: str, embedding_size: int = 64) -> None:
    """A model with statistics and norms that differ from channel to channel, so that wrong folding shows."""
    torch.manual_seed(1)
    name, _, norm = name.partition("-")
    settings = BackboneSettings(name, embedding_size=embedding_size, norm=norm or "batch")
    module = build(settings)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if parameter.ndim == 1 and key != "features.weight":
                parameter.add_(torch.rand_like(parameter) - 0.5)
        for layer in module.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.momentum = 1.0
        module(torch.rand(4, 3, 112, 112) * 2 - 1)
    save_model(path, module, settings, INFO)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`exported(name)`: a folder with model_last.pt and model.onnx, made once."""
    folder = tmp_path_factory.mktemp("exported")

    def make(name: str) -> Path:
        run = folder / name
        if not run.exists():
            run.mkdir()
            save_trained(run / "model_last.pt", name)
            few = None if name == "tiny" else generated_images(4)  # torch is slow
            report = export(run, run / "model.onnx", few)
            assert report.min_cosine >= 0.99999
            assert report.images == ("generated images" if few is None else "4 given images")
            assert report.num_bytes == (run / "model.onnx").stat().st_size
        return run

    return make


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "iresnet18")) for name in SMALL]
)
def test_contract(exported: Callable[[str], Path], name: str) -> None:
    model = onnx.load(exported(name) / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    (given,), (made,) = model.graph.input, model.graph.output

    def shape(value: onnx.ValueInfoProto) -> list[str | int]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert (given.name, shape(given), given.type.tensor_type.elem_type) == ("data", ["batch", 3, 112, 112], 1)
    assert (made.name, shape(made), made.type.tensor_type.elem_type) == ("embedding", ["batch", 64], 1)
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("batch", [1, 7])
def test_onnxruntime_agrees_with_torch(exported: Callable[[str], Path], name: str, batch: int) -> None:
    run = exported(name)
    session = onnxruntime.InferenceSession(str(run / "model.onnx"), providers=["CPUExecutionProvider"])
    data = np.random.default_rng(batch).uniform(-1, 1, (batch, 3, 112, 112)).astype(np.float32)
    (got,) = session.run(None, {"data": data})
    with torch.no_grad():
        expected = load_model(run / "model_last.pt")[0](torch.from_numpy(data)).numpy()
    assert got.shape == (batch, 64)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    lengths = np.linalg.norm(expected, axis=1)
    assert not np.allclose(lengths, 1), "embeddings are raw, not of unit length"


@pytest.mark.parametrize("name", SMALL)
def test_clients_do_not_take_it_for_a_graph_that_normalises(exported: Callable[[str], Path], name: str) -> None:
    nodes = onnx.load(exported(name) / "model.onnx").graph.node[:8]
    assert not any(node.name.startswith(("Sub", "_minus", "Mul", "_mul", "bn_data")) for node in nodes)
    kinds = {node.op_type for node in nodes}
    assert "Sub" not in kinds
    assert "Mul" not in kinds or name == "tiny-group", "onnx has no GroupNorm without its Mul"


@pytest.mark.parametrize("name", SMALL)
def test_nothing_tells_of_its_maker(exported: Callable[[str], Path], name: str) -> None:
    run = exported(name)
    content = (run / "model.onnx").read_bytes()
    assert [text for text in (str(ROOT), str(run), 'File "', "site-packages") if text.encode() in content] == []
    # Weights contain any short text by chance: look for those in all that is not a weight.
    model = onnx.load(run / "model.onnx")
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    text = str(model)
    banned = (r"\.py\b", r"torch\.nn", "someone", rf"\b{re.escape(socket.gethostname())}\b")
    assert [pattern for pattern in banned if re.search(pattern, text)] == []


def test_the_exporter_does_tell_of_its_maker() -> None:
    """The counterpart of the test above: without it, nothing shows that stripping is still needed."""
    module = build(BackboneSettings("tiny", embedding_size=8)).eval()
    program = torch.onnx.export(module, (torch.zeros(2, 3, 112, 112),), dynamo=True, verbose=False)
    assert program is not None
    content = program.model_proto.SerializeToString()
    assert b'File "' in content
    assert str(ROOT).encode() in content


def test_metadata_says_how_to_use_it(exported: Callable[[str], Path]) -> None:
    model = onnx.load(exported("tiny") / "model.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts == {
        "input_size": "[112, 112]", "color_order": "RGB", "mean": "127.5", "std": "127.5", "embedding_size": "64",
        "preprocessing": "outside", "precision": "fp32", "embedding": "raw",
        "backbone": "tiny", "run": "demo", "step": "12", "epoch": "2",
        "scores": '[{"set": "lfw.bin", "accuracy": 0.9}]', "scores_of": "float32 network",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "left"), [("tiny", 6), ("iresnet18", 8), ("mobilefacenet", 0)])
def test_norms_are_folded_but_for_those_before_a_padded_convolution(
    exported: Callable[[str], Path], name: str, left: int
) -> None:
    nodes = onnx.load(exported(name) / "model.onnx").graph.node
    norms = [node for node in nodes if node.op_type == "BatchNormalization"]
    after = {node.op_type for norm in norms for node in nodes if norm.output[0] in node.input}
    assert len(norms) == left
    assert after <= {"Conv"}


def linear_graph(**options: float) -> onnx.ModelProto:
    """BatchNormalization, Flatten, Gemm on [n, 3, 2, 2]; made by hand, so that the folding is seen to happen."""
    random = np.random.default_rng(0)
    arrays = {key: random.uniform(0.5, 2, 3) for key in ("gain", "shift", "mean", "variance")}
    arrays |= {"weight": random.normal(size=(5, 12)), "bias": random.normal(size=5)}
    nodes = [
        helper.make_node("BatchNormalization", ["x", "gain", "shift", "mean", "variance"], ["y"], epsilon=1e-3),
        helper.make_node("Flatten", ["y"], ["z"]),
        helper.make_node("Gemm", ["z", "weight", "bias"], ["out"], transB=1, **options),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 2, 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(array.astype(np.float32), key) for key, array in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run_graph(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_folding_is_exact_and_leaves_other_linear_maps_alone() -> None:
    x = np.random.default_rng(1).normal(size=(4, 3, 2, 2)).astype(np.float32)
    model = linear_graph()
    before = run_graph(model, x)
    fold_norm_before_linear(model.graph)
    assert [node.op_type for node in model.graph.node] == ["Flatten", "Gemm"]
    assert {tensor.name for tensor in model.graph.initializer} == {"weight", "bias"}
    np.testing.assert_allclose(run_graph(model, x), before, rtol=1e-5, atol=1e-5)
    scaled = linear_graph(alpha=0.5)
    fold_norm_before_linear(scaled.graph)
    assert len(scaled.graph.node) == 3


def test_wrong_numbers_fail_and_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folding that is off by a hundredth stands in for a faulty exporter."""
    save_trained(tmp_path / "model_last.pt", "tiny")
    (tmp_path / "model.onnx").write_bytes(b"old")

    def faulty(content: onnx.GraphProto) -> None:
        gemm = next(node for node in content.node if node.op_type == "Gemm")
        bias = next(tensor for tensor in content.initializer if tensor.name == gemm.input[2])
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.3), bias.name))

    monkeypatch.setattr(graph, "fold_norm_before_linear", faulty)
    with pytest.raises(NumericsError, match=r"model_last.pt: onnxruntime is not the network: cosine 0\.\d{7}, exp"):
        export(tmp_path, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"old"


def test_images_of_another_kind_are_named(tmp_path: Path) -> None:
    save_trained(tmp_path / "model_last.pt", "tiny")
    with pytest.raises(ValueError, match=r"expected uint8 \[n, 112, 112, 3\], got float32 \[2, 3, 112, 112\]"):
        export(tmp_path, tmp_path / "model.onnx", np.zeros((2, 3, 112, 112), np.float32))
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"m.onnx: not an ONNX file"):
        export(tmp_path / "m.onnx", tmp_path / "n.onnx")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "tools/export_onnx.py", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


def test_command_on_a_run_with_real_images(tmp_path: Path, real_data: Path) -> None:
    run = tmp_path / "a run"
    run.mkdir()
    save_trained(run / "model_last.pt", "tiny")
    done = command(run, "--images", real_data / "lfw" / "lfw_folds_8_9_10.bin")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "32 given images of" in done.stdout
    assert re.search(r"\|\s+32\s+\|", done.stdout)
    assert re.search(r"model.onnx: \d\.\d MB, [\d.]+ s$", done.stdout.strip())
    assert (run / "model.onnx").is_file()


def test_command_fails_in_one_line(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode == 4
    assert done.stderr == f"error: {tmp_path}: no model_last.pt in this run folder; did the run save a model?\n"


@pytest.mark.slow
def test_iresnet100(tmp_path: Path) -> None:
    save_trained(tmp_path / "model_last.pt", "iresnet100", 512)
    report = export(tmp_path, tmp_path / "model.onnx")
    assert report.min_cosine >= 0.99999
    assert [batch for batch, _, _ in report.batches] == [1, 3, 32]
    assert 255e6 < report.num_bytes < 265e6
