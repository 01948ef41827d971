"""DALI's own reader as a source: what comes out, how it is spread over ranks and epochs, and what it refuses."""

import importlib.util

import cv2
import numpy as np
import pytest
import torch

from recognition.data.augmentation import IMAGE_SIDE, Augmentation
from recognition.data.dataset import open_dataset
from recognition.data.loader import make_loader
from recognition.data.plan import Plan
from recognition.data.recordio import FLOAT32_WHOLE
from recognition.data.shard_writer import ShardWriter
from recognition.errors import DataError, SettingsError

HAS_DALI = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
pytestmark = pytest.mark.skipif(not HAS_DALI, reason="NVIDIA DALI is not installed")
CPU = torch.device("cpu")
COUNT = 103


def picture(label: int) -> np.ndarray:
    """A picture that says its label: two grey levels."""
    image = np.empty((IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
    image[:56], image[56:] = label % 16 * 16, label // 16 * 16
    return image


def write_set(folder, bad=(), label_base=0, first_label=0):
    """Label k for image k, in three shards with header and identity records."""
    folder.mkdir()
    label = 0
    for number, count in enumerate((37, 5, 61)):
        with ShardWriter(folder / f"train_{number}.rec", label_base) as shard:
            for _ in range(count):
                encoded = cv2.imencode(".png", picture(label))[1].tobytes()
                shard.add(first_label + label, encoded[:-20] if label in bad else encoded, str(label))
                label += 1
    if label_base:
        (folder / "property").write_text(f"{first_label + COUNT},112,112\nlabel_base={label_base}\n")
    return open_dataset(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("stream") / "set")


def load(dataset, start, stop, rank=0, world=1, batch=12, **options):
    plan = Plan(COUNT, batch, rank, world, 3, Augmentation(flip=0.0))
    return list(make_loader("stream", dataset, plan, CPU, 2, **options).batches(start, stop))


def labels(batches) -> list[int]:
    return [label for batch in batches for label in batch.label.tolist()]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_an_epoch_meets_every_sample_at_most_once_whatever_the_ranks(dataset, world):
    steps = COUNT // 12
    ranks = [load(dataset, 0, 3 * steps, rank, world) for rank in range(world)]
    assert [len(batches) for batches in ranks] == [3 * steps] * world
    orders = []
    for epoch in range(3):
        seen = [label for batches in ranks for label in labels(batches[epoch * steps : (epoch + 1) * steps])]
        assert len(seen) == len(set(seen)) == steps * 12
        orders.append(tuple(seen))
    assert len(set(orders)) == 3
    for batch in ranks[0]:
        assert batch.image.shape == (12 // world, IMAGE_SIDE, IMAGE_SIDE, 3)
        for image, label in zip(batch.image.numpy(), batch.label.tolist(), strict=True):
            assert np.array_equal(image, picture(label))


def test_a_resumed_run_sees_the_same(dataset):
    whole = load(dataset, 0, 20, 1, 2)
    for start in (3, 8, 13):
        for one, other in zip(whole[start:], load(dataset, start, 20, 1, 2), strict=True):
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.label, other.label)


def test_bad_samples_are_named_and_replaced_by_the_next_of_the_batch(tmp_path):
    bad = (5, 40, 41, 102)
    dataset = write_set(tmp_path / "set", bad)
    plan = Plan(COUNT, 12, 0, 1, 3, Augmentation())
    loader = make_loader("stream", dataset, plan, CPU, 2, bad_share=0.05)
    found = labels(loader.batches(0, 16))
    assert len(found) == 16 * 12
    assert not set(found) & set(bad)
    assert set(loader.bad.found) <= set(bad)
    assert loader.bad.count >= 3
    with pytest.raises(DataError, match=r"train_\d.rec: record \d+ @ offset \d+: .* allows 0"):
        load(dataset, 0, 16)


def test_what_only_dali_finds_is_replaced_too(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    with ShardWriter(folder / "train.rec") as shard:
        for label in range(40):
            data = cv2.imencode(".png", picture(label))[1].tobytes()
            damaged = data[:60] + bytes([data[60] ^ 0x55]) + data[61:]  # a checksum is wrong, all looks whole
            shard.add(label, damaged if label in (7, 30) else data, str(label))
    loader = make_loader("stream", open_dataset(folder), Plan(40, 8, 0, 1, 0, Augmentation()), CPU, 1, bad_share=0.1)
    found = labels(loader.batches(0, 10))
    assert len(found) == 80
    assert not {7, 30} & set(found)
    assert set(loader.bad.found) == {7, 30}


def test_labels_in_two_floats(tmp_path):
    first = FLOAT32_WHOLE - 50
    dataset = write_set(tmp_path / "set", label_base=FLOAT32_WHOLE, first_label=first)
    (batch,) = load(dataset, 0, 1, batch=96)
    assert batch.label.max() > FLOAT32_WHOLE
    for image, label in zip(batch.image.numpy(), batch.label.tolist(), strict=True):
        assert np.array_equal(image, picture(label - first))


def test_one_set_alone(dataset, tmp_path):
    other = write_set(tmp_path / "other")
    joined = open_dataset(f"{dataset.root},{other.root}")
    with pytest.raises(SettingsError, match="reads one set"):
        make_loader("stream", joined, Plan(2 * COUNT, 12, 0, 1, 3, Augmentation()), CPU, 2)
