"""The options of every command that takes a MODEL, and the opening of what they describe.

Owns `add_model_options`, which gives a parser MODEL's options, `open_model`, which opens what the parsed options name
and says on one line what it takes, and `naming_options`, by which errors name these options and no other command's do.
The commands differ in everything else. Proven by tests/eval/test_embed.py.
"""

import argparse
import contextlib
from collections.abc import Iterator

from eval.embed import Embedder, SeveralOutputsError, load_embedder
from eval.pixels import COLOR_ORDERS, LAYOUTS, Given, Triple, triple
from recognition.errors import CheckpointError


def add_model_options(parser: argparse.ArgumentParser, positional: bool = True) -> None:
    """Add MODEL (unless `positional` is False: the command adds it) and what may be said of it to a parser."""
    if positional:
        parser.add_argument("model", metavar="MODEL", help=".onnx file, .pt or .pth file, or run folder")
    group = parser.add_argument_group("what the model takes (default: found from the file)")
    meaning = "of pixels from 0 to 255: a number, or R,G,B (B,G,R) in the network's order"
    group.add_argument("--mean", type=pixel_values, metavar="M", help=f"{meaning} (127.5)")
    group.add_argument("--std", type=pixel_divisor, metavar="S", help="likewise (127.5)")
    group.add_argument("--color-order", choices=COLOR_ORDERS, type=str.upper, help="of the channels (RGB)")
    group.add_argument("--input", metavar="NAME", help="input of an ONNX graph that takes the images")
    group.add_argument("--layout", choices=LAYOUTS, type=str.upper, help="of that input")
    group.add_argument("--output", metavar="NAME", help="output of an ONNX graph that gives the embeddings")
    group.add_argument("--backbone", metavar="NAME", help="which backbone a bare state dict holds, e.g. iresnet50")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, … (default: auto, a GPU if there is one)")


def given_in(options: argparse.Namespace) -> Given:
    """What parsed options say of the model."""
    return Given(options.mean, options.std, options.color_order, options.input, options.layout, options.output,
                 options.backbone)


def open_model(options: argparse.Namespace, model: str | None = None) -> Embedder:
    """Open the model that parsed options name (or `model`, with the same options) and print what was found of it.

    Raises:
        CheckpointError: as `load_embedder`. SettingsError: the model has no such input, output or device.
    """
    with naming_options():
        embedder = load_embedder(model or options.model, options.threads, options.device, given_in(options))
    for note in embedder.notes:
        print(f"{embedder.name}: {note}")
    return embedder


@contextlib.contextmanager
def naming_options() -> Iterator[None]:
    """Where a model does not say enough of itself, name the option that does."""
    try:
        yield
    except SeveralOutputsError as error:
        raise CheckpointError(f"{error}; --output says which") from None


def pixel_values(text: str) -> Triple:
    """`127.5` or `123.7,116.3,103.5`."""
    try:
        return triple([float(part) for part in text.split(",")])
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, or three with commas between, got {text!r}") from None


def pixel_divisor(text: str) -> Triple:
    """The same, above 0."""
    numbers = pixel_values(text)
    if min(numbers) <= 0:
        raise argparse.ArgumentTypeError(f"expected numbers above 0, got {text!r}")
    return numbers
