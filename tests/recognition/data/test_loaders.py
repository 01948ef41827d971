"""Both loaders on small RecordIO sets, compared with each other and with the plan."""

import gc
import importlib.util
import itertools
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from recognition.data.augment import augment
from recognition.data.augmentation import IMAGE_SIDE, INTERPOLATIONS, UP_INTERPOLATIONS, Augmentation, draw_augmentation
from recognition.data.dataset import open_dataset
from recognition.data.fallback import FallbackLoader
from recognition.data.loader import make_loader, normalise
from recognition.data.plan import Plan, PlannedBatch
from recognition.data.recordio import RecordWriter, pack_record, write_index
from recognition.errors import DataError, SettingsError

CPU = torch.device("cpu")
HAS_DALI = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not HAS_DALI, reason="NVIDIA DALI is not installed")
KINDS = [pytest.param("dali", marks=needs_dali), "fallback"]
EVERYTHING = Augmentation(crop=0.5, downsample=0.5)
NOTHING = Augmentation(flip=0.0)


def picture(seed: int, side: int = IMAGE_SIDE) -> np.ndarray:
    """A picture with smooth and sharp parts, RGB uint8 [side, side, 3]."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.integers(0, 256, (7, 7, 3), np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    fine = rng.integers(-40, 41, smooth.shape)
    fine[: side // 3] = 0
    return np.clip(smooth + fine, 0, 255).astype(np.uint8)


def encode(image: np.ndarray, extension: str = ".jpg", *options: int) -> bytes:
    return cv2.imencode(extension, image[..., ::-1], options)[1].tobytes()


def write_set(folder: Path, images: list[bytes]) -> Path:
    """A set with label 3·k for image k; its keys begin at 10."""
    folder.mkdir(parents=True)
    with RecordWriter(folder / "train.rec") as writer:
        offsets = [writer.write(pack_record(float(3 * k), k, image)) for k, image in enumerate(images)]
    write_index(folder / "train.idx", np.arange(10, 10 + len(images)), np.array(offsets))
    return folder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    images = [encode(picture(seed), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 90 + seed % 10) for seed in range(100)]
    return open_dataset(write_set(tmp_path_factory.mktemp("drawn") / "set", images))


@pytest.fixture(scope="session")
def faces(real_data, tmp_path_factory):
    paths = sorted((real_data / "lfw" / "train").glob("*/*.jpg"))[:400]
    return open_dataset(write_set(tmp_path_factory.mktemp("faces") / "set", [path.read_bytes() for path in paths]))


class FixedPlan:
    """Batches given by the test."""

    augmentation = EVERYTHING

    def __init__(self, batches: list[PlannedBatch]) -> None:
        self.given, self.rows = batches, len(batches[0].sample)
        self.num_images = 100

    def batch(self, step: int) -> PlannedBatch:
        return self.given[step]


def planned(rows: int, sample: int | np.ndarray = 0, **given: object) -> PlannedBatch:
    """A batch without augmentation but for what is given, each one value or one for every row."""
    nothing = draw_augmentation(NOTHING, 0, 0, np.arange(rows))
    fields = {"down": 0, "up": 0} | given
    arrays = {name: np.empty_like(getattr(nothing, name)) for name in fields}
    for name, array in arrays.items():
        array[:] = fields[name]
    return PlannedBatch(0, 0, np.full(rows, sample, np.int64), replace(nothing, **arrays))


def load(kind: str, dataset, plan, start: int, stop: int) -> list:
    return list(make_loader(kind, dataset, plan, CPU, threads=2).batches(start, stop))


def differences(dataset, batches: list[PlannedBatch]) -> np.ndarray:
    """|DALI − fallback| in grey levels, int [batches, rows, 112, 112, 3]."""
    loaded = [load(kind, dataset, FixedPlan(batches), 0, len(batches)) for kind in ("dali", "fallback")]
    pairs = zip(*loaded, strict=True)
    return np.stack([np.abs(a.image.numpy().astype(int) - b.image.numpy()) for a, b in pairs])


# Both loaders


@pytest.mark.parametrize("kind", KINDS)
def test_images_labels_and_samples_belong_together(kind, drawn):
    plan = Plan(drawn.num_images, 12, 1, 2, 5, NOTHING)
    for step, batch in enumerate(load(kind, drawn, plan, 0, 9)):
        assert np.array_equal(batch.sample, plan.batch(step).sample)
        assert batch.label.dtype == torch.int64
        assert batch.label.tolist() == [3 * sample for sample in batch.sample]
        assert batch.image.dtype == torch.uint8
        assert batch.image.is_contiguous()
        for row, sample in enumerate(batch.sample.tolist()):
            expected = cv2.imdecode(drawn.encoded(sample), cv2.IMREAD_COLOR)[..., ::-1]
            assert np.array_equal(batch.image[row].numpy(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_starting_later_gives_the_same_batches(kind, drawn):
    plan = Plan(drawn.num_images, 16, 0, 1, 1, EVERYTHING)
    whole = load(kind, drawn, plan, 0, 14)
    later = load(kind, drawn, plan, 9, 14)
    assert len(whole) == 14
    for one, other in zip(whole[9:], later, strict=True):
        assert torch.equal(one.image, other.image)
        assert np.array_equal(one.sample, other.sample)
    assert load(kind, drawn, plan, 3, 3) == []


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_together_give_the_batches_of_one_process(kind, drawn):
    whole = load(kind, drawn, Plan(drawn.num_images, 20, 0, 1, 1, EVERYTHING), 3, 8)
    ranks = [load(kind, drawn, Plan(drawn.num_images, 20, rank, 4, 1, EVERYTHING), 3, 8) for rank in range(4)]
    for one, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert torch.equal(one.image, torch.cat([part.image for part in parts]))
        assert torch.equal(one.label, torch.cat([part.label for part in parts]))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_that_are_kept_do_not_change(kind, drawn):
    plan = Plan(drawn.num_images, 16, 0, 1, 1, EVERYTHING)
    kept, copies = [], []
    for batch in make_loader(kind, drawn, plan, CPU, threads=2).batches(0, 20):
        kept.append(batch.image)
        copies.append(batch.image.clone())
    gc.collect()
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_is_what_the_plan_says(kind, drawn):
    crop = np.array([(10, 20, 50, 60), (0, 0, 112, 40), (111, 111, 1, 1), (0, 0, 112, 112)])
    batch = planned(4, sample=np.arange(4), flip=np.array([True, False, False, True]), crop=crop)
    (loaded,) = load(kind, drawn, FixedPlan([batch]), 0, 1)
    for row, (top, left, height, width) in enumerate(crop.tolist()):
        image = cv2.imdecode(drawn.encoded(row), cv2.IMREAD_COLOR)[..., ::-1]
        image = image[:, ::-1] if batch.draws.flip[row] else image
        expected = np.zeros_like(image)
        expected[top : top + height, left : left + width] = image[top : top + height, left : left + width]
        assert np.array_equal(loaded.image[row].numpy(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_early_leaves_no_thread_behind(kind, drawn):
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else threading.active_count()

    plan = Plan(drawn.num_images, 16, 0, 1, 1, EVERYTHING)
    loader = make_loader(kind, drawn, plan, CPU, threads=2)
    before = threads()
    for taken in (0, 1, 3):
        batches = loader.batches(0, 1000)
        list(itertools.islice(batches, taken))
        batches.close()
    batches = loader.batches(0, 1000)
    next(batches)
    assert threads() > before
    del batches
    gc.collect()
    deadline = time.monotonic() + 10
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threads() <= before


# DALI and the fallback


@needs_dali
@pytest.mark.parametrize("down", range(len(INTERPOLATIONS)), ids=INTERPOLATIONS)
def test_scaling_down_is_equal_but_for_rounding(down, faces):
    # nearest on the way up repeats pixels, and shows what came down
    sides = np.arange(22, IMAGE_SIDE)
    batches = [planned(len(sides), sample=sides + 90 * k, side=sides, down=down) for k in range(3)]
    difference = differences(faces, batches)
    assert difference.max() <= (0 if INTERPOLATIONS[down] == "nearest" else 1)
    assert difference.mean() < 0.01


@needs_dali
@pytest.mark.parametrize("up", range(len(UP_INTERPOLATIONS)), ids=UP_INTERPOLATIONS)
def test_scaling_up_is_equal_but_for_rounding(up, faces):
    sides = np.arange(22, IMAGE_SIDE)
    batches = [planned(len(sides), sample=sides + 90 * k, side=sides, up=up) for k in range(3)]
    difference = differences(faces, batches)
    assert difference.max() <= (0 if UP_INTERPOLATIONS[up] == "nearest" else 1)
    assert difference.mean() < 0.01


@needs_dali
def test_small_sides_and_both_ways_are_equal_but_for_rounding(drawn):
    sides = np.array([1, 2, 3, 5, 8, 13, 21, 28, 56, 64, 96, 111])
    ways = itertools.product(range(len(INTERPOLATIONS)), range(len(UP_INTERPOLATIONS)))
    batches = [planned(len(sides), sample=np.arange(len(sides)), side=sides, down=down, up=up) for down, up in ways]
    difference = differences(drawn, batches)
    assert difference.max() <= 2  # a level off on the way down may be amplified by the overshoot of cubic and lanczos
    assert (difference > 1).mean() < 1e-4


@needs_dali
def test_a_planned_epoch_of_real_faces_is_equal_but_for_rounding(faces):
    plan = Plan(faces.num_images, 40, 0, 1, 11, EVERYTHING)
    difference = differences(faces, [plan.batch(step) for step in range(20)])
    assert difference.max() <= 2
    assert (difference > 1).mean() < 1e-5
    assert difference.mean() < 0.005
    without = differences(faces, [Plan(faces.num_images, 40, 0, 1, 11, Augmentation(crop=0.5)).batch(0)])
    assert without.max() == 0


def test_down_sampling_looks_like_the_image():
    image = picture(3)
    for down, up in itertools.product(range(len(INTERPOLATIONS)), range(1, len(UP_INTERPOLATIONS))):
        small = augment(image, planned(1, side=100, down=down, up=up).draws, 0)
        assert small.shape == image.shape
        assert np.abs(small.astype(int) - image)[:37].mean() < 3  # the smooth part


# Formats and damage


def formats() -> dict[str, bytes]:
    image = picture(1)
    image[37:] = cv2.GaussianBlur(image[37:], (0, 0), 2)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    deep = image[..., ::-1].astype(np.uint16) * 257
    alpha = np.dstack([image[..., ::-1], np.full(grey.shape, 128, np.uint8)])
    quality = (cv2.IMWRITE_JPEG_QUALITY, 95)
    return {
        "jpeg": encode(image, ".jpg", *quality),
        "progressive": encode(image, ".jpg", *quality, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "full colour": encode(image, ".jpg", *quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111),
        "half colour": encode(image, ".jpg", *quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x211111),
        "grey jpeg": cv2.imencode(".jpg", grey, quality)[1].tobytes(),
        "png": encode(image, ".png"),
        "grey png": cv2.imencode(".png", grey)[1].tobytes(),
        "16-bit png": cv2.imencode(".png", deep)[1].tobytes(),
        "png with alpha": cv2.imencode(".png", alpha)[1].tobytes(),
        "bmp": encode(image, ".bmp"),
        "webp": encode(image, ".webp", cv2.IMWRITE_WEBP_QUALITY, 95),
    }


@needs_dali
def test_every_format_decodes_to_the_same_rgb_in_both_loaders(tmp_path):
    images = formats()
    dataset = open_dataset(write_set(tmp_path / "set", list(images.values())))
    plan = FixedPlan([planned(len(images), sample=np.arange(len(images)))])
    (dali,), (fallback,) = load("dali", dataset, plan, 0, 1), load("fallback", dataset, plan, 0, 1)
    assert torch.equal(dali.image, fallback.image)
    original = dali.image[list(images).index("png")].int()
    for name, image in zip(images, dali.image.int(), strict=True):
        if "grey" in name:
            assert torch.equal(image[..., 0], image[..., 1])
            assert torch.equal(image[..., 0], image[..., 2])
            assert (image[..., 1] - original.float().matmul(torch.tensor([0.299, 0.587, 0.114]))).abs().mean() < 3, name
        else:
            assert (image - original).abs().float().mean() < 4, name


@needs_dali
def test_cmyk_and_rotated_images_decode_alike(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    image = pillow.fromarray(cv2.GaussianBlur(picture(2), (0, 0), 2))
    exif = pillow.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90°
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    image.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    paths = [tmp_path / "cmyk.jpg", tmp_path / "turned.jpg"]
    dataset = open_dataset(write_set(tmp_path / "set", [path.read_bytes() for path in paths]))
    plan = FixedPlan([planned(2, sample=np.arange(2))])
    (dali,), (fallback,) = load("dali", dataset, plan, 0, 1), load("fallback", dataset, plan, 0, 1)
    difference = (dali.image.int() - fallback.image.int()).abs()
    assert difference[0].max() <= 1  # the two convert CMYK with other rounding
    assert difference[1].max() == 0
    original = torch.from_numpy(np.array(image)).int()
    assert (dali.image[0].int() - original).abs().float().mean() < 4
    assert (dali.image[1].int() - original.rot90(-1)).abs().float().mean() < 4


def bomb() -> bytes:
    """A JPEG whose header says 30000 × 30000 pixels."""
    data = bytearray(encode(picture(0)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = (30000).to_bytes(2) * 2
    return bytes(data)


BAD = {
    "truncated": (encode(picture(0))[:-700], r"\S"),
    "without its last bytes": (encode(picture(0))[:-2], r"\S"),
    "only a beginning": (b"\xff\xd8\xff\xe0", r"\S"),
    "text": (b"this is not an image, however long one looks at it", r"\S"),
    "png cut": (encode(picture(0), ".png")[:3000], r"\S"),
    "too small": (encode(picture(0, 96)), r"96×96 .* 112×112"),
    "too large": (encode(picture(0, 120)), r"120×120 .* 112×112"),
    "bomb": (bomb(), r"30000×30000"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_image_is_named(kind, what, tmp_path):
    payload, reason = BAD[what]
    images = [encode(picture(seed)) for seed in range(24)]
    images[17] = payload
    dataset = open_dataset(write_set(tmp_path / "set", images))
    plan = Plan(dataset.num_images, 4, 0, 1, 0, EVERYTHING)
    with pytest.raises(DataError, match=rf"train.rec: record 27 @ offset \d+: .*{reason}") as caught:
        load(kind, dataset, plan, 0, plan.steps_per_epoch)
    assert str(caught.value).startswith(dataset.where(17))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_while_reading_ahead_reaches_the_consumer(kind, drawn):
    class Failing:
        labels_of = drawn.labels_of
        where = drawn.where

        def encoded(self, sample: int) -> np.ndarray:
            if sample == 50:
                raise DataError(f"{drawn.where(sample)}: cut")
            return drawn.encoded(sample)

    with pytest.raises(DataError, match=r"record 60 @ offset \d+: cut"):
        load(kind, Failing(), Plan(100, 10, 0, 1, 0, NOTHING), 0, 10)


# The choice


def test_auto_is_dali_where_it_is_installed(drawn):
    loader = make_loader("auto", drawn, Plan(100, 10, 0, 1, 0, NOTHING), CPU, 2)
    assert loader.name == ("dali" if HAS_DALI else "fallback")


def test_without_dali_auto_is_the_fallback_and_dali_is_a_settings_error(drawn, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "recognition.data.dali", raising=False)
    monkeypatch.delattr(sys.modules.get("nvidia", sys), "dali", raising=False)
    plan = Plan(100, 10, 0, 1, 0, NOTHING)
    assert isinstance(make_loader("auto", drawn, plan, CPU, 2), FallbackLoader)
    with pytest.raises(SettingsError, match="DALI cannot be imported"):
        make_loader("dali", drawn, plan, CPU, 2)


def test_an_unknown_loader_lists_the_known(drawn):
    with pytest.raises(SettingsError, match="'mxnet'; expected one of auto, dali, fallback, stream"):
        make_loader("mxnet", drawn, Plan(100, 10, 0, 1, 0, NOTHING), CPU, 2)


def test_normalise_maps_grey_levels_to_minus_one_to_one():
    levels = torch.arange(256, dtype=torch.uint8)
    image = levels.repeat(2 * 112 * 112 * 3 // 256).reshape(2, 112, 112, 3)
    network_input = normalise(image)
    assert network_input.shape == (2, 3, 112, 112)
    assert network_input.dtype == torch.float32
    assert network_input.is_contiguous(memory_format=torch.channels_last)
    expected = (image.double() - 127.5) / 127.5
    assert torch.equal(network_input, expected.permute(0, 3, 1, 2).float())
    assert image.flatten()[:256].equal(levels)


def test_where_to_decode_is_a_question_for_gpus_alone(drawn):
    plan = Plan(100, 10, 0, 1, 0, NOTHING)
    for kind in ("dali", "fallback") if HAS_DALI else ("fallback",):
        for decode in ("auto", "cpu"):
            assert len(list(make_loader(kind, drawn, plan, CPU, 2, decode=decode).batches(0, 2))) == 2
        for decode in ("mixed", "shared"):
            with pytest.raises(SettingsError, match=f"data.decode={decode} needs "):
                make_loader(kind, drawn, plan, CPU, 2, decode=decode)


@pytest.mark.gpu
@needs_dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("decode", ["cpu", "mixed", "shared", "auto"])
def test_gpu_decoding_is_within_two_levels_of_the_cpu(faces, decode):
    device = torch.device("cuda", torch.cuda.current_device())
    plan = Plan(faces.num_images, 40, 0, 1, 11, Augmentation(crop=0.5))
    loader = make_loader("dali", faces, plan, device, 2, decode=decode)
    on_gpu = list(loader.batches(0, 10))
    assert loader.decode in ("cpu", "mixed", "shared")
    for one, other in zip(on_gpu, load("fallback", faces, plan, 0, 10), strict=True):
        assert one.image.device == device
        assert torch.equal(one.label.cpu(), other.label)
        assert (one.image.cpu().int() - other.image.int()).abs().max() <= (0 if decode == "cpu" else 2)
