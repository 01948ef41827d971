"""A small network as somebody else's ONNX file, and faces for it: exporting needs no torch to be tried."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tools.exporting.images import generated_images


def small_network(batch: int | str = "n") -> onnx.ModelProto:
    """Conv, PRelu, BatchNormalization, padded Conv, Clip, Reshape, Gemm: input `pixels`, output `out` [n, 16]."""
    random = np.random.default_rng(0)
    arrays = {
        "w1": random.normal(size=(8, 3, 7, 7)) / 12, "b1": random.normal(size=8),
        "slope": random.uniform(0, 1, (8, 1, 1)),
        "gain": random.uniform(0.5, 2, 8), "shift": random.normal(size=8),
        "mean": random.normal(size=8), "variance": random.uniform(0.5, 2, 8),
        "w2": random.normal(size=(8, 8, 3, 3)) / 8, "b2": random.normal(size=8),
        "w3": random.normal(size=(16, 8 * 49)) / 20, "b3": random.normal(size=16),
    }  # fmt: skip
    arrays["again"] = arrays["b2"]
    nodes = [
        helper.make_node("Conv", ["pixels", "w1", "b1"], ["c1"], strides=[4, 4], pads=[3, 3, 3, 3]),
        helper.make_node("PRelu", ["c1", "slope"], ["p1"]),
        helper.make_node("BatchNormalization", ["p1", "gain", "shift", "mean", "variance"], ["n1"]),
        helper.make_node("Conv", ["n1", "w2", "b2"], ["data"], strides=[4, 4], pads=[1, 1, 1, 1]),
        helper.make_node("Constant", [], ["low"], value=numpy_helper.from_array(np.array(0, np.float32))),
        helper.make_node("Constant", [], ["high"], value_float=6.0),
        helper.make_node("Clip", ["data", "low", "high"], ["k1"]),
        helper.make_node("Constant", [], ["flat"], value_ints=[batch if isinstance(batch, int) else 0, -1]),
        helper.make_node("Reshape", ["k1", "flat"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w3", "b3"], ["out"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "theirs",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, 112, 112])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, 16])],
        [numpy_helper.from_array(array.astype(np.float32), key) for key, array in arrays.items()],
        doc_string="made by /home/someone/train.py",
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model.metadata_props.add(key="trained_at", value="/home/someone")
    return model


@pytest.fixture
def given_file(tmp_path: Path) -> Callable[..., Path]:
    """`given_file(batch="n", change=None)`: the network on disk, after `change(model)`."""

    def make(batch: int | str = "n", change: Callable[[onnx.ModelProto], None] | None = None) -> Path:
        model = small_network(batch)
        if change is not None:
            change(model)
        onnx.save(model, str(tmp_path / "theirs.onnx"))
        return tmp_path / "theirs.onnx"

    return make


@pytest.fixture(scope="session")
def faces() -> np.ndarray:
    return generated_images(160)  # 32 to compare on, 128 to measure on


@pytest.fixture(scope="session")
def faces_folder(tmp_path_factory: pytest.TempPathFactory, faces: np.ndarray) -> Path:
    """The same as a folder of pictures, as --images takes it."""
    folder = tmp_path_factory.mktemp("faces")
    for number, face in enumerate(faces):
        assert cv2.imwrite(str(folder / f"{number:03}.png"), face[..., ::-1])
    return folder
