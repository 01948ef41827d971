"""eval/quality_plots.py: the figures against the numbers that they draw."""

import json
import re
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest

from eval import quality, report
from eval.quality_images import LEAST_OF_SUBJECT, MOST_OF_SUBJECT, load_images, load_subjects
from eval.quality_plots import discard, figure_4, figure_8, figure_9, table_1, write_figures
from eval.report_read import read_all
from eval.snapshots import Snapshot
from recognition.data.shard_writer import ShardWriter
from recognition.errors import DataError

SIDES = (16, 8)


def embed(images):
    """Sharp pictures have long embeddings here, so that versions differ."""
    small = np.stack([cv2.resize(image, (6, 6), interpolation=cv2.INTER_AREA) for image in images])
    rows = (small.reshape(len(images), -1).astype(np.float32) - 128) / 16
    return rows * images.astype(np.float32).std(axis=(1, 2, 3))[:, None] / 40


@pytest.fixture(scope="module")
def result(small_set, tmp_path_factory):
    """What eval.quality writes of a model with six saves, their norms ever longer."""
    patch = pytest.MonkeyPatch()
    embeds = [lambda images, k=k: embed(images) * (1 + k) for k in range(6)]
    saves = [Snapshot("run", one, one, "online", 4 * k + 4, 4.0 * k + 4, tau=0.5) for k, one in enumerate(embeds)]
    patch.setattr(quality, "open_snapshots", lambda *_: iter(saves))
    images = load_images(small_set, 60)
    sets = [small_set / "pairs.bin"]
    made = quality.evaluate("runs/net", images, SIDES, subjects=load_subjects(small_set), sets=sets, fmr=0.1)
    patch.undo()
    return made


def titles(panels):
    return [next(e.text for e in ET.fromstring(panel).iter("text") if e.get("class") == "title") for panel in panels]


def lines(panel, kind="line"):
    paths = [e for e in ET.fromstring(panel).iter("path") if kind in (e.get("class") or "").split()]
    return [[tuple(map(float, point)) for point in re.findall(r"(-?[\d.]+) (-?[\d.]+)", e.get("d"))] for e in paths]


def test_figure_4_has_the_papers_stages(result):
    panels = figure_4(result)
    assert titles(panels) == [
        "Norm, early: epoch 4", "Norm, middle: epoch 12", "Norm, final: epochs 20–24",
        "z, early: epoch 4", "z, middle: epoch 12", "z, final: epochs 20–24",
    ]  # fmt: skip
    for panel in panels:
        assert len(lines(panel)) == len(SIDES) + 1
        names = [e.text for e in ET.fromstring(panel).iter("text") if e.get("class") == "key"]
        assert names == ["as they are", "16×16", "8×8"]


def test_figure_4_draws_the_mean_share_of_its_saves(result):
    """The highest bin of the final stage, read back from the axis, is that of the mean of the last two histograms."""
    histograms = [np.array(one["versions"][0]["norm"]["histogram"]) for one in result["snapshots"][-2:]]
    share = np.mean([one / one.sum() for one in histograms], axis=0)
    panel = figure_4(result)[2]
    labels = [e for e in ET.fromstring(panel).iter("text") if e.get("class") == "tick y"]
    ticks = [(float(e.get("y")), float(e.text)) for e in labels]
    (low, at_low), (high, at_high) = ticks[0], ticks[-1]
    top = min(y for _, y in lines(panel)[0])
    assert at_low + (top - low) / (high - low) * (at_high - at_low) == pytest.approx(share.max(), rel=0.01)


def test_a_model_file_has_one_stage(result):
    one = {**result, "snapshots": [{**result["snapshots"][-1], "step": None, "epoch": None}]}
    assert titles(figure_4(one)) == ["Norm, of the model", "z, of the model"]


def test_figure_8_has_a_dot_for_each_image(result):
    panels = figure_8(result)
    assert len(panels) == 2
    for panel, subject in zip(panels, result["subjects"], strict=True):
        assert [len(dots) for dots in lines(panel, "dots")] == [subject["images"]] * 3


def test_figure_9_and_discard(result):
    two = [(0, "one", result), (1, "other", result)]
    assert titles(figure_9(two)) == ["Pair scores, pairs", "Pair scores, pairs, 16×16", "Pair scores, pairs, 8×8"]
    assert [len(lines(panel)) for panel in figure_9(two)] == [4, 4, 4]
    panels = discard(two)
    assert len(panels) == 3
    assert len(lines(panels[0])[0]) == len(result["pairs"][0]["discard"]["fnmr"])
    assert discard([(0, "a", {**result, "pairs": []})]) == []


