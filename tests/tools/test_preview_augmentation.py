"""The contact sheet: what stands in it is what a loader gives, and the file is the same every time."""

import cv2
import numpy as np
import pytest
import torch

from recognition.data.augmentation import Augmentation
from recognition.data.dataset import open_dataset
from recognition.data.loader import make_loader
from recognition.data.plan import Plan
from recognition.errors import SettingsError
from tools import preview_augmentation
from tools.preview_augmentation import applied

EVERYTHING = ("flip", "resized_crop", "colour", "greyscale", "blur", "crop", "downsample", "jpeg", "cutout")
ON = [f"data.augmentation.{name}=0.5" for name in EVERYTHING]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text('"""A config."""\nfrom recognition.config import Config\n\ndef config():\n'
                    '    """It."""\n    return Config(name="plain", seed=7)\n')  # fmt: skip
    return path


def run(*arguments: object) -> int:
    return preview_augmentation.main([str(argument) for argument in arguments])


def test_the_sheet_shows_what_the_loader_gives(config, small_set, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert run(config, "--data", small_set, "--out", out, "--samples", 5, "--epochs", 3, "--set", *ON) == 0
    assert f"5 samples of {small_set} in 3 epochs" in capsys.readouterr().out
    sheet = cv2.imread(str(out))[..., ::-1]
    sheet = sheet.reshape(5, -1, *sheet.shape[1:])[:, 6 : 6 + 224]
    dataset = open_dataset(small_set)
    samples = np.linspace(0, 95, 5).astype(int)
    augmentation = Augmentation(**dict.fromkeys(EVERYTHING, 0.5))
    for column, settings in enumerate([Augmentation(flip=0), augmentation, augmentation, augmentation]):
        plan = Plan(96, 96, 0, 1, 7, settings)
        epoch = max(column - 1, 0)
        (batch,) = make_loader("fallback", dataset, plan, torch.device("cpu"), 1).batches(epoch, epoch + 1)
        for row, sample in enumerate(samples.tolist()):
            shown = sheet[row, ::2, 6 + 230 * column : 6 + 230 * column + 224 : 2]
            (at,) = np.flatnonzero(batch.sample == sample)
            assert np.array_equal(shown, batch.image[at].numpy())


def test_one_config_gives_one_file(config, small_set, tmp_path):
    first, second, other = (tmp_path / name for name in ("1.png", "2.png", "3.png"))
    common = ("--samples", 3, "--epochs", 2, "--set", f"data.root={small_set}", *ON)
    assert run(config, "--out", first, *common) == run(config, "--out", second, *common) == 0
    assert first.read_bytes() == second.read_bytes()
    assert cv2.imread(str(first)).std() > 20
    assert run(config, "--out", other, *common, "seed=8") == 0
    assert other.read_bytes() != first.read_bytes()
    with pytest.raises(SettingsError, match=r"1\.png: exists; --replace"):
        run(config, "--out", first, *common)
    assert run(config, "--out", first, *common, "--replace") == 0
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["1.png", "2.png", "3.png"]


def test_data_that_the_config_makes_is_made(config, small_set, tmp_path):
    made = tmp_path / "made"
    config.write_text(config.read_text() + "\n\ndef prepare(config):\n    import shutil\n"
                      f"    shutil.copytree({str(small_set)!r}, config.data.root)\n")  # fmt: skip
    assert run(config, "--out", tmp_path / "sheet.png", "--samples", 2, "--set", f"data.root={made}") == 0
    assert (made / "train.rec").is_file()


def test_the_legend_names_what_was_drawn_in_order(small_set):
    draws = Plan(96, 96, 0, 1, 0, Augmentation(**dict.fromkeys(EVERYTHING, 1.0))).batch(0).draws
    words = " / ".join(applied(draws, 0))
    order = ["flip", "resized crop", "greyscale", "blur", "crop", "down-sampling", "JPEG", "cut-out"]
    assert [words.index(f"{word}") for word in order if word != "crop"] == sorted(
        words.index(f"{word}") for word in order if word != "crop")  # fmt: skip
    assert words.index("blur") < words.index("/ crop") < words.index("down-sampling")
    assert applied(Plan(96, 96, 0, 1, 0, Augmentation(flip=0)).batch(0).draws, 0) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "sheet.jpg"), r"sheet\.jpg: expected the name of a \.png file"),
        (("--out", "sheet.png", "--samples", 0), "--samples 0; expected 1 to 64"),
        (("--out", "sheet.png", "--epochs", 1000), "--epochs 1000; expected 1 to 64"),
        (("--out", "sheet.png", "--set", "data.augmentation.jpeg_quality=10,200"), r"augmentation\.jpeg_quality = "),
        (("--out", "sheet.png", "--set", "data.augmentation.color=1"), r"nearest: data\.augmentation\.colour"),
    ],
)
def test_mistakes_are_named(arguments, message, config, small_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=message):
        run(config, "--data", small_set, *arguments)
    assert not list(tmp_path.glob("*.png"))
