"""The usual loader gives the very images that it is compared with, and the benchmark reports all that it measures."""

import importlib.util
import json

import cv2
import numpy as np
import pytest

from benchmarks.baseline.loader import RecordImages
from benchmarks.loader import main, write_pictures
from recognition.data.dataset import open_dataset
from recognition.data.fallback import decode


@pytest.mark.parametrize("decoder", ["opencv", "pillow"])
def test_the_usual_loader_reads_the_same_images(decoder, tmp_path):
    if decoder == "pillow":
        pytest.importorskip("PIL")
    write_pictures(tmp_path, 12)
    usual, dataset = RecordImages(tmp_path / "train.rec", decoder), open_dataset(tmp_path)
    assert len(usual) == 12
    flips = set()
    for number in [*range(12), *range(12)]:
        image, label = usual[number]
        pixels = np.rint(image.numpy().transpose(1, 2, 0) * 127.5 + 127.5)
        expected = decode(dataset, number)
        flipped = not np.array_equal(pixels, expected)
        assert np.array_equal(pixels, cv2.flip(expected, 1) if flipped else expected)
        assert label == dataset.labels[number]
        flips.add(flipped)
    assert flips == {False, True}


def test_the_benchmark_measures_every_loader(tmp_path, capsys):
    out = tmp_path / "rates.json"
    has_dali = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    names = ["plain DALI", "index", "stream", "fallback"] if has_dali else ["fallback"]
    main(["--images", "64", "--batch", "8", "--steps", "1", "--rounds", "1", "--threads", "1", "--json", str(out),
          "--only", *names])
    result = json.loads(out.read_text())
    assert list(result["loaders"]) == names
    assert result["loaders"][names[0]]["ratio"] == 1
    assert all(row["images_per_second"] > 0 < row["cpu_microseconds_per_image"] for row in result["loaders"].values())
    assert all(name in capsys.readouterr().out for name in names[:1])
