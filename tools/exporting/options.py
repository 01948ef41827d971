"""The command line of an export: its options, where the file goes by default, and whether it can go there.

Every mistake in it is a SettingsError of one line, before the network is opened. What may be said of a model's pixels
is parsed as every command that takes a model parses it (eval/model_options.py).
Proven by tests/tools/exporting/test_options.py.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from eval.model_options import pixel_divisor, pixel_values
from eval.pixels import COLOR_ORDERS
from recognition.errors import SettingsError
from tools.exporting.form import Form
from tools.exporting.scores import run_sets


class _Parser(argparse.ArgumentParser):
    """Whose mistakes are told as all others of this command are."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; SettingsError."""
    parser = _Parser(prog="export_onnx.py", description="Write a trained backbone as one ONNX file.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, .pt file, or .onnx file to change")
    parser.add_argument("out", type=Path, metavar="OUT", nargs="?", help="default: model.onnx in the run folder, "
                        "with the form in the name: model_fp16_unit.onnx")
    parser.add_argument("--images", type=Path, metavar="SET", help="RecordIO set, .bin, or folder of aligned faces to "
                        "compare, calibrate and measure on (default: the run's set)")
    parser.add_argument("--backbone", metavar="NAME", help="which backbone a bare state dict holds")
    form = parser.add_argument_group("what the file is like")
    form.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="of weights and products")
    form.add_argument("--batch", type=int, metavar="N", help="a fixed number of images (default: any)")
    form.add_argument("--unit", action="store_true", help="embeddings of unit length (default: raw)")
    form.add_argument("--preprocessing", choices=("outside", "inside", "uint8"), default="outside",
                      help="inside: the graph takes pixels 0 to 255; uint8: as bytes (default: outside)")
    form.add_argument("--quality", action="store_true", help="a second output, the z-score of the norm")
    form.add_argument("--norms", choices=("run", "images"), help="whose μ and σ that takes (the run's if it has any)")
    form.add_argument("--least-cosine", type=float, metavar="C", help="accept a file that is so near to float32")
    checks = parser.add_argument_group("what it is held against")
    checks.add_argument("--pairs", type=Path, nargs="*", metavar="SET", help="verification sets: accuracy before and "
                        "after (default for fp16 and int8: the run's own; none: not measured)")
    checks.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    others = parser.add_argument_group("what an .onnx file or a bare state dict takes "
                                       "(default: found from the file; 127.5, 127.5, RGB)")
    others.add_argument("--mean", type=pixel_values, metavar="M", help="of pixels from 0 to 255: a number, or three")
    others.add_argument("--std", type=pixel_divisor, metavar="S", help="likewise")
    others.add_argument("--color-order", choices=COLOR_ORDERS, type=str.upper, help="of the channels")
    return parser.parse_args(list(arguments))


def form_in(options: argparse.Namespace) -> Form:
    """The form that parsed options ask for; SettingsError where they do not fit together."""
    return Form(options.precision, options.batch, options.unit, options.preprocessing, options.quality, options.norms,
                options.least_cosine)


def default_out(run: Path, form: Form) -> Path:
    """model.onnx in a run folder, NAME.onnx beside NAME.pt; all that is not as usual in the name: model_unit_b1.onnx.

    So no form of a file takes the place of the run's own.
    """
    stem = run / "model" if run.is_dir() else run.with_suffix("")
    unusual = [
        "" if form.precision == "fp32" else form.precision,
        "unit" if form.unit else "",
        "" if form.preprocessing == "outside" else form.preprocessing,
        "quality" if form.quality else "",
        "norms" if form.norms == "images" else "",
        "" if form.batch is None else f"b{form.batch}",
    ]
    return stem.with_name("_".join([stem.name, *filter(None, unusual)]) + ".onnx")


def pairs_in(options: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The sets to verify on, and what to say of those that are not: of fp16 and int8, whose accuracy may be another."""
    if options.pairs is not None or options.precision == "fp32":
        return options.pairs or [], []
    found, missing = run_sets(options.run) if options.run.is_dir() else ([], [])
    said = [f"accuracy not measured on {name}: the run's set is not there; --pairs" for name in missing]
    return found, said or ([] if found else ["accuracy not measured: --pairs"])


def check_places(out: Path, figures: Path | None, pairs: Sequence[Path]) -> None:
    """Refuse what could not be written, or read, when the work is done: OUT, `figures` (--json), and pairs.

    SettingsError: a folder instead of a file, no folder, or one that takes no file. DataError: a set that is none.
    """
    for what, path in (("OUT", out), ("--json", figures)):
        if path is None:
            continue
        if path.is_dir():
            raise SettingsError(f"{what}: {path} is a folder, expected a file's name")
        if not path.parent.is_dir():
            raise SettingsError(f"{what}: no folder {path.parent}")
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise SettingsError(f"{what}: {path.parent} takes no file: {error.strerror}") from None
    if pairs:
        from eval.verification_sets import check_set  # with OpenCV, which an export does without

        for path in pairs:
            check_set(path)
