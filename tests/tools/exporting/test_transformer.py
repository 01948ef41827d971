"""Nothing in the export expects convolutions: a small vision transformer in every precision."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from eval.embed import load_embedder
from eval.pixels import Given
from recognition.backbones.vit import VisionTransformer
from tools.export_onnx import export
from tools.exporting.form import Form
from tools.exporting.graph import trace
from tools.exporting.source import torch_embed


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    module = VisionTransformer(width=32, depth=1, embedding_size=16, heads=4)
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        module(torch.rand(16, 3, 112, 112) * 2 - 1)
    module.eval()
    path = tmp_path_factory.mktemp("transformer") / "vit.onnx"
    onnx.save(trace(module), str(path))
    return path, module


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("fp16", 0.999), ("int8", 0.9)])
def test_every_precision(
    traced: tuple[Path, torch.nn.Module], tmp_path: Path, faces: np.ndarray, precision: str, least: float
) -> None:
    path, module = traced
    report = export(path, tmp_path / "out.onnx", faces, form=Form(precision, quality=True))  # type: ignore[arg-type]
    assert report.min_cosine >= least
    graph = onnx.load(str(tmp_path / "out.onnx")).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("LayerNormalization") == 3
    assert "BatchNormalization" not in kinds, "the head's norms are folded into its linear maps"
    assert kinds.count("Softmax") == 1
    if precision == "int8":
        read = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        products = [node for node in graph.node if node.op_type == "MatMul"]
        weighted = [node for node in products if node.input[1] in read]
        assert len(products) - len(weighted) == 2, "queries × keys and weights × values stay in float"
        assert sum(tensor.data_type == TensorProto.INT8 for tensor in graph.initializer) >= len(weighted)
    if precision == "fp32":
        got = load_embedder(tmp_path / "out.onnx", 1, "cpu", Given(output="embedding")).embed(faces[:5])
        np.testing.assert_allclose(got, torch_embed(module)(faces[:5]), atol=1e-4)
