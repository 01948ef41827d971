"""eval/onnx_input.py and eval/onnx_prefix.py: layouts, metadata, graphs that normalise by themselves."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eval.embed import load_embedder
from eval.pixels import RAW, UNITS, Given, Pixels
from recognition.errors import CheckpointError, SettingsError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
KERNEL = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
OPSET = [helper.make_opsetid("", 18)]


def network(*front, constants=(), shape=("batch", 3, 112, 112), element=TensorProto.FLOAT, behind=(), metadata=None):
    """`front` (nodes from "x" to "pixels"), a convolution, `behind` (from "map" to "map2"), the mean of the map."""
    nodes = [
        *front,
        helper.make_node("Conv", ["pixels" if front else "x", "kernel"], ["map"], strides=[8, 8]),
        *behind,
        helper.make_node("ReduceMean", ["map2" if behind else "map", "axes"], ["embedding"], keepdims=0),
    ]
    weights = {"kernel": KERNEL, "axes": np.array([2, 3], np.int64), **dict(constants)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", element, list(shape))],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=9)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    return model


def opened(tmp_path, model, given=None):
    onnx.save(model, str(tmp_path / "net.onnx"))
    return load_embedder(tmp_path / "net.onnx", 1, "cpu", given)


def node(kind, *names, **attributes):
    return helper.make_node(kind, names[:-1], names[-1:], **attributes)


def f32(*values):
    return np.array(values, np.float32)


def channels(*values):
    return f32(*values).reshape(3, 1, 1)


def norm_of(mean, variance):
    return {"gain": f32(1, 1, 1), "shift": f32(0, 0, 0), "mean": f32(*mean), "variance": f32(*variance)}


def plain(tmp_path):
    """What the network behind the front makes of pixels that were normalised outside."""
    return opened(tmp_path, network()).embed(IMAGES)


def by_constants():
    """(mean, 1/std) as nodes of Constant, computed from others."""
    return [
        helper.make_node("Constant", [], ["whole"], value_float=255.0),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        node("Mul", "whole", "half", "mean"),
        node("Reciprocal", "mean", "factor"),
    ]


SUB_MUL = [node("Sub", "x", "m", "a"), node("Mul", "a", "s", "pixels")]
FRONTS = {
    "Sub and Mul": (SUB_MUL, {"m": f32(127.5), "s": f32(1 / 127.5)}),
    "Mul and Sub": ([node("Mul", "x", "s", "a"), node("Sub", "a", "m", "pixels")], {"m": f32(1), "s": f32(1 / 127.5)}),
    "Sub and Div": ([node("Sub", "x", "m", "a"), node("Div", "a", "s", "pixels")], {"m": f32(127.5), "s": f32(127.5)}),
    "Div, Sub, Div": (
        [node("Div", "x", "d", "a"), node("Sub", "a", "m", "b"), node("Div", "b", "m", "pixels")],
        {"d": f32(255), "m": f32(0.5)},
    ),
    "Add of a negative, Identity": (
        [node("Identity", "x", "i"), node("Add", "i", "m", "a"), node("Mul", "a", "s", "pixels")],
        {"m": channels(-127.5, -127.5, -127.5), "s": f32(1 / 127.5)},
    ),
    "constants computed": ([*by_constants(), node("Sub", "x", "mean", "a"), node("Mul", "a", "factor", "pixels")], {}),
    "a mean image": (SUB_MUL, {"m": np.full((3, 112, 112), 127.5, np.float32), "s": f32(1 / 127.5)}),
    "BatchNormalization": (
        [node("BatchNormalization", "x", "gain", "shift", "mean", "variance", "pixels", epsilon=0.0)],
        norm_of([127.5] * 3, [127.5**2] * 3),
    ),
}


@pytest.mark.parametrize("front", FRONTS)
def test_a_graph_that_normalises_by_itself_gets_pixels_as_they_are(tmp_path, front):
    nodes, constants = FRONTS[front]
    embedder = opened(tmp_path, network(*nodes, constants=constants))
    assert embedder.pixels == RAW
    assert len(embedder.notes) == 1
    assert embedder.notes[0].startswith("normalises by itself (")
    assert "127.5" in embedder.notes[0]
    np.testing.assert_allclose(embedder.embed(IMAGES), plain(tmp_path), atol=1e-4)


def test_the_deviation_of_other_graphs_is_said(tmp_path):
    constants = {"m": channels(123.675, 116.28, 103.53), "s": channels(1 / 58.395, 1 / 57.12, 1 / 57.375)}
    model = network(*SUB_MUL, constants=constants)
    (note,) = opened(tmp_path, model).notes
    assert "Sub, Mul: mean 123.7 116.3 103.5, deviation 58.39 57.12 57.38" in note


@pytest.mark.parametrize(
    ("mean", "deviation"), [((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)
def test_a_graph_that_normalises_pixels_from_0_to_1_gets_these(tmp_path, mean, deviation):
    constants = {"m": channels(*mean), "s": channels(*deviation)}
    nodes = [node("Sub", "x", "m", "a"), node("Div", "a", "s", "pixels")]
    embedder = opened(tmp_path, network(*nodes, constants=constants))
    assert embedder.pixels == UNITS
    outside = Given(mean=tuple(255 * v for v in mean), std=tuple(255 * v for v in deviation))
    np.testing.assert_allclose(embedder.embed(IMAGES), opened(tmp_path, network(), outside).embed(IMAGES), atol=1e-3)


def own_operations():
    scaled = [node("Mul", "x", "s", "pixels")]
    half = [node("Sub", "map", "m", "n"), node("Mul", "n", "m", "map2")]
    norm = [node("BatchNormalization", "x", "gain", "shift", "mean", "variance", "pixels")]
    grey = [node("Conv", "x", "mix", "pixels")]
    return {
        "Sub and Mul behind the convolution": network(constants={"m": f32(127.5)}, behind=half),
        "an input scaled by 1": network(*scaled, constants={"s": f32(1)}),
        "a norm of normalised pixels": network(*norm, constants=norm_of([-0.1, -0.2, -0.25], [0.25, 0.24, 0.26])),
        "an untrained norm": network(*norm, constants=norm_of([0, 0, 0], [1, 1, 1])),
        "a convolution that mixes colours": network(*grey, constants={"mix": np.full((3, 3, 1, 1), 1 / 3, np.float32)}),
        "a small gain": network(
            *norm, constants={**norm_of([-0.1] * 3, [0.25] * 3), "gain": f32(0.01, 0.01, 0.01)}
        ),
        "an input used twice": network(
            node("Sub", "x", "m", "a"), node("Mul", "a", "s", "b"), node("Relu", "x", "c"),
            node("Add", "b", "c", "pixels"),
            constants={"m": f32(127.5), "s": f32(1 / 127.5)},
        ),
        "a size taken of the input": network(
            node("Shape", "x", "size"), node("ConstantOfShape", "size", "zero"), node("Add", "x", "zero", "pixels"),
        ),
    }


@pytest.mark.parametrize("name", own_operations())
def test_a_networks_own_operations_do_not_confuse(tmp_path, name):
    embedder = opened(tmp_path, own_operations()[name])
    assert embedder.pixels == Pixels()
    assert not any("normalises by itself" in note for note in embedder.notes)


def test_a_channel_swap_in_front_is_followed(tmp_path):
    swap = node("Gather", "x", "order", "swapped", axis=1)
    nodes = [swap, node("Sub", "swapped", "m", "a"), node("Div", "a", "m", "pixels")]
    embedder = opened(tmp_path, network(*nodes, constants={"order": np.array([2, 1, 0]), "m": f32(127.5)}))
    assert embedder.pixels == RAW
    bgr = opened(tmp_path, network(), Given(color_order="BGR"))
    np.testing.assert_allclose(embedder.embed(IMAGES), bgr.embed(IMAGES), atol=1e-4)


@pytest.mark.parametrize("shape", [("batch", 112, 112, 3), ("n", "h", "w", "c"), (2, 112, 112, 3)])
def test_layout_nhwc_is_found(tmp_path, shape):
    embedder = opened(tmp_path, network(node("Transpose", "x", "pixels", perm=[0, 3, 1, 2]), shape=shape))
    assert embedder.notes == []
    np.testing.assert_allclose(embedder.embed(IMAGES), plain(tmp_path), atol=1e-5)


def test_layout_nhwc_that_normalises(tmp_path):
    turn = node("Transpose", "b", "pixels", perm=[0, 3, 1, 2])
    nodes = [node("Sub", "x", "m", "a"), node("Div", "a", "m", "b"), turn]
    embedder = opened(tmp_path, network(*nodes, constants={"m": f32(127.5)}, shape=("batch", 112, 112, 3)))
    assert embedder.pixels == RAW
    np.testing.assert_allclose(embedder.embed(IMAGES), plain(tmp_path), atol=1e-4)


def test_free_shapes_are_nchw_unless_told(tmp_path):
    free = ("n", "a", "b", "c")
    np.testing.assert_allclose(opened(tmp_path, network(shape=free)).embed(IMAGES), plain(tmp_path), atol=1e-5)
    model = network(node("Identity", "x", "y"), node("Transpose", "y", "pixels", perm=[0, 3, 1, 2]), shape=free)
    embedder = opened(tmp_path, model, Given(layout="NHWC"))
    np.testing.assert_allclose(embedder.embed(IMAGES), plain(tmp_path), atol=1e-5)


@pytest.mark.parametrize(
    ("element", "kind"), [(TensorProto.UINT8, RAW), (TensorProto.FLOAT16, RAW)], ids=["uint8", "float16"]
)
def test_other_types_of_input(tmp_path, element, kind):
    nodes = [node("Cast", "x", "c", to=TensorProto.FLOAT), node("Sub", "c", "m", "a"), node("Div", "a", "m", "pixels")]
    embedder = opened(tmp_path, network(*nodes, constants={"m": f32(127.5)}, element=element))
    assert embedder.pixels == kind
    np.testing.assert_allclose(embedder.embed(IMAGES), plain(tmp_path), atol=1e-4)


def test_bytes_are_bytes_even_when_nothing_is_seen(tmp_path):
    nodes = [node("Cast", "x", "c", to=TensorProto.FLOAT), node("Relu", "c", "pixels")]
    assert opened(tmp_path, network(*nodes, element=TensorProto.UINT8)).pixels == RAW


OURS = {"input_size": "[112, 112]", "color_order": "RGB", "mean": "127.5", "std": "127.5", "embedding_size": "4"}


def test_our_metadata_are_believed(tmp_path):
    ours = {**OURS, "color_order": "BGR", "mean": "[104.0, 117.0, 123.0]", "std": "64"}
    embedder = opened(tmp_path, network(metadata=ours))
    assert embedder.pixels == Pixels((104.0, 117.0, 123.0), (64.0, 64.0, 64.0), "BGR")
    assert embedder.notes == ["its metadata: BGR, (pixel − (104, 117, 123)) / 64"]
    # More than the graph is believed, and less than the user.
    front, constants = FRONTS["Sub and Mul"]
    believed = opened(tmp_path, network(*front, constants=constants, metadata=OURS))
    assert believed.pixels == Pixels()
    assert "warning: it normalises by itself" in believed.notes[1]
    assert opened(tmp_path, network(metadata=ours), Given(color_order="RGB")).pixels.color_order == "RGB"


def test_words_of_others_metadata_are_not(tmp_path):
    assert opened(tmp_path, network(metadata={"mean": "[0.5]", "std": "0.2"})).pixels == Pixels()


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"mean": "grey"}, "metadata: "),
        ({"mean": "[1, 2]"}, "one finite number or three"),
        ({"mean": "NaN"}, "one finite number or three"),
        ({"std": "0"}, "std above 0"),
        ({"color_order": "GBR"}, "color_order RGB or BGR"),
        ({"input_size": "[224, 224]"}, "expected input_size \\[112, 112\\]"),
    ],
)
def test_metadata_that_make_no_sense_are_refused(tmp_path, entry, text):
    with pytest.raises(CheckpointError, match=text):
        opened(tmp_path, network(metadata={**OURS, **entry}))


def test_our_exporters_metadata_are_ours(tmp_path):
    from eval.onnx_input import OUR_METADATA, described_pixels
    from tools.exporting.form import Form, metadata

    written = metadata(Form(), Pixels(), 16, {"backbone": "tiny"}, None)
    assert set(OUR_METADATA) <= set(written)
    assert described_pixels(written, tmp_path) == Pixels()
    assert json.loads(written["mean"]) == 127.5
    assert described_pixels(metadata(Form(preprocessing="inside"), Pixels(), 16, {}, None), tmp_path) == RAW


def test_the_user_is_believed_and_warned(tmp_path):
    front, constants = FRONTS["Sub and Mul"]
    embedder = opened(tmp_path, network(*front, constants=constants), Given(mean=(127.5,) * 3, std=(127.5,) * 3))
    assert embedder.pixels == Pixels()
    assert embedder.notes[0].startswith("warning: it normalises by itself (Sub, Mul")


def with_inputs(*more):
    model = network()
    for name, element, shape in more:
        model.graph.input.append(helper.make_tensor_value_info(name, element, shape))
    return model


def test_a_switch_for_training_is_held_at_false(tmp_path):
    model = with_inputs(("training", TensorProto.BOOL, []))
    model.graph.node[-1].output[0] = "mean"
    model.graph.node.extend([
        node("Cast", "training", "one", to=TensorProto.FLOAT), node("Add", "mean", "one", "embedding"),
    ])
    np.testing.assert_allclose(opened(tmp_path, model).embed(IMAGES), plain(tmp_path), atol=1e-5)


def test_inputs_outputs_and_layouts_that_are_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected one input, got \['x', 'y'\]"):
        opened(tmp_path, with_inputs(("y", TensorProto.FLOAT, [1, 3, 112, 112])))
    for given, text in (
        (Given(input="data"), r"no input 'data'; it has \['x'\]"),
        (Given(output="fc1"), r"no output 'fc1'; it has \['embedding'\]"),
        (Given(layout="NHWC"), "layout NHWC does not fit: got x"),
    ):
        with pytest.raises(SettingsError, match=text):
            opened(tmp_path, network(), given)


def test_one_of_several_outputs_may_be_named(tmp_path):
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, None))
    with pytest.raises(CheckpointError, match=r"expected one output, got \['embedding', 'map'\]$"):
        opened(tmp_path, model)
    embedder = opened(tmp_path, model, Given(output="embedding"))
    np.testing.assert_allclose(embedder.embed(IMAGES), plain(tmp_path), atol=1e-5)
    model.graph.node.append(node("Identity", model.graph.output[1].name, "quality"))
    model.graph.output[1].name = "quality"  # as this project's export calls it
    np.testing.assert_allclose(opened(tmp_path, model).embed(IMAGES), plain(tmp_path), atol=1e-5)


def test_constants_outside_the_file_are_followed(tmp_path):
    front, constants = FRONTS["a mean image"]
    model = network(*front, constants=constants)
    onnx.save(model, str(tmp_path / "net.onnx"), save_as_external_data=True, location="weights", size_threshold=1024)
    assert (tmp_path / "weights").stat().st_size == 4 * 3 * 112 * 112
    assert load_embedder(tmp_path / "net.onnx", 1, "cpu").pixels == RAW


def test_the_real_network_is_not_taken_for_one_that_normalises(real_data):
    embedder = load_embedder(real_data / "third_party" / "mobilefacenet" / "MobileFaceNet.onnx", 1, "cpu")
    assert embedder.pixels == Pixels()
    assert embedder.notes == []