def test_table_1(result):
    accuracy = {row["degrade"]: f"{100 * row['accuracy']:.2f}" for row in result["verification"]}
    assert table_1([result]).splitlines() == [
        "| model | resolution | pairs |", "| --- | --- | ---: |", f"| net | 8×8 | {accuracy[8]} |",
        f"| net | 16×16 | {accuracy[16]} |", f"| net | as they are | {accuracy[None]} |",
    ]  # fmt: skip


def test_examples_are_the_extremes(result, small_set):
    found = result["examples"]
    assert found["ignored"]
    assert all(one["weight"] == 0 and one["z"] < -0.5 for one in found["ignored"])
    assert all(one["weight"] > 0 and one["z"] >= -0.5 for one in found["emphasised"])
    for kind, key, sign in (("ignored", "z", 1), ("emphasised", "weight", -1), ("high_norm", "norm", -1)):
        values = [sign * one[key] for one in found[kind]]
        assert values == sorted(values)
        assert len({one["image"] for one in found[kind]}) == len(values) <= 8
    last = result["snapshots"][-1]["versions"]
    assert found["high_norm"][0]["norm"] == pytest.approx(max(result["histogram_edges"]["norm"]))
    assert found["emphasised"][0]["weight"] > max(row["weight"]["quantiles"]["0.9"] for row in last)


def test_files(result, small_set, tmp_path):
    value = {"set": str(small_set), "total": 96, "images": 60, "models": [result, {**result, "model": "a/b c<d"}]}
    paths = write_figures(tmp_path / "new", value)
    assert sorted(path.name for path in paths) == [
        "discard.svg", "figure4_b_c_d.svg", "figure4_net.svg", "figure5_b_c_d.svg", "figure5_net.svg",
        "figure8_b_c_d.svg", "figure8_net.svg", "figure9.svg", "table1.md",
    ]  # fmt: skip
    for path in paths:
        if path.suffix == ".svg":
            tree = ET.fromstring(path.read_text())
            for element in tree.iter("{http://www.w3.org/2000/svg}image"):
                assert element.get("href").startswith("data:image/jpeg;base64,")
    pictures = (tmp_path / "new" / "figure5_net.svg").read_text().count("<image")
    assert pictures == sum(map(len, result["examples"].values()))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_figures(tmp_path / "file", value)


def test_the_report_shows_it(result, small_set, tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"set": str(small_set), "total": 96, "images": 60, "models": [result]}))
    page = report.build(read_all([str(path)]))
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page)]
    rows = "|".join(cells)
    for version in result["snapshots"][-1]["versions"]:
        spreads = [f"{version[key]['mean']:z.3f} ± {version[key]['deviation']:.3f}".replace("-", "−")
                   for key in ("norm", "z")]
        name = f"{version['degrade']}×{version['degrade']}" if version["degrade"] else "as they are"
        assert "|".join(["net", "24", name, *spreads, f"{version['unrecognizable']:.4f}"]) in rows
    for one in result["pairs"]:
        name = f"pairs, {one['degrade']}×{one['degrade']}" if one["degrade"] else "pairs"
        same = f"{one['same']['mean']:z.3f} ± {one['same']['deviation']:.3f}".replace("-", "−")
        assert "|".join([name, "net", "20", same]) in rows
        assert f"{one['discard']['fnmr'][0]:.4f}" in cells
        assert f"{one['discard']['area']:.4f}" in cells
    assert page.count("<img") == sum(map(len, result["examples"].values()))
    for title in ("Norm, final: epochs 20–24", "Error versus discard, pairs", "Pair scores, pairs, 8×8"):
        assert f">{title}</text>" in page


@pytest.mark.parametrize("lacking", ["snapshots", "histogram_edges", "model"])
def test_the_report_refuses_what_lacks_parts(result, small_set, tmp_path, lacking):
    hollow = {key: value for key, value in result.items() if key != lacking}
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"set": str(small_set), "total": 96, "images": 60, "models": [hollow]}))
    with pytest.raises(DataError, match=rf"q\.json: .*{lacking}"):
        report.build(read_all([str(path)]))


def test_subjects_are_two_with_enough_images(tmp_path):
    picture = cv2.imencode(".jpg", np.full((112, 112, 3), 90, np.uint8))[1].tobytes()
    counts = {0: 3, 1: LEAST_OF_SUBJECT, 2: 1, 3: MOST_OF_SUBJECT + 5, 4: 9}
    with ShardWriter(tmp_path / "train.rec") as shard:
        for label, count in counts.items():
            for number in range(count):
                shard.add(label, picture, f"{label}/{number}")
    found = load_subjects(tmp_path)
    assert np.bincount(found.labels).tolist() == [0, LEAST_OF_SUBJECT, 0, MOST_OF_SUBJECT]
    assert load_subjects(tmp_path / "any.bin") is None
