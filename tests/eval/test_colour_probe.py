"""eval/colour_probe.py with networks whose first convolution has its input channels permuted, made and real."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eval.colour_probe import CERTAINTY, LEAST_PAIRS, colour_warning, probe_colour_order
from eval.embed import load_embedder
from eval.pixels import Given
from eval.verification import load_bin

PAIRS = 160


def coloured_pairs(count=PAIRS, seed=0):
    """People are patterns in red; blue is other in every picture. So who looks at red tells them apart."""
    generator = np.random.default_rng(seed)
    issame = np.arange(count) % 2 == 0
    red = generator.normal(0, 50, (count, 2, 14, 14))
    red[issame, 1] = red[issame, 0]
    small = generator.normal(128, 40, (count, 2, 14, 14, 3))
    small[..., 0] += red
    images = np.clip(small, 0, 255).astype(np.uint8).reshape(-1, 14, 14, 3)
    return images.repeat(8, axis=1).repeat(8, axis=2), issame


def network(path, swapped=False):
    """8×8 means, each a number of the embedding: of red, and a little of blue."""
    kernel = np.zeros((1, 3, 8, 8), np.float32)
    kernel[0, 0], kernel[0, 2] = 1 / 64, 0.4 / 64
    if swapped:
        kernel = kernel[:, ::-1].copy()
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "kernel"], ["map"], strides=[8, 8]),
         helper.make_node("Flatten", ["map"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 196])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def test_a_network_with_permuted_channels_is_found(tmp_path):
    images, issame = coloured_pairs()
    right = load_embedder(network(tmp_path / "right.onnx"), 1, "cpu")
    wrong = load_embedder(network(tmp_path / "wrong.onnx", swapped=True), 1, "cpu")
    assert colour_warning(right.embed, images, issame) is None
    gain, certainty = probe_colour_order(wrong.embed, images, issame)
    assert gain > 0
    assert certainty > CERTAINTY
    assert probe_colour_order(right.embed, images, issame) == pytest.approx((-gain, -certainty), rel=1e-4)
    assert "warning: BGR tells faces apart better than RGB" in colour_warning(wrong.embed, images, issame)


def test_the_order_that_is_set_is_what_is_judged(tmp_path):
    images, issame = coloured_pairs()
    right = load_embedder(network(tmp_path / "right.onnx"), 1, "cpu", Given(color_order="BGR"))
    text = colour_warning(right.embed, images, issame, "BGR")
    assert "RGB tells faces apart better than BGR" in text
    assert text.endswith("(--color-order RGB)")


def test_no_warning_where_colours_do_not_matter():
    """A network that likes neither order: what is left is chance, and a hundred sets do not get a warning."""
    for seed in range(100):
        generator = np.random.default_rng(seed)
        images = generator.integers(0, 256, (PAIRS * 2, 4, 4, 3), dtype=np.uint8)
        images[0::4] = np.clip(images[1::4] + generator.normal(0, 60, images[1::4].shape), 0, 255)
        embed = lambda part: part.reshape(len(part), -1).astype(np.float32)[:, :40] - 128  # noqa: E731
        assert colour_warning(embed, images, np.arange(PAIRS) % 2 == 0) is None


def test_too_little_to_say():
    images, issame = coloured_pairs(2 * LEAST_PAIRS - 1)

    def embed(part):
        return part[:, ::8, ::8].reshape(len(part), -1).astype(np.float32)

    assert probe_colour_order(embed, images, issame) is None
    assert probe_colour_order(embed, images, np.ones_like(issame)) is None
    images, issame = coloured_pairs()
    assert probe_colour_order(lambda part: np.ones((len(part), 4), np.float32), images, issame) is None
    assert probe_colour_order(lambda part: embed(part).mean(axis=1, keepdims=True), images, issame) is None
    assert probe_colour_order(lambda part: np.full((len(part), 4), np.nan, np.float32), images, issame) is None


@pytest.mark.slow
def test_the_real_network(real_data, tmp_path):
    """It is known to want RGB; with the input channels of its first convolution turned round it wants BGR."""
    file = real_data / "third_party" / "mobilefacenet" / "MobileFaceNet.onnx"
    pairs = load_bin(real_data / "lfw" / "lfw_folds_8_9_10.bin")
    right = load_embedder(file)
    assert colour_warning(right.embed, pairs.images, pairs.issame) is None

    model = onnx.load(str(file))
    kernel = next(t for t in model.graph.initializer if t.name == model.graph.node[0].input[1])
    values = numpy_helper.to_array(kernel)
    assert values.shape[1] == 3
    kernel.CopyFrom(numpy_helper.from_array(values[:, ::-1].copy(), kernel.name))
    onnx.save(model, str(tmp_path / "bgr.onnx"))
    turned = load_embedder(tmp_path / "bgr.onnx")
    warning = colour_warning(turned.embed, pairs.images, pairs.issame)
    assert "BGR tells faces apart better than RGB" in warning
    assert "--color-order BGR" in warning
    told = load_embedder(tmp_path / "bgr.onnx", given=Given(color_order="BGR"))
    np.testing.assert_allclose(told.embed(pairs.images[:4]), right.embed(pairs.images[:4]), atol=1e-3)
