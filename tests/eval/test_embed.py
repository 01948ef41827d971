"""eval/embed.py with small networks made here: what goes in, fixed batches, ill-fitting files."""

import argparse

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from eval import embed, torch_embedder
from eval.embed import load_embedder, normalise, require_finite
from eval.model_options import add_model_options, given_in, open_model
from eval.pixels import Given, Pixels
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.errors import CheckpointError, NumericsError, SettingsError
from tools.exporting.source import open_source

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 112, 112, 3), dtype=np.uint8)
WEIGHT = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)


def network(batch="batch", shape=(3, 112, 112), size=5, inputs=1, outputs=1, element=TensorProto.FLOAT):
    """Mean over the pixels, times a matrix: embedding [N, 5] that numpy can compute."""
    nodes = [
        helper.make_node("ReduceMean", ["in0", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["out0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(f"in{i}", element, [batch, *shape]) for i in range(inputs)],
        [helper.make_tensor_value_info(f"out{i}", element, [batch, size]) for i in range(outputs)],
        [
            numpy_helper.from_array(WEIGHT if shape[0] == 3 else np.ones((shape[0], 5), np.float32), "weight"),
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        ],
    )
    if outputs == 2:
        graph.node.append(helper.make_node("Identity", ["out0"], ["out1"]))
    if element != TensorProto.FLOAT:
        kind = {TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}[element]
        graph.initializer[0].CopyFrom(numpy_helper.from_array(WEIGHT.astype(kind), "weight"))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def expected(images):
    return ((images.astype(np.float64) - 127.5) / 127.5).mean(axis=(1, 2)) @ WEIGHT


def saved(tmp_path, model, name="net.onnx"):
    onnx.save(model, str(tmp_path / name))
    return tmp_path / name


@pytest.mark.parametrize("batch", ["batch", 1, 3, 7, 16])
@pytest.mark.parametrize("size", [5, "d"])
def test_onnx_of_any_batch_size(tmp_path, batch, size):
    embedder = load_embedder(saved(tmp_path, network(batch, size=size)), threads=1)
    assert embedder.dim == 5
    for count in (0, 1, 7):
        embedding = embedder.embed(IMAGES[:count])
        assert embedding.dtype == np.float32
        assert embedding.shape == (count, 5)
        np.testing.assert_allclose(embedding, expected(IMAGES[:count]), atol=1e-5)


def test_more_images_than_a_batch(tmp_path):
    images = np.concatenate([IMAGES] * 20)
    embedder = load_embedder(saved(tmp_path, network()), threads=1)
    np.testing.assert_allclose(embedder.embed(images), expected(images), atol=1e-5)


def test_the_number_of_threads_changes_nothing(tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (61, 112, 112, 3), dtype=np.uint8)
    path = saved(tmp_path, network())
    one, three = (load_embedder(path, threads, "cpu").embed(images) for threads in (1, 3))
    np.testing.assert_array_equal(one, three)
    np.testing.assert_allclose(one, expected(images), atol=1e-5)


def test_an_error_in_one_thread_is_an_error(tmp_path):
    embedder = load_embedder(saved(tmp_path, network()), 3, "cpu")
    embedder.dim = 6
    with pytest.raises(CheckpointError, match="expected 6 numbers an image, got 5"):
        embedder.embed(np.concatenate([IMAGES] * 4))


def test_a_batch_size_that_the_graph_hides(tmp_path):
    model = network(size="d")
    model.graph.node[1].output[0] = "product"
    model.graph.node.append(helper.make_node("Reshape", ["product", "flat"], ["out0"]))  # [n, 5] → [1, n·5]
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), "flat"))
    embedder = load_embedder(saved(tmp_path, model), 2, "cpu")
    assert embedder.notes == ["says that it takes any number of images, but takes only one at a time"]
    np.testing.assert_allclose(embedder.embed(IMAGES), expected(IMAGES), atol=1e-5)


