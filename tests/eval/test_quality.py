"""eval/quality.py against a run really trained, whose files the test reads by itself and computes with in float64."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from eval import quality
from eval.embed import normalise
from eval.ijb_cache import model_identity
from eval.pixels import Pixels
from eval.quality import choose, evaluate, load_images
from eval.quality_figures import cosines_to_centers, cosines_to_means, edges_over, quality_weight, summary, unit
from eval.quality_images import load_subjects
from eval.snapshots import open_snapshots
from eval.verification import reduce_to
from recognition import checkpoint, memory
from recognition.assembly import Run, assemble
from recognition.backbones import BackboneSettings, build
from recognition.config import CheckpointSettings, Config, DataSettings, EvaluationSettings, LogSettings
from recognition.data.plan import Augmentation
from recognition.data.shard_writer import ShardWriter
from recognition.distributed import Ranks
from recognition.errors import CheckpointError, DataError, NumericsError
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.memory import VPL, Injection, QAFace
from recognition.optimizer import OptimizerSettings
from recognition.schedule import ScheduleSettings
from recognition.state import make_saver, save
from recognition.train import train

ROOT = Path(__file__).resolve().parents[2]
BACKBONE = BackboneSettings("tiny", embedding_size=32)
SIDES = (16, 8)


def _config(output, root, inject, epochs):
    return Config(
        name="run", output=str(output), seed=3, batch_size=16, epochs=epochs, backbone=BACKBONE,
        data=DataSettings(str(root), reader="fallback", augmentation=Augmentation(downsample=0.5)),
        head=HeadSettings(ArcFace(s=16.0, m=0.3), inject=inject),
        optimizer=OptimizerSettings(lr=0.05), schedule=ScheduleSettings("cosine", warmup_epochs=0.5),
        evaluation=EvaluationSettings(every_epochs=0), checkpoint=CheckpointSettings(every_epochs=1, keep=9),
        log=LogSettings(every_steps=4, tensorboard=False),
    )


def _run(factory, root, inject, epochs=1.0):
    config = _config(factory.mktemp("runs"), root, inject, epochs)
    train(config, Ranks())
    return config.folder


@pytest.fixture(scope="module")
def qaface(tmp_path_factory, small_set):
    """Three epochs of six steps, each saved.

    The momentum backbone and the statistics follow quickly, and τ is one at which some of the images are refused.
    """
    return _run(tmp_path_factory, small_set, QAFace(start_epoch=1.0, tau=0.75, momentum=0.8, stat_momentum=0.5), 3.0)


@pytest.fixture(scope="module")
def images(small_set):
    return load_images(small_set, 60)


@pytest.fixture(scope="module")
def result(qaface, images):
    return evaluate(qaface, images, SIDES, threads=1, device="cpu")


def embed_float64(folder, part, images):
    """Embeddings by the backbone `part` of a save, in double precision."""
    module = build(BACKBONE)
    tensors = load_file(folder / "replicated.safetensors")
    weights = {k.removeprefix(part): torch.from_numpy(v) for k, v in tensors.items() if k.startswith(part)}
    module.load_state_dict(weights)
    module.double().eval()
    pixels = torch.from_numpy((images.astype(np.float64) / 127.5 - 1).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return module(pixels).double().numpy()


def unit64(rows):
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def check(got, values, edges):
    """A summary against the values themselves; a bin may lose or win what lies within rounding of its edge."""
    assert list(got) == ["count", "mean", "deviation", "quantiles", "histogram"]
    assert got["count"] == len(values) == sum(got["histogram"])
    assert got["mean"] == pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-5)
    assert got["deviation"] == pytest.approx(np.sqrt(np.mean((values - np.mean(values)) ** 2)), rel=1e-3, abs=1e-5)
    ordered = np.sort(values)
    for share, quantile in got["quantiles"].items():
        place = float(share) * (len(values) - 1)
        low, high = ordered[int(place)], ordered[min(int(place) + 1, len(values) - 1)]
        assert quantile == pytest.approx(low + (place - int(place)) * (high - low), rel=1e-3, abs=1e-4)
    for bin_number, count in enumerate(got["histogram"]):
        slack = 1e-5 * max(1, abs(edges[-1]))
        surely = ((values > edges[bin_number] + slack) & (values < edges[bin_number + 1] - slack)).sum()
        perhaps = ((values > edges[bin_number] - slack) & (values < edges[bin_number + 1] + slack)).sum()
        assert surely <= count <= perhaps


def check_snapshot(snapshot, edges, norms, mean, deviation, tau, own, other):
    assert (snapshot["mean"], snapshot["deviation"], snapshot["tau"]) == pytest.approx((mean, deviation, tau), rel=1e-4)
    assert [version["degrade"] for version in snapshot["versions"]] == [None, *SIDES]
    for row, version in enumerate(snapshot["versions"]):
        z = (norms[row] - mean) / deviation
        weight = np.array([np.exp(-value) if value >= -tau else 0.0 for value in z])
        check(version["norm"], norms[row], edges["norm"])
        check(version["z"], z, edges["z"])
        check(version["weight"], weight, edges["weight"])
        assert version["unrecognizable"] == (z < -tau).mean()
        check(version["own_cosine"], own[row], edges["cosine"])
        check(version["other_cosine"], other[row], edges["cosine"])
        assert version["correlation"] == pytest.approx(pearson(norms[row], own[row]), abs=1e-3)
    assert snapshot["correlation"] == pytest.approx(pearson(np.concatenate(norms), np.concatenate(own)), abs=1e-3)


def pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())


def dense_cosines(embedding, centers, labels):
    cosine = unit64(embedding) @ unit64(centers).T
    mine = np.arange(len(centers)) == labels[:, None]
    return cosine[mine], np.where(mine, -2, cosine).max(axis=1)


def test_every_save_of_a_run_equals_the_formulas_in_float64(qaface, images, result):
    folders = sorted((qaface / "checkpoints").iterdir())
    assert [s["step"] for s in result["snapshots"]] == [6, 12, 18]
    assert [s["epoch"] for s in result["snapshots"]] == [1, 2, 3]
    refused = 0
    for snapshot, folder in zip(result["snapshots"], folders, strict=True):
        kinds = {"norm_of": "momentum", "statistics_from": "run", "tau_from": "run", "centers": "learned"}
        assert kinds.items() <= snapshot.items()
        mean, deviation, _ = load_file(folder / "replicated.safetensors")["memory.statistics"].astype(float)
        centers = load_file(folder / "rows-00000000-00000012.safetensors")["weight"].astype(float)
        norms, own, other = [], [], []
        for side in (None, *SIDES):
            seen = reduce_to(images.images, side) if side else images.images
            norms.append(np.sqrt((embed_float64(folder, "momentum.", seen) ** 2).sum(axis=1)))
            cosines = dense_cosines(embed_float64(folder, "backbone.", seen), centers, images.labels)
            own.append(cosines[0])
            other.append(cosines[1])
        check_snapshot(snapshot, result["histogram_edges"], norms, mean, deviation, 0.75, own, other)
        refused += sum(version["unrecognizable"] for version in snapshot["versions"])
    assert 0 < refused < 9  # else the threshold was not tested


def test_every_save_is_another_model_to_a_cache(qaface):
    identities = [snapshot.identity() for snapshot in open_snapshots(qaface, 1)]
    assert len({one["sha256"] for one in identities}) == 3
    assert identities == [snapshot.identity() for snapshot in open_snapshots(qaface, 1)]


def test_a_model_file_shares_the_cache_of_eval_ijb(tmp_path):
    model = onnx_model(tmp_path / "net.onnx", np.random.default_rng(1).normal(size=(3, 5)))
    (file,) = open_snapshots(model, 1)
    assert file.identity() == model_identity(model, Pixels())


def test_saves_and_versions_differ(result):
    for name in ("norm", "z", "weight", "own_cosine", "other_cosine"):
        means = [version[name]["mean"] for s in result["snapshots"][1:] for version in s["versions"]]
        assert len(set(means)) == 6, name
    last = result["snapshots"][-1]["versions"]
    assert last[0]["own_cosine"]["mean"] > last[2]["own_cosine"]["mean"] + 0.01


def test_histograms_share_edges_that_hold_everything(result):
    edges = result["histogram_edges"]
    assert edges["weight"][0] == 0
    assert (edges["cosine"][0], edges["cosine"][-1]) == (-1, 1)
    for name in ("norm", "z", "weight"):
        versions = [version[name] for s in result["snapshots"] for version in s["versions"]]
        assert all(len(v["histogram"]) == len(edges[name]) - 1 for v in versions)
        if name != "weight":
            assert sum(v["histogram"][0] for v in versions) > 0
        assert sum(v["histogram"][-1] for v in versions) > 0


@pytest.mark.parametrize(
    ("inject", "norm_of", "source", "tau"),
    [(Injection(), "online", "images", 2.0), (VPL(start_epoch=0.5), "online", "images", 2.0),
     (VPL(start_epoch=0.5, source="momentum"), "momentum", "images", 2.0),
     (QAFace(norm_source="online", tau=1.5), "online", "run", 1.5)],
    ids=["none", "vpl", "vpl of the momentum backbone", "online norm"],
)
def test_other_runs(tmp_path_factory, small_set, images, inject, norm_of, source, tau):
    run = _run(tmp_path_factory, small_set, inject)
    (folder,) = (run / "checkpoints").iterdir()
    result = evaluate(run, images, (), threads=1, device="cpu")
    (snapshot,) = result["snapshots"]
    got = [snapshot[key] for key in ("norm_of", "statistics_from", "tau", "tau_from", "centers")]
    assert got == [norm_of, source, tau, "run" if isinstance(inject, QAFace) else "default", "learned"]
    part = {"online": "backbone.", "momentum": "momentum."}[norm_of]
    norm = np.linalg.norm(embed_float64(folder, part, images.images), axis=1)
    assert snapshot["versions"][0]["norm"]["mean"] == pytest.approx(norm.mean(), rel=1e-4)
    if source == "images":
        assert (snapshot["mean"], snapshot["deviation"]) == pytest.approx((norm.mean(), norm.std()), rel=1e-4)
        z = snapshot["versions"][0]["z"]
        assert (z["mean"], z["deviation"]) == pytest.approx((0, 1), abs=1e-9)


def test_a_set_that_the_run_was_not_trained_on_has_class_means(qaface, tmp_path):
    generator = np.random.default_rng(5)
    pictures = generator.integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    labels = [0, 0, 0, 1, 1, 3, 3]
    with ShardWriter(tmp_path / "train.rec") as shard:
        for number, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
            shard.add(label, cv2.imencode(".png", cv2.resize(picture, (112, 112)))[1].tobytes(), str(number))
    images = load_images(tmp_path)
    assert images.labels.tolist() == labels
    result = evaluate(qaface, images, SIDES, threads=1, device="cpu")
    assert {snapshot["centers"] for snapshot in result["snapshots"]} == {"class means"}
    folder = max((qaface / "checkpoints").iterdir())
    embedding = [unit64(embed_float64(folder, "backbone.", reduce_to(images.images, s) if s else images.images))
                 for s in (None, *SIDES)]
    for row, version in enumerate(result["snapshots"][-1]["versions"]):
        own, other = means_by_hand(embedding, row, labels)
        assert version["own_cosine"]["mean"] == pytest.approx(np.mean(own), abs=1e-4)
        assert version["other_cosine"]["mean"] == pytest.approx(np.mean(other), abs=1e-4)


def means_by_hand(embedding, row, labels):
    """Leave-one-out cosines, image by image."""
    own, other = [], []
    for i, label in enumerate(labels):
        mates = [embedding[0][j] for j in range(len(labels)) if labels[j] == label and j != i]
        own.append(embedding[row][i] @ unit64(np.mean(mates, axis=0)[None])[0] if mates else np.nan)
        strangers = [np.mean([embedding[0][j] for j in range(len(labels)) if labels[j] == k], axis=0)
                     for k in set(labels) - {label}]
        other.append(max(embedding[row][i] @ unit64(mean[None])[0] for mean in strangers))
    return np.array(own), np.array(other)


def test_class_means_leave_the_image_itself_out():
    generator = np.random.default_rng(0)
    labels = np.array([4, 4, 4, 9, 9, 70_000, 2])
    embedding = np.stack([unit64(generator.normal(size=(7, 5))) for _ in range(3)]).astype(np.float32)
    own, other = cosines_to_means(embedding, labels)
    for row in range(3):
        wanted = means_by_hand(embedding.astype(float), row, labels.tolist())
        np.testing.assert_allclose(own[row], wanted[0], atol=1e-6)
        np.testing.assert_allclose(other[row], wanted[1], atol=1e-6)
    assert np.isnan(own[:, 5:]).all()
    assert summary(own[0], np.linspace(-1, 1, 3))["count"] == 5


@pytest.mark.parametrize("block", [1, 5, 13])
def test_centers_in_blocks(block):
    generator = np.random.default_rng(1)
    centers = generator.normal(size=(13, 6)) * generator.uniform(0.1, 9, (13, 1))
    label = generator.integers(0, 13, 1500)
    embedding = generator.normal(size=(1500, 6))
    blocks = [(start, centers[start : start + block].astype(np.float32)) for start in range(0, 13, block)]
    own, other = cosines_to_centers(unit(embedding), label, blocks)
    wanted = dense_cosines(embedding, centers, label)
    np.testing.assert_allclose(own, wanted[0], atol=1e-6)
    np.testing.assert_allclose(other, wanted[1], atol=1e-6)


def test_sub_centers_in_half_precision(qaface, images, result, tmp_path):
    """Two more centres a class: one that nothing is near, one by which every image would be of class 0."""
    saved = checkpoint.read(max((qaface / "checkpoints").iterdir()))
    rows = saved.rows(0, 12)
    weight = rows["weight"]
    far, near = -weight, torch.zeros_like(weight)
    near[0] = torch.from_numpy(embed_float64(saved.folder, "backbone.", images.images).mean(axis=0))
    rows["weight"] = torch.stack([far, weight, near], dim=1).bfloat16()
    checkpoint.save(tmp_path / "checkpoints", 18, saved.replicated(), rows, 0, saved.state, Ranks())
    (snapshot,) = evaluate(tmp_path, images, (), threads=1, device="cpu")["snapshots"]
    embedding = embed_float64(saved.folder, "backbone.", images.images)
    cosine = unit64(embedding) @ unit64(np.concatenate([far, weight, near[:1]]).astype(float)).T
    by_class = np.maximum(cosine[:, :12], cosine[:, 12:24])
    by_class = np.maximum(by_class, 0)  # the zero rows
    by_class[:, 0] = np.maximum(np.maximum(cosine[:, 0], cosine[:, 12]), cosine[:, 24])
    mine = np.arange(12) == images.labels[:, None]
    version = snapshot["versions"][0]
    assert version["own_cosine"]["mean"] == pytest.approx(by_class[mine].mean(), abs=1e-3)
    assert version["other_cosine"]["mean"] == pytest.approx(np.where(mine, -2, by_class).max(axis=1).mean(), abs=1e-3)
    before = result["snapshots"][-1]["versions"][0]["other_cosine"]["mean"]
    assert version["other_cosine"]["mean"] > before + 0.01


def test_one_class_has_no_other():
    own, other = cosines_to_centers(unit(np.ones((3, 2))), np.zeros(3, int), [(0, np.array([[2.0, 2.0]]))])
    np.testing.assert_allclose(own, 1, atol=1e-6)
    assert np.isnan(other).all()
    assert summary(other, np.array([-1.0, 1.0])) is None


def test_the_weight_is_the_one_that_training_writes():
    norm = np.random.default_rng(2).uniform(1, 30, 200).astype(np.float32)
    trained = memory.quality_weight(torch.from_numpy(norm), torch.tensor([14.0, 3.0, 1.0]), 2.0)
    np.testing.assert_allclose(quality_weight(norm, 14.0, 3.0, 2.0), trained.numpy(), rtol=1e-5)
    assert (quality_weight(norm, 14.0, 3.0, 2.0) == 0).any()
    assert quality_weight(np.array([0.0, 1e-3]), 1.0, 3.0, 2.0).tolist() == pytest.approx([0, np.exp(0.333)])


def test_subset_is_a_function_of_the_numbers_alone():
    chosen = choose(1000, 50)
    assert chosen.tolist()[:8] == [14, 66, 89, 101, 116, 210, 238, 272]  # another platform draws these as well
    assert len(set(chosen.tolist())) == 50
    assert (np.diff(chosen) > 0).all()
    assert set(chosen) < set(choose(1000, 51))
    assert choose(7, 50).tolist() == list(range(7))
    thirds = np.bincount(choose(30_000, 3000) // 10_000)
    assert (abs(thirds - 1000) < 120).all()


def test_images_drawn(small_set):
    first, again, whole = load_images(small_set, 30), load_images(small_set, 30), load_images(small_set)
    np.testing.assert_array_equal(first.images, again.images)
    assert (len(first.images), first.total, whole.total, len(whole.images)) == (30, 96, 96, 96)
    np.testing.assert_array_equal(first.images, whole.images[choose(96, 30)])
    np.testing.assert_array_equal(whole.labels, np.repeat(np.arange(12), 8))
    assert first.names[0].startswith(f"{small_set / 'train.rec'}: record {1 + choose(96, 30)[0]} @")


def test_a_bin_has_no_centers(qaface, small_set):
    pairs = load_images(small_set / "pairs.bin", 25)
    assert (len(pairs.images), pairs.total, pairs.labels) == (25, 40, None)
    result = evaluate(qaface, pairs, (8,), threads=1, device="cpu")
    for snapshot in result["snapshots"]:
        assert snapshot["centers"] is snapshot["correlation"] is None
        for version in snapshot["versions"]:
            assert version["own_cosine"] is version["other_cosine"] is version["correlation"] is None
            assert version["norm"]["count"] == 25
    assert "–" in str(quality.table([result]))


def onnx_model(path, weight):
    """Mean over the pixels, times a matrix [3, 5]."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["in", "axes"], ["mean"], keepdims=0),
         helper.make_node("MatMul", ["mean", "weight"], ["out"])],
        "net",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight"),
         numpy_helper.from_array(np.array([2, 3], np.int64), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def test_an_onnx_file_by_the_command_without_torch(tmp_path, small_set):
    model = onnx_model(tmp_path / "net.onnx", np.random.default_rng(1).normal(size=(3, 5)))
    arguments = [str(model), "--images", str(small_set), "--count", "40", "--sides", "8", "--json",
                 str(tmp_path / "out" / "q.json"), "--threads", "1"]
    code = ("import sys; from eval.quality import main; from recognition.errors import run_command\n"
            f"assert main({arguments!r}) is None; assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads((tmp_path / "out" / "q.json").read_text())
    images = load_images(small_set, 40)
    assert {**written, "models": None} == {"set": str(small_set), "total": 96, "images": 40, "models": None}
    assert written["models"] == [evaluate(model, images, (8,), threads=1, subjects=load_subjects(small_set))]
    (snapshot,) = written["models"][0]["snapshots"]
    wanted = {"step": None, "epoch": None, "norm_of": "model", "tau": 2.0, "tau_from": "default",
              "statistics_from": "images", "centers": "class means"}
    assert wanted.items() <= snapshot.items()
    embedding = normalise(images.images).astype(float).mean(axis=(2, 3)) @ np.random.default_rng(1).normal(size=(3, 5))
    norm = np.linalg.norm(embedding, axis=1)
    assert snapshot["versions"][0]["norm"]["mean"] == pytest.approx(norm.mean(), rel=1e-4)
    own, _ = means_by_hand([unit64(embedding)], 0, images.labels.tolist())
    assert snapshot["versions"][0]["own_cosine"]["mean"] == pytest.approx(np.nanmean(own), abs=1e-5)
    for text in ("net.onnx", "8×8", "40 of 96 images"):
        assert text in done.stdout


def test_a_run_that_only_has_a_model_file(qaface, images, tmp_path):
    (tmp_path / "model_last.pt").write_bytes((qaface / "model_last.pt").read_bytes())
    (snapshot,) = evaluate(tmp_path, images, (), threads=1, device="cpu")["snapshots"]
    assert (snapshot["norm_of"], snapshot["centers"], snapshot["step"]) == ("model", "class means", None)
    folder = max((qaface / "checkpoints").iterdir())
    norm = np.linalg.norm(embed_float64(folder, "backbone.", images.images), axis=1)
    assert snapshot["mean"] == pytest.approx(norm.mean(), rel=1e-4)


def test_embeddings_all_alike(tmp_path, images):
    """A network that says 0: no weight, no correlation, nothing that is not a number."""
    result = evaluate(onnx_model(tmp_path / "net.onnx", np.zeros((3, 5))), images, (8,), threads=1)
    json.dumps(result, allow_nan=False)
    for version in result["snapshots"][0]["versions"]:
        assert (version["unrecognizable"], version["correlation"], version["own_cosine"]["mean"]) == (1, None, 0)
    assert edges_over([np.array([3.0, 3.0])])[[0, -1]].tolist() == [3, 4]


def test_embeddings_that_are_not_finite_name_the_images(tmp_path, images):
    weight = np.ones((3, 5))
    weight[1, 2] = np.nan
    model = onnx_model(tmp_path / "net.onnx", weight)
    with pytest.raises(NumericsError, match=rf"60 of 60 embeddings .* {re.escape(images.names[0])}, by .*net\.onnx"):
        evaluate(model, images, (8,), threads=1)


def _save(run: Run) -> None:
    with make_saver(run) as saver:
        save(run, saver)


@pytest.mark.parametrize("part", ["backbone", "momentum", "centres", "statistics"])
def test_a_save_that_is_not_finite_is_refused(tmp_path, small_set, images, part):
    config = _config(tmp_path, small_set, QAFace(), 1.0)
    config.folder.mkdir()
    run = assemble(config, Ranks())
    tensor = {"backbone": next(run.backbone.parameters()), "momentum": next(run.momentum.module.parameters()),
              "centres": run.head.weight, "statistics": run.head.memory.statistics}[part]
    with torch.no_grad():
        tensor[(0,) * tensor.ndim] = torch.nan
    _save(run)
    with pytest.raises(CheckpointError, match=r"step-000000000.*(not finite|memory\.statistics: μ nan)"):
        evaluate(config.folder, images, (), threads=1, device="cpu")


def test_statistics_of_no_batch_are_none(tmp_path, small_set, images):
    config = _config(tmp_path, small_set, QAFace(), 1.0)
    config.folder.mkdir()
    _save(assemble(config, Ranks()))  # before the first step, without metrics.jsonl
    (snapshot,) = evaluate(config.folder, images, (), threads=1, device="cpu")["snapshots"]
    assert (snapshot["statistics_from"], snapshot["step"], snapshot["epoch"]) == ("images", 0, None)


def test_a_damaged_save_is_passed_over_and_said(qaface, images, tmp_path, caplog):
    for file in qaface.rglob("*"):
        if file.is_file():
            place = tmp_path / file.relative_to(qaface)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    folders = sorted((tmp_path / "checkpoints").iterdir())
    (folders[1] / "replicated.safetensors").write_bytes(b"damaged")
    result = evaluate(tmp_path, images, (), threads=1, device="cpu")
    assert [snapshot["step"] for snapshot in result["snapshots"]] == [6, 18]
    assert "step-000000012: replicated.safetensors is damaged" in caplog.text
    for folder in (folders[0], folders[2]):
        (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint verifies: .*000006.*000012.*000018"):
        evaluate(tmp_path, images, (), threads=1, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["MODEL", "--images", "SET", "--count", "0"], 2, "--count: expected 1 to 10000, got 0"),
        (["MODEL", "--images", "SET", "--sides", "8", "113"], 2, "--sides: expected 1 to 112, got 113"),
        (["MODEL"], 2, "--images"),
        (["MODEL", "--images", "EMPTY.bin"], 3, "EMPTY.bin"),
        (["MODEL", "--images", "nowhere"], 3, "nowhere: no such folder"),
        (["MODEL", "nowhere.onnx", "--images", "SET"], 4, "nowhere.onnx: no such ONNX file"),
        (["MODEL", "nowhere", "--images", "SET"], 4, "nowhere: no such model"),
        (["MODEL", "SET", "--images", "SET"], 4, "no model_last.pt in this run folder"),
        (["MODEL", "--images", "SET", "--json", "/dev/null/q.json"], 3, "/dev/null/q.json: cannot be written"),
    ],
)
def test_how_the_command_ends(tmp_path, small_set, monkeypatch, capsys, arguments, status, text):
    monkeypatch.chdir(tmp_path)
    Path("EMPTY.bin").write_bytes(pickle.dumps(([], []), protocol=2))
    places = {"MODEL": str(onnx_model(tmp_path / "net.onnx", np.ones((3, 5)))), "SET": str(small_set)}
    with pytest.raises(SystemExit) as end:
        quality.run_command(quality.main, [places.get(argument, argument) for argument in arguments])
    assert end.value.code == status
    assert text in capsys.readouterr().err


def test_an_image_of_another_size_is_named(tmp_path):
    with ShardWriter(tmp_path / "train.rec") as shard:
        shard.add(0, cv2.imencode(".png", np.zeros((50, 60, 3), np.uint8))[1].tobytes(), "0")
    with pytest.raises(DataError, match=r"train\.rec: record 1 @ offset \d+: expected 112×112 pixels, got 60×50"):
        load_images(tmp_path)


def test_every_key_is_documented(result):
    page = (ROOT / "docs" / "evaluation.md").read_text()
    section = page[page.index("## Quality") :].split("\n## ")[0]
    snapshot = result["snapshots"][0]
    version = snapshot["versions"][0]
    keys = {*result, *result["histogram_edges"], *snapshot, *version, *version["norm"]}
    keys |= {"set", "total", "images", "models"}
    assert [key for key in keys if f'"{key}"' not in section] == []
