"""Images that cannot be used: what is bad, how it is named, and what takes its place, alike in both loaders."""

import importlib.util
import itertools
import logging
import re
import resource
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from recognition.data.augment import augment
from recognition.data.augmentation import IMAGE_SIDE, Augmentation
from recognition.data.bad_samples import decode_face, fault, looks_whole
from recognition.data.dataset import open_dataset
from recognition.data.loader import make_loader
from recognition.data.plan import Plan
from recognition.data.recordio import RecordWriter, pack_record, write_index
from recognition.errors import DataError

CPU = torch.device("cpu")
HAS_DALI = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not HAS_DALI, reason="NVIDIA DALI is not installed")
KINDS = [pytest.param("dali", marks=needs_dali), "fallback"]
AUGMENTATION = Augmentation(crop=0.5)


def picture(seed: int, side: int = IMAGE_SIDE) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def encode(image: np.ndarray, extension: str = ".jpg", *options: int) -> bytes:
    return cv2.imencode(extension, image, options)[1].tobytes()


def without_segment(data: bytes, marker: int) -> bytes:
    """A JPEG without its first segment of a kind."""
    at = data.index(bytes([0xFF, marker]))
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def bomb(extension: str) -> bytes:
    """A picture whose header says 30000 × 30000 pixels."""
    data = bytearray(encode(picture(0), extension))
    if extension == ".jpg":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = (30000).to_bytes(2, "big") * 2
    else:
        data[16:24] = (30000).to_bytes(4, "big") * 2
    return bytes(data)


