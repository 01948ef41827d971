"""eval/onnx_file.py: files that are no ONNX, and weights outside the file, with small networks made here."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eval.embed import load_embedder
from eval.onnx_file import check_onnx_file
from recognition.errors import CheckpointError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
WEIGHT = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)


def network():
    """Mean over the pixels, times a matrix."""
    nodes = [
        helper.make_node("ReduceMean", ["in", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["batch", 3, 112, 112])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(np.array([2, 3], np.int64), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def expected(images):
    return ((images.astype(np.float64) - 127.5) / 127.5).mean(axis=(1, 2)) @ WEIGHT


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 20])
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_embedder(path, threads=1)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def with_external_data(tmp_path, location="weights.bin", **entries):
    """The network with its matrix in a file of its own, which is there and of the right size."""
    model = network()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "below"):
        (place / "weights.bin").write_bytes(WEIGHT.tobytes())
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["weights.bin", "below/weights.bin", "./weights.bin"])
def test_external_data_beside_the_file_is_read(tmp_path, location):
    embedder = load_embedder(with_external_data(tmp_path, location), threads=1)
    np.testing.assert_allclose(embedder.embed(IMAGES), expected(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("../weights.bin", "not a path inside"),
        ("below/../../weights.bin", "not a path inside"),
        ("/etc/passwd", "not a path inside"),
        ("C:\\weights.bin", "not a path inside"),
        ("..\\weights.bin", "not a path inside"),
        ("*/_ORT_MEM_ADDR_/*", "not a path inside"),
        ("", "not a path inside"),
        (".", "no such plain file"),
        ("weights.bin\0", "no such plain file"),
        ("nowhere.bin", "no such plain file"),
        ("below", "no such plain file"),
    ],
)
def test_external_data_elsewhere_is_refused(tmp_path, location, text):
    with pytest.raises(CheckpointError, match=text):
        load_embedder(with_external_data(tmp_path, location), threads=1)


def test_external_data_behind_links_is_refused(tmp_path):
    path = with_external_data(tmp_path, "linked.bin")
    (path.parent / "linked.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(CheckpointError, match="a symbolic link"):
        load_embedder(path)
    (path.parent / "linked.bin").unlink()
    os.link(tmp_path / "weights.bin", path.parent / "linked.bin")
    with pytest.raises(CheckpointError, match="a hard link, the file has 2 names"):
        load_embedder(path)


def test_external_data_behind_a_linked_folder_is_refused(tmp_path):
    path = with_external_data(tmp_path, "folder/weights.bin")
    (path.parent / "folder").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="a symbolic link"):
        load_embedder(path)


@pytest.mark.parametrize("entries", [{"offset": "40"}, {"length": "61"}, {"offset": "-1"}, {"length": "many"}])
def test_external_data_that_is_too_short_is_refused(tmp_path, entries):
    entries = {"length": "60", **entries}
    with pytest.raises(CheckpointError, match=r"refused: (bytes|offset)"):
        load_embedder(with_external_data(tmp_path, **entries))


def test_a_key_given_twice_is_refused(tmp_path):
    path = with_external_data(tmp_path)
    model = onnx.load(str(path), load_external_data=False)
    first = onnx.StringStringEntryProto(key="location", value="../weights.bin")
    model.graph.initializer[0].external_data.insert(0, first)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="a key given twice"):
        check_onnx_file(path)


def test_a_location_counts_even_where_the_tensor_claims_to_be_inside(tmp_path):
    path = with_external_data(tmp_path, "../weights.bin")
    model = onnx.load(str(path), load_external_data=False)
    model.graph.initializer[0].data_location = TensorProto.DEFAULT
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="not a path inside"):
        check_onnx_file(path)


def hidden_in(place):
    """The network with a tensor at ../secret in a place of the file."""
    hidden = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="../secret")
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    sparse, sparse_indices = (helper.make_sparse_tensor(*pair, [4]) for pair in [(hidden, indices), (indices, hidden)])
    output = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])

    def graph(*nodes, weights=()):
        return helper.make_graph(nodes, "branch", [], [output], list(weights))

    def choice(branch):
        return helper.make_node("If", ["condition"], ["c"], then_branch=graph(), else_branch=branch)

    constant = helper.make_node("Constant", [], ["c"], value=hidden)
    many = helper.make_node("Own", [], ["c"], domain="own", tensors=[indices, hidden])
    opset = [helper.make_opsetid("", 18)]
    model = network()
    if place == "function":
        model.functions.append(helper.make_function("own", "f", [], ["c"], [choice(graph(constant))], opset))
    elif place == "training":
        model.training_info.add().algorithm.CopyFrom(graph(constant))
    elif place.startswith("sparse weight"):
        model.graph.sparse_initializer.append(sparse_indices if "indices" in place else sparse)
    else:
        model.graph.node.append({
            "constant": constant,
            "sparse constant": helper.make_node("Constant", [], ["c"], sparse_value=sparse),
            "list of tensors": many,
            "list of sparse tensors": helper.make_node("Own", [], ["c"], domain="own", sparse_tensors=[sparse]),
            "list of graphs": helper.make_node("Own", [], ["c"], domain="own", graphs=[graph(), graph(constant)]),
            "subgraph": choice(graph(constant)),
            "subgraph's weights": choice(graph(weights=[hidden])),
            "subgraph of a subgraph": choice(graph(choice(graph(choice(graph(constant)))))),
        }[place])
    return model


PLACES = (
    "constant", "sparse constant", "list of tensors", "list of sparse tensors", "list of graphs", "subgraph",
    "subgraph's weights", "subgraph of a subgraph", "function", "training", "sparse weight", "sparse weight's indices",
)


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_a_graph_hides_it(tmp_path, place):
    (tmp_path / "net.onnx").write_bytes(hidden_in(place).SerializeToString())
    with pytest.raises(CheckpointError, match=r"'hidden' at '\.\./secret' refused"):
        check_onnx_file(tmp_path / "net.onnx")
