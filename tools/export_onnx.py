"""A trained backbone as one ONNX file, with proof that it computes what torch computes.

    python tools/export_onnx.py RUN [OUT] [--precision fp32|fp16|int8] [--batch N] [--unit]
           [--preprocessing outside|inside|uint8] [--quality [--norms run|images]] [--images SET] [--pairs [SET …]]

RUN is a run folder, a .pt file, or an .onnx file to be brought into another form. The contract with clients,
docs/deployment.md: input `data` [batch, 3, 112, 112] float32 RGB, already (pixel − 127.5) / 127.5; output `embedding`
[batch, d], raw. What the exporter notes about source files is removed; what a user needs to know of the model stands in
its metadata. Nothing is written unless the graph passes the checker and agrees with the network on images.

    exporting/options.py       the command line
    exporting/form.py          what is asked of a file, and its metadata
    exporting/source.py        the network: the graph and the reference
    exporting/graph.py         from torch to ONNX, folded and clean
    exporting/precision.py     float16 and int8
    exporting/quality.py       μ and σ of the norms
    exporting/surroundings.py  pixels in front, unit length and quality behind
    exporting/parity.py        the file against the network
    exporting/scores.py        whose accuracy it states
    exporting/images.py        faces to do that with

Proven by tests/tools/test_export_onnx.py and tests/tools/exporting/.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.pixels import IMAGE_SIZE, Given
from recognition.backbones.model_file import write_atomically
from recognition.errors import NumericsError, SettingsError, run_command
from tools.exporting.form import Form, metadata
from tools.exporting.images import generated_images, read_images, run_images
from tools.exporting.options import check_places, default_out, form_in, pairs_in, parse
from tools.exporting.parity import BATCHES, Exported, ParityReport, compare, verify
from tools.exporting.precision import to_half, to_int8
from tools.exporting.quality import Norms, measured_norms
from tools.exporting.scores import state_scores
from tools.exporting.source import Source, free_batch, open_source
from tools.exporting.surroundings import looks_normalising, surround

Images = np.ndarray | Callable[[int], np.ndarray]

CHECK = max(BATCHES)  # images that the file is compared on
CALIBRATION = 256  # images that int8 takes its ranges from: more gains nothing measurable
FEW = 64  # images, below which its ranges are a few pictures' own
NORMS = 1000  # images that μ and σ are measured on
LEAST_NORMS = 100  # images, for μ and σ that mean something
LEAST_SPREAD = 1e-4  # σ/μ: below it the norm is what rounding left of unit length


def export(
    model_path: Path, out: Path, images: Images | None = None, backbone: str | None = None,
    form: Form | None = None, *, given: Given | None = None, pairs: Sequence[Path] = (),
) -> ParityReport:
    """Write the model at `model_path` (run folder, .pt or .onnx; `backbone` names a bare state dict's) to `out`.

    `images`, uint8 RGB [n, 112, 112, 3] or what reads at most so many, are what the file is compared on; generated ones
    without them. int8 is calibrated, and norms are measured, on them too: the comparison keeps 32 for itself when there
    are 64 or more.
    `form`: what the file is to be like.  `given`: what an .onnx file or a bare state dict takes.  `pairs`: sets to
    verify on.
    NumericsError when a cosine (0.99999 in float32) or a z is beyond the form's limits, CheckpointError when there is
    no usable model or no room for the file, SettingsError when the form does not fit the model, ValueError when the
    images are of another shape or type.
    """
    started = time.perf_counter()
    form = form or Form()
    source = open_source(model_path, backbone, given, form.quality and form.norms != "images")
    if out.exists() and out.samefile(source.path):
        raise SettingsError(f"{out}: is the file to be exported; give another OUT")
    given_images = None if images is None else faces(images, source, form)
    check, rest = (generated_images(CHECK), None) if given_images is None else split(given_images)
    norms = find_norms(source, form, rest) if form.quality else None
    model, fp32_bytes = build(source, form, norms, rest)
    content = model.SerializeToString()
    rows, mean_cosine, quality_error = held_against(source, content, check, form, norms)
    error, cosine = max(row[1] for row in rows), min(row[2] for row in rows)
    verification, scores = verify(content, source.embed, pairs) if pairs else ((), [])
    if scores:
        state_scores(model, scores)
        content = model.SerializeToString()
    write_atomically(out, content)
    seen = "generated images" if images is None else f"{len(check)} given images"
    seconds = time.perf_counter() - started
    calibration = calibrated_on(source, form, rest), given_images is not None and len(given_images) >= 2 * CHECK
    return ParityReport(error, cosine, rows, seen, len(content), seconds, form.precision, fp32_bytes, mean_cosine,
                        quality_error, norms, verification, *calibration)


def faces(images: Images, source: Source, form: Form) -> np.ndarray:
    """The images at hand, as many as this export has a use for; ValueError when they are of another shape or type."""
    if callable(images):
        measures = form.quality and form.norms != "run" and (source.norms is None or form.norms == "images")
        images = images(CHECK + max(CALIBRATION if form.precision == "int8" else 0, NORMS if measures else 0))
    if images.dtype != np.uint8 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3) or not len(images):
        raise ValueError(f"images: expected uint8 [n, 112, 112, 3], got {images.dtype} {list(images.shape)}")
    return images


def held_against(
    source: Source, content: bytes, images: np.ndarray, form: Form, norms: Norms | None
) -> tuple[tuple[tuple[int, float, float], ...], float, float | None]:
    """What `compare` finds of the file's content.

    NumericsError when the file is further from the network than its form allows; also when that is no number.
    """
    path = source.path
    try:
        rows, mean_cosine, quality_error = compare(
            Exported(content, source.pixels, form), source.embed, images, form, norms)
    except SettingsError as problem:
        hint = f"; --batch {source.batch} keeps the size that it was made for" if source.batch else ""
        raise SettingsError(f"{path}: {problem}{hint}") from None
    cosine = min(row[2] for row in rows)
    if not cosine >= form.limit:
        raise NumericsError(f"{path}: onnxruntime is not the network: cosine {cosine:.7f}, expected at least "
                            f"{form.limit} in {form.precision}")
    if quality_error is not None and not quality_error <= form.quality_limit:
        raise NumericsError(f"{path}: the quality is {quality_error:g} off, at most {form.quality_limit:g} in "
                            f"{form.precision}")
    return rows, mean_cosine, quality_error


def split(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images to compare on, and those to calibrate on and to measure with: others, where there are enough."""
    if len(images) < 2 * CHECK:
        return images[:CHECK], images
    held = np.zeros(len(images), bool)
    held[np.linspace(0, len(images) - 1, CHECK).astype(int)] = True  # from all of the set, as the others are
    return images[held], images[~held]


def find_norms(source: Source, form: Form, images: np.ndarray | None) -> Norms:
    """μ, σ and −τ for the quality output.

    SettingsError when neither the run nor images tell them, NumericsError when they tell nothing of pictures.
    """
    if source.unit:
        raise SettingsError(f"{source.path}: --quality: its embeddings have unit length and no norm to judge by; "
                            "export it anew from what it was made of")
    if source.norms is not None and form.norms != "images":
        norms = source.norms
    elif form.norms == "run":
        raise SettingsError(f"{source.path}: --norms run: it tells no μ and σ; only runs with QAFace keep them")
    elif images is None:
        raise SettingsError(f"{source.path}: --quality: no μ and σ of a QAFace run; --images SET to measure them on")
    elif len(images) < LEAST_NORMS:
        raise SettingsError(f"{source.path}: --quality: expected at least {LEAST_NORMS} images to measure μ and σ on, "
                            f"got {len(images)} (of {2 * CHECK} or more, {CHECK} are for the comparison)")
    else:
        norms = measured_norms(source.embed(images[:NORMS]))
    if not norms.deviation >= LEAST_SPREAD * norms.mean:
        raise NumericsError(f"{source.path}: --quality: norms of {norms.mean:g} ± {norms.deviation:.1e} tell pictures "
                            f"apart by nothing (σ/μ below {LEAST_SPREAD:g}); are its embeddings of unit length?")
    return norms


def calibrated_on(source: Source, form: Form, images: np.ndarray | None) -> int:
    """How many of the images int8 takes its ranges from: where the batch stays fixed, those that fill one."""
    if images is None or form.precision != "int8":
        return 0
    batch = source.batch if source.batch == form.batch else None
    return min(len(images), CALIBRATION) // (batch or 1) * (batch or 1)


def build(
    source: Source, form: Form, norms: Norms | None, images: np.ndarray | None
) -> tuple[onnx.ModelProto, int]:
    """The file that `form` asks for, checked, and the size of its network in float32."""
    model = source.model
    batch = source.batch
    if batch is not None and batch != form.batch:
        free_batch(model)
        batch = None
    fp32_bytes = model.ByteSize()
    embedding_size = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if form.precision == "fp16":
        to_half(model)
    elif form.precision == "int8":
        if images is None:
            raise SettingsError(f"{source.path}: --precision int8 is calibrated on faces: --images SET")
        if not (count := calibrated_on(source, form, images)):
            raise SettingsError(f"{source.path}: --precision int8: {len(images)} images do not fill its batch of "
                                f"{batch}")
        model = to_int8(model, source.pixels.prepare(images[:count]), batch)
    was_normalising = looks_normalising(model.graph)
    added = dataclasses.replace(form, unit=form.unit and not source.unit)
    surround(model, added, source.pixels, norms, source.inside is not None and form.preprocessing == "outside")
    told = norms or (None if form.unit or source.unit else source.norms)
    facts = metadata(form, source.pixels, embedding_size, source.known, told, unit=source.unit, inside=source.inside)
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        if source.path.suffix != ".onnx":
            raise  # our own graph: a fault of the program
        raise SettingsError(f"{source.path}: no valid graph comes out: {str(error).splitlines()[0]}") from None
    ours = source.path.suffix != ".onnx" and form.preprocessing == "outside"
    assert not (ours and was_normalising), "clients would take this graph for one that normalises its input"
    return model, fp32_bytes


def main(arguments: Sequence[str]) -> int | None:
    """The command."""
    options = parse(arguments)
    form = form_in(options)
    out = options.out or default_out(options.run, form)
    pairs, unmeasured = pairs_in(options)
    check_places(out, options.json, pairs)
    images = options.images or (run_images(options.run) if options.run.is_dir() else None)
    if form.precision == "int8" and images is not None:
        print(f"int8: calibrating on up to {CALIBRATION} faces of {images}; minutes for a large network",
              file=sys.stderr, flush=True)
    report = export(
        options.run, out, None if images is None else partial(read_images, images), options.backbone, form,
        given=Given(options.mean, options.std, options.color_order), pairs=pairs,
    )
    if images is not None:
        report = dataclasses.replace(report, images=f"{report.images} of {images}")
    print(report.table())
    for line in lines(report):
        print(line)
    if report.verification:
        print(report.verification_table())
    for line in unmeasured:
        print(line)
    print(f"{out}: {report.num_bytes / 1e6:.1f} MB, {report.seconds:.1f} s")
    if options.json:
        from eval.verification import write_json

        write_json(options.json, {"file": str(out), **dataclasses.asdict(report)})
    return 0


def lines(report: ParityReport) -> list[str]:
    """What there is to say beside the tables."""
    said = []
    if report.precision != "fp32":
        said.append(f"{report.precision}: {report.num_bytes / report.fp32_bytes:.2f} of float32's "
                    f"{report.fp32_bytes / 1e6:.1f} MB, cosine {report.mean_cosine:.5f} on average")
    if report.precision == "int8" and report.calibrated < FEW:
        same = "" if report.separate else ", and the comparison is on the same pictures"
        said.append(f"warning: int8 is calibrated on {report.calibrated} images, fewer than {FEW}{same}; --images SET")
    if report.norms is not None:
        norms = report.norms
        said.append(f"quality: (norm − {norms.mean:.3f}) / {norms.deviation:.3f}, {norms.source}; below "
                    f"{norms.threshold:g} is unrecognisable; largest error {report.quality_error:.1e}")
    return said


if __name__ == "__main__":
    run_command(main)