def test_devices_that_are_not_there(tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(SettingsError, match="onnxruntime is installed without CUDA"):
        load_embedder(saved(tmp_path, network()), 1, "cuda")


@pytest.mark.parametrize("device", ["foo", "cuda:a", "meta"])
def test_devices_that_are_none(tmp_path, device):
    settings = BackboneSettings(name="tiny", embedding_size=16)
    save_model(tmp_path / "model_last.pt", build(settings), settings, {})
    for path in (saved(tmp_path, network()), tmp_path, tmp_path / "model_last.pt"):
        with pytest.raises(SettingsError, match=f"device {device}: .+") as error:
            load_embedder(path, 1, device)
        assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(tmp_path):
    settings = BackboneSettings(name="tiny", embedding_size=16)
    save_model(tmp_path / "model_last.pt", build(settings), settings, {})
    for device in ("cuda", "cuda:1"):
        with pytest.raises(SettingsError, match=rf"model_last\.pt: device {device}: "):
            load_embedder(tmp_path / "model_last.pt", 1, device)


def test_gpus_compute_in_float32_and_not_in_tf32(monkeypatch):
    monkeypatch.setattr(embed.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    (provider, settings), behind = embed._providers("net.onnx", "cuda:1")
    assert (provider, behind) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert settings == {"device_id": "1", "use_tf32": "0"}
    parts = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [part.allow_tf32 for part in parts]
    try:
        for part in parts:
            part.allow_tf32 = True
        torch_embedder.refuse_tf32(torch.device("cpu"))
        assert [part.allow_tf32 for part in parts] == [True, True]
        torch_embedder.refuse_tf32(torch.device("cuda:1"))
        assert [part.allow_tf32 for part in parts] == [False, False]
    finally:
        for part, value in zip(parts, before, strict=True):
            part.allow_tf32 = value


def test_what_is_said_of_a_model_file_holds(tmp_path):
    settings = BackboneSettings(name="tiny", embedding_size=16)
    module = build(settings)
    save_model(tmp_path / "model_last.pt", module, settings, {})
    given = Given(mean=(104.0, 117.0, 123.0), std=(64.0, 64.0, 64.0), color_order="BGR")
    got = load_embedder(tmp_path, 1, "cpu", given).embed(IMAGES)
    pixels = (IMAGES[..., ::-1].astype(np.float32) - np.float32([104, 117, 123])) / np.float32(64)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()
    assert_same_embeddings(got, wanted)
    with pytest.raises(SettingsError, match="are of ONNX files"):
        load_embedder(tmp_path, 1, "cpu", Given(layout="NHWC"))


def assert_same_embeddings(got, wanted):
    """Up to the order of float32 sums, which the layout in memory decides; 1e-5 of the length of an embedding."""
    assert got.shape == wanted.shape
    assert (np.linalg.norm(got - wanted, axis=1) < 1e-5 * np.linalg.norm(wanted, axis=1)).all()


def options(*words):
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    return parser.parse_args(list(words))


def test_options_of_the_command_line(tmp_path, capsys):
    path = str(saved(tmp_path, network()))
    found = options(path, "--mean", "1,2,3", "--std", "64", "--color-order", "bgr", "--input", "in0",
                    "--layout", "nchw", "--output", "out0", "--backbone", "tiny", "--threads", "1", "--device", "cpu")
    given = Given((1.0, 2.0, 3.0), (64.0, 64.0, 64.0), "BGR", "in0", "NCHW", "out0", "tiny")
    assert given_in(found) == given
    found.backbone = None
    embedder = open_model(found)
    assert embedder.pixels == Pixels((1.0, 2.0, 3.0), (64.0, 64.0, 64.0), "BGR")
    assert given_in(options(path)) == Given()
    assert capsys.readouterr().out == ""


def test_only_commands_that_have_the_option_name_it(tmp_path):
    path = saved(tmp_path, network(outputs=2))
    with pytest.raises(CheckpointError, match=r"got \['out0', 'out1'\]; --output says which$"):
        open_model(options(str(path)))
    for plain in (load_embedder, open_source):
        with pytest.raises(CheckpointError, match=r"expected one output, got \['out0', 'out1'\]$"):
            plain(path)
    assert open_model(options(str(path), "--output", "out1", "--device", "cpu")).dim == 5


def test_a_bare_state_dict_is_evaluated(tmp_path):
    """What others publish, by the name of its backbone; every command has the option."""
    settings = BackboneSettings(name="tiny", embedding_size=16)
    module = build(settings).eval()
    torch.save(module.state_dict(), tmp_path / "bare.pth")
    words = [str(tmp_path / "bare.pth"), "--threads", "1", "--device", "cpu"]
    with torch.no_grad():
        wanted = module(torch.from_numpy(normalise(IMAGES))).numpy()
    assert_same_embeddings(open_model(options(*words, "--backbone", "tiny")).embed(IMAGES), wanted)
    for told, reason in (([], r"a bare state dict; say which backbone it belongs to \(--backbone NAME\)"),
                         (["--backbone", "iresnet18"], "not iresnet18"), (["--backbone", "tinny"], "tiny")):
        with pytest.raises(CheckpointError, match=reason):
            open_model(options(*words, *told))
    with pytest.raises(SettingsError, match=r"net\.onnx: a backbone is said of a bare state dict"):
        open_model(options(str(saved(tmp_path, network())), "--backbone", "tiny"))


def test_what_is_found_of_a_model_is_printed(tmp_path, capsys):
    model = network(size="d")
    values = {"input_size": "[112, 112]", "color_order": "BGR", "mean": "0", "std": "255", "embedding_size": "5"}
    for key, value in values.items():
        model.metadata_props.add(key=key, value=value)
    path = saved(tmp_path, model)
    open_model(options(str(path), "--device", "cpu"))
    assert capsys.readouterr().out == f"{path}: its metadata: BGR, pixel / 255\n"


@pytest.mark.parametrize(
    "words",
    [("--mean", "a"), ("--mean", "1,2"), ("--mean", "nan"), ("--std", "0"), ("--std", "1,2,-3"), ("--layout", "CHW"),
     ("--color-order", "grey")],
)
def test_options_that_make_no_sense(words):
    with pytest.raises(SystemExit) as stop:
        options("model.onnx", *words)
    assert stop.value.code == 2


def test_pt_file_and_run_folder(tmp_path):
    settings = BackboneSettings(name="tiny", embedding_size=16)
    torch.manual_seed(0)
    module = build(settings)
    save_model(tmp_path / "model_last.pt", module, settings, {})
    module.eval()
    with torch.no_grad():
        wanted = module(torch.from_numpy(normalise(IMAGES))).numpy()
    for model in (tmp_path, tmp_path / "model_last.pt"):
        embedder = load_embedder(model, threads=1, device="cpu")
        assert embedder.dim == 16
        assert_same_embeddings(embedder.embed(IMAGES), wanted)


def test_normalise():
    image = np.zeros((1, 112, 112, 3), np.uint8)
    image[0, 3, 4] = 255, 51, 0
    result = normalise(image)
    assert result.shape == (1, 3, 112, 112)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[0, :, 3, 4], [1, -0.6, -1])


@pytest.mark.parametrize(
    "images",
    [IMAGES.astype(np.float32), IMAGES[0], IMAGES[:, :100], IMAGES.transpose(0, 3, 1, 2), IMAGES[..., :1]],
)
def test_other_images_are_refused(tmp_path, images):
    embedder = load_embedder(saved(tmp_path, network()), threads=1)
    with pytest.raises(ValueError, match="expected uint8 images"):
        embedder.embed(images)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shape": (3, 224, 224)}, r"expected an input of float32 \[N, 3, 112, 112\] or .*, got in0"),
        ({"shape": (1, 112, 112)}, "expected an input"),
        ({"shape": (112, 3, 112)}, "expected an input"),
        ({"element": TensorProto.DOUBLE}, "expected an input"),
        ({"inputs": 2}, r"expected one input, got \['in0', 'in1'\]"),
        ({"outputs": 2}, r"expected one output, got \['out0', 'out1'\]"),
    ],
)
def test_networks_that_do_not_fit_are_refused(tmp_path, options, text):
    path = saved(tmp_path, network(**options))
    with pytest.raises(CheckpointError, match=text) as error:
        load_embedder(path, threads=1)
    assert str(error.value).startswith(f"{path}: ")


def test_feature_maps_are_no_embeddings(tmp_path):
    model = network()
    model.graph.node[0].attribute[0].i = 1  # keepdims: [N, 3, 1, 1]
    model.graph.node[1].input[0], model.graph.node[1].op_type = "mean", "Relu"
    del model.graph.node[1].input[1]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(CheckpointError, match=r"expected embeddings \[1, d\], got \[1, 3, 1, 1\]"):
        load_embedder(saved(tmp_path, model), threads=1)


@pytest.mark.parametrize("name", ["nowhere.onnx", "nowhere.pt", "nowhere"])
def test_a_missing_model_is_named(tmp_path, name):
    with pytest.raises(CheckpointError, match=name):
        load_embedder(tmp_path / name)


def test_embeddings_that_are_not_finite_are_named():
    embeddings = np.zeros((4, 3), np.float32)
    require_finite(embeddings)
    embeddings[1, 2], embeddings[3, 0] = np.nan, np.inf
    with pytest.raises(NumericsError, match=r"2 of 4 embeddings are not finite: b.jpg, d.jpg"):
        require_finite(embeddings, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