JPEG, PNG = encode(picture(0)), encode(picture(0), ".png")
BAD = {
    "text": (b"this is no image, however long one looks at it", "not a JPEG, PNG, BMP or WebP image"),
    "nothing but zeros": (b"\0", "not a JPEG"),
    "jpeg cut in its scan": (JPEG[:-700], "cut or damaged"),
    "jpeg cut before its end marker": (JPEG[:-2], "cut or damaged"),
    "jpeg cut in its header": (JPEG[:100], "cut inside its header"),
    "jpeg without quantisation": (without_segment(without_segment(JPEG, 0xDB), 0xDB), r"\S"),
    "png cut": (PNG[:3000], "cut or damaged"),
    "png with a wrong checksum": (PNG[:200] + bytes([PNG[200] ^ 1]) + PNG[201:], r"\S"),
    "another size": (encode(picture(0, 96)), "an image of 96×96 pixels; expected 112×112"),
    "jpeg bomb": (bomb(".jpg"), "30000×30000"),
    "png bomb": (bomb(".png"), "30000×30000"),
}
GOOD = {
    "progressive": encode(picture(1), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "grey": cv2.imencode(".jpg", picture(1)[..., 0])[1].tobytes(),
    "png": PNG,
    "webp": encode(picture(1), ".webp"),
    "bmp": encode(picture(1), ".bmp"),
    "restart markers": encode(picture(1), ".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
    "something behind the end": JPEG + bytes(5),
}


def write_set(folder: Path, images: list[bytes]):
    folder.mkdir(parents=True)
    with RecordWriter(folder / "train.rec") as writer:
        offsets = [writer.write(pack_record(float(k), k, image)) for k, image in enumerate(images)]
    write_index(folder / "train.idx", np.arange(len(images)), np.array(offsets))
    return open_dataset(folder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """60 images, every fourth of them bad, in all ways."""
    reasons = itertools.cycle(BAD.values())
    images = [next(reasons)[0] if k % 4 == 1 else encode(picture(k)) for k in range(60)]
    return write_set(tmp_path_factory.mktemp("mixed") / "set", images)


def expected_samples(plan: Plan, step: int) -> list[int]:
    """By hand: a bad sample (1, 5, 9, …) gives way to what its row holds one batch later in the epoch's order."""
    samples = plan.batch(step).sample.tolist()
    for row, sample in enumerate(samples):
        attempt = 0
        while sample % 4 == 1:
            attempt += 1
            sample = int(plan.substitute(step, row, attempt).sample[0])
        samples[row] = sample
    return samples


@pytest.mark.parametrize("what", BAD)
def test_bad_images_are_refused_with_a_reason(what):
    data, reason = BAD[what]
    array = np.frombuffer(data, np.uint8)
    if what not in ("jpeg without quantisation", "png with a wrong checksum"):  # whole to look at: DALI finds them
        assert not looks_whole(array)
        assert re.search(reason, fault(array))
    assert isinstance(decode_face(array), str)


def test_every_cut_of_a_picture_is_found_by_a_look():
    for data in (JPEG, PNG, GOOD["progressive"], GOOD["grey"]):
        array = np.frombuffer(data, np.uint8)
        assert looks_whole(array)
        assert not any(looks_whole(array[:length]) for length in range(len(data)))


@pytest.mark.parametrize("what", GOOD)
def test_good_images_of_all_kinds_pass(what):
    assert fault(np.frombuffer(GOOD[what], np.uint8)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_bad_samples_are_replaced_as_the_plan_says(kind, mixed):
    plan = Plan(60, 8, 0, 1, 3, AUGMENTATION)
    loader = make_loader(kind, mixed, plan, CPU, 2, bad_share=0.5)
    batches = list(loader.batches(0, 14))  # two epochs of seven
    assert len(batches) == 14
    for step, batch in enumerate(batches):
        assert batch.image.shape == (8, IMAGE_SIDE, IMAGE_SIDE, 3)
        assert batch.sample.tolist() == batch.label.tolist() == expected_samples(plan, step)
    met = {s for step in range(14) for s in plan.batch(step).sample.tolist() if s % 4 == 1}
    assert met <= set(loader.bad.found) <= set(range(1, 60, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_what_replaces_a_sample_is_augmented_as_itself(kind, mixed):
    plan = Plan(60, 8, 0, 1, 3, AUGMENTATION)
    (batch,) = make_loader(kind, mixed, plan, CPU, 2, bad_share=0.5).batches(2, 3)
    row = int(np.flatnonzero(plan.batch(2).sample != batch.sample)[0])
    attempt = next(a for a in range(1, 9) if plan.substitute(2, row, a).sample[0] % 4 != 1)
    other = plan.substitute(2, row, attempt)
    image = augment(decode_face(mixed.encoded(int(other.sample[0]))), other.draws, 0)
    assert np.array_equal(batch.image[row].numpy(), image)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_and_any_number_of_ranks_see_the_same(kind, mixed):
    def load(start, rank=0, world=1):
        plan = Plan(60, 8, rank, world, 3, AUGMENTATION)
        return list(make_loader(kind, mixed, plan, CPU, 2, bad_share=0.5).batches(start, 10))

    whole, later = load(0), load(6)
    ranks = [load(0, rank, 4) for rank in range(4)]
    assert [len(batches) for batches in ranks] == [10] * 4
    for one, other in zip(whole[6:], later, strict=True):
        assert torch.equal(one.image, other.image)
    for one, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert one.sample.tolist() == [sample for part in parts for sample in part.sample.tolist()]
        assert torch.equal(one.image, torch.cat([part.image for part in parts]))


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_named_and_too_many_end_the_run(kind, mixed, caplog):
    plan = Plan(60, 8, 0, 1, 3, AUGMENTATION)
    loader = make_loader(kind, mixed, plan, CPU, 1, bad_share=4.5 / 60)
    with caplog.at_level(logging.WARNING, "recognition.data"):
        with pytest.raises(DataError, match=r"bad sample 5, where data.bad_share=0.075 .* allows 4") as caught:
            list(loader.batches(0, 14))
    assert caught.value.status == 3
    assert str(caught.value).startswith(tuple(mixed.where(sample) + ": " for sample in range(1, 60, 4)))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    for line, sample in zip(lines, loader.bad.found, strict=False):
        assert line.startswith(mixed.where(sample) + ": ")
        assert "replaced (bad sample" in line


@pytest.mark.parametrize("kind", KINDS)
def test_where_every_sample_is_bad_the_run_ends(kind, tmp_path):
    dataset = write_set(tmp_path / "set", [b"no image"] * 6)
    with pytest.raises(DataError, match="to replace it"):
        list(make_loader(kind, dataset, Plan(6, 2, 0, 1, 0, AUGMENTATION), CPU, 1, bad_share=1.0).batches(0, 3))


@needs_dali
def test_damage_that_only_a_decoder_sees_does_not_end_dali(tmp_path):
    """What passes the look and kills a pipeline of DALI's is found by decoding, and a new pipeline goes on."""
    images = [encode(picture(k)) for k in range(40)]
    for k in (3, 17, 30):
        images[k] = without_segment(without_segment(images[k], 0xDB), 0xDB)
        assert looks_whole(np.frombuffer(images[k], np.uint8))
    dataset = write_set(tmp_path / "set", images)
    plan = Plan(40, 8, 0, 1, 0, AUGMENTATION)
    loaders = {kind: make_loader(kind, dataset, plan, CPU, 2, bad_share=0.1) for kind in ("dali", "fallback")}
    dali, fallback = (list(loader.batches(0, 10)) for loader in loaders.values())
    assert all(torch.equal(one.image, other.image) for one, other in zip(dali, fallback, strict=True))
    assert set(loaders["dali"].bad.found) == set(loaders["fallback"].bad.found) == {3, 17, 30}


@needs_dali
def test_random_damage_never_ends_a_loader(tmp_path):
    rng = np.random.default_rng(7)
    images = []
    for k in range(120):
        data = bytearray(encode(picture(k), (".jpg", ".png")[k % 2]))
        for _ in range(int(rng.integers(0, 4))):
            data[rng.integers(min(len(data), 700))] = rng.integers(256)
        images.append(bytes(data[: rng.integers(1, len(data))] if k % 5 == 0 else data))
    dataset = write_set(tmp_path / "set", images)
    plan = Plan(120, 10, 0, 1, 0, AUGMENTATION)
    for kind in ("dali", "fallback"):
        loader = make_loader(kind, dataset, plan, CPU, 2, bad_share=1.0)
        assert [batch.image.shape[0] for batch in loader.batches(0, 12)] == [10] * 12
        assert loader.bad.count > 20


@pytest.mark.parametrize("kind", KINDS)
def test_bombs_cost_no_memory(kind, tmp_path):
    images = [bomb((".jpg", ".png")[k % 2]) if k % 3 == 0 else encode(picture(k)) for k in range(60)]
    dataset = write_set(tmp_path / "set", images)
    loader = make_loader(kind, dataset, Plan(60, 10, 0, 1, 0, AUGMENTATION), CPU, 2, bad_share=0.5)
    list(loader.batches(0, 1))  # what a loader takes anyhow
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    list(loader.batches(0, 12))
    assert loader.bad.count >= 18
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
