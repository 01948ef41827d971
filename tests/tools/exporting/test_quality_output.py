"""The second output: the z-score of the norm, by the run's own statistics or by measured ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from eval.embed import load_embedder
from eval.norm_quality import NormQuality
from eval.pixels import normalise
from recognition import checkpoint
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import load_model, save_model
from recognition.config import Config, DataSettings, EvaluationSettings, LogSettings
from recognition.distributed import Ranks
from recognition.errors import NumericsError, SettingsError
from recognition.heads.margins import ArcFace
from recognition.heads.sharded import HeadSettings
from recognition.memory import VPL, Injection, Memory, QAFace, quality_weight
from recognition.state import model_info
from recognition.train import train
from tools.export_onnx import export
from tools.exporting import surroundings
from tools.exporting.form import Form
from tools.exporting.images import read_images
from tools.exporting.quality import Norms, measured_norms, norms_of_info, norms_of_metadata, norms_of_run

INFO = {"norms": {"mean": 11.0, "deviation": 1.5, "tau": 2.5, "of": "momentum"}}


def outputs(path: Path, faces: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(None, {"data": normalise(faces)}), strict=True))


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_quality_is_the_z_score_of_the_raw_norm(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray, precision: str, unit: bool
) -> None:
    out = tmp_path / "out.onnx"
    export(given_file(), tmp_path / "raw.onnx", faces)
    report = export(given_file(), out, faces, form=Form(precision, unit=unit, quality=True))  # type: ignore[arg-type]
    norms = report.norms
    assert norms is not None
    assert norms.source == "measured at export on 128 images"
    length = np.linalg.norm(outputs(tmp_path / "raw.onnx", faces[:7])["embedding"].astype(np.float64), axis=1)
    found = outputs(out, faces[:7])
    assert list(found) == ["embedding", "quality"]
    assert found["quality"].dtype == np.float32
    np.testing.assert_allclose(found["quality"], norms.z(length), atol=1e-3 if precision == "fp32" else 0.1)
    assert report.quality_error is not None
    assert report.quality_error < (1e-3 if precision == "fp32" else 0.1)
    facts = {entry.key: entry.value for entry in onnx.load(str(out)).metadata_props}
    assert float(facts["quality_mean"]) == norms.mean
    assert float(facts["quality_std"]) == norms.deviation
    assert float(facts["quality_threshold"]) == -2.0
    assert facts["quality_source"] == norms.source


def facts_of(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


def test_a_file_without_the_output_tells_the_runs_norms(tmp_path: Path, faces: np.ndarray) -> None:
    settings = BackboneSettings("tiny", embedding_size=16)
    save_model(tmp_path / "model.pt", build(settings), settings, INFO)
    plain, half, unit, two = (tmp_path / f"{name}.onnx" for name in ("plain", "half", "unit", "two"))
    export(tmp_path / "model.pt", plain, faces[:2])
    export(plain, half, faces[:2], form=Form("fp16"))
    export(plain, unit, faces[:2], form=Form(unit=True))
    export(plain, two, faces[:2], form=Form(quality=True))
    told = {"quality_mean": "11.0", "quality_std": "1.5", "quality_threshold": "-2.5",
            "quality_source": "training: the momentum backbone on augmented images"}
    for path in (plain, half, two):
        assert {key: value for key, value in facts_of(path).items() if key.startswith("quality")} == told
    assert [node.name for node in onnx.load(str(plain)).graph.output] == ["embedding"]
    assert not [key for key in facts_of(unit) if key.startswith("quality")]
    assert load_embedder(plain, 1, "cpu").quality == NormQuality(11.0, 1.5, -2.5)
    found = outputs(two, faces[:5])
    z = norms_of_info(INFO).z(np.linalg.norm(found["embedding"], axis=1))  # type: ignore[union-attr]
    np.testing.assert_allclose(found["quality"], z, atol=1e-3)


@pytest.mark.parametrize("said", [{}, {"quality_mean": "1", "quality_std": "0", "quality_threshold": "-2"},
                                  {"quality_mean": "grey", "quality_std": "1", "quality_threshold": "-2"},
                                  {"quality_mean": "1", "quality_std": "1", "quality_threshold": "[]"}])
def test_metadata_that_tell_no_norms(said: dict[str, str]) -> None:
    assert norms_of_metadata(said) is None


def test_no_checkpoint_is_read_for_norms_that_it_cannot_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(checkpoint, "saves_in", lambda folder: asked.append(folder))
    for injection in ("vpl", "qaface"):
        (tmp_path / "config.json").write_text(f'{{"settings": {{"head.inject": "{injection}"}}}}')
        assert norms_of_run(tmp_path) is None
    assert len(asked) == 1


def test_below_the_threshold_is_what_training_ignores() -> None:
    norms = norms_of_info(INFO)
    assert norms == Norms(11.0, 1.5, -2.5, "training: the momentum backbone on augmented images")
    norm = np.linspace(1, 20, 200)
    weight = quality_weight(torch.from_numpy(norm), torch.tensor([11.0, 1.5, 1.0]), 2.5).numpy()
    assert ((weight == 0) == (norms.z(norm) < norms.threshold)).all()
    assert 0 < (weight == 0).sum() < len(norm)


@pytest.mark.parametrize(
    "norms",
    [None, 5, {}, {"mean": 1.0, "deviation": 0.0, "tau": 2.0}, {"mean": float("nan"), "deviation": 1.0, "tau": 2.0},
     {"mean": "1", "deviation": 1.0, "tau": 2.0}],
)  # fmt: skip
def test_norms_that_cannot_be_used_are_none(norms: object) -> None:
    assert norms_of_info({"norms": norms}) is None


def test_without_statistics_it_takes_images(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    with pytest.raises(SettingsError, match="no μ and σ of a QAFace run; --images SET to measure them on"):
        export(given_file(), tmp_path / "out.onnx", form=Form(quality=True))
    with pytest.raises(SettingsError, match="--norms run: it tells no μ and σ"):
        export(given_file(), tmp_path / "out.onnx", faces, form=Form(quality=True, norms="run"))
    with pytest.raises(SettingsError, match="give --quality as well"):
        Form(norms="run")
    assert not (tmp_path / "out.onnx").exists()


def test_norms_that_tell_nothing_are_refused(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray
) -> None:
    def unit(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "raw"
        model.graph.node.append(helper.make_node("LpNormalization", ["raw"], ["out"], axis=1, p=2))

    with pytest.raises(NumericsError, match=r"norms of 1 ± \S+ tell .* \(σ/μ below 0.0001\); .* of unit length\?"):
        export(given_file(change=unit), tmp_path / "out.onnx", faces, form=Form(quality=True))
    assert not (tmp_path / "out.onnx").exists()


def test_norms_want_a_hundred_images(given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray) -> None:
    with pytest.raises(SettingsError, match="at least 100 images to measure μ and σ on, got 99 "):
        export(given_file(), tmp_path / "out.onnx", faces[:131], form=Form(quality=True))
    norms = export(given_file(), tmp_path / "out.onnx", faces[:132], form=Form(quality=True)).norms
    assert norms is not None
    assert norms.source == "measured at export on 100 images"


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 0.01), ("fp16", 0.1), ("int8", 1.0)])
def test_a_wrong_quality_is_not_written(
    given_file: Callable[..., Path], tmp_path: Path, faces: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    precision: str, limit: float,
) -> None:
    """Another μ in the graph than in its metadata, by a little more than the limit, stands in for a faulty exporter."""
    add_length = surroundings.add_length

    def faulty(graph: onnx.GraphProto, unit: bool, norms: Norms) -> None:
        add_length(graph, unit, replace(norms, mean=norms.mean - 1.1 * limit * norms.deviation))

    monkeypatch.setattr(surroundings, "add_length", faulty)
    form = Form(precision, quality=True, least_cosine=0.5)  # type: ignore[arg-type]
    with pytest.raises(NumericsError, match=rf"the quality is \S+ off, at most {limit:g} in {precision}"):
        export(given_file(), tmp_path / "out.onnx", faces, form=form)
    assert not (tmp_path / "out.onnx").exists()


def test_measured_norms_are_those_of_numpy() -> None:
    embedding = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    norms, length = measured_norms(embedding), np.linalg.norm(embedding, axis=1)
    assert norms.mean == pytest.approx(length.mean())
    assert norms.deviation == pytest.approx(length.std())
    with pytest.raises(NumericsError, match="the norms of 3 images have mean 0, deviation 0"):
        measured_norms(np.zeros((3, 8), np.float32))


def qaface_run(output: Path, root: Path) -> Config:
    return Config(
        name="run", output=str(output), batch_size=16, epochs=2 / 6,
        data=DataSettings(str(root), reader="fallback"), backbone=BackboneSettings("tiny", embedding_size=16),
        head=HeadSettings(ArcFace(s=16.0, m=0.3), inject=QAFace(tau=1.5)),
        evaluation=EvaluationSettings(every_epochs=0), log=LogSettings(every_steps=1, tensorboard=False),
    )  # fmt: skip


def test_a_model_file_carries_its_runs_norms() -> None:
    def info_of(injection: Injection) -> dict[str, object]:
        memory = Memory(injection, 3, 8, torch.device("cpu"), 4, 0)
        config = SimpleNamespace(name="demo")
        run = SimpleNamespace(config=config, step=7, epoch=1, scores=[], scored=7, product_dtype=torch.float32,
                              head=SimpleNamespace(memory=memory))
        plain = {"run": "demo", "step": 7, "epoch": 1, "scores": [], "scores_in": "float32"}
        assert model_info(run) == plain, "nothing is known before the first batch"  # type: ignore[arg-type]
        memory.write(torch.randn(4, 8), torch.tensor([9.0, 10, 12, 13]), torch.arange(4), 1, torch.tensor(True))
        return {key: value for key, value in model_info(run).items() if key not in plain}  # type: ignore[arg-type]

    assert info_of(VPL()) == {}
    found = info_of(QAFace(tau=1.5, norm_source="online"))
    deviation = pytest.approx(np.std([9, 10, 12, 13]))
    assert found == {"norms": {"mean": 11.0, "deviation": deviation, "tau": 1.5, "of": "online"}}


@pytest.mark.slow
def test_the_quality_of_a_run(tmp_path: Path, small_set: Path) -> None:
    config = qaface_run(tmp_path, small_set)
    train(config, Ranks())
    _, _, info = load_model(config.folder / "model_last.pt")
    mean, deviation, known = checkpoint.open_save(config.folder, Ranks()).replicated()["memory.statistics"].tolist()
    assert known == 1
    norms = Norms(mean, deviation, -1.5, "training: the momentum backbone on augmented images")
    assert norms_of_info(info) == norms
    assert norms_of_run(config.folder) == norms, "what older model files lack stands in the checkpoint"
    faces = read_images(small_set, 40)
    assert export(config.folder, tmp_path / "out.onnx", faces, form=Form(quality=True)).norms == norms
    found = outputs(tmp_path / "out.onnx", faces)
    np.testing.assert_allclose(found["quality"], norms.z(np.linalg.norm(found["embedding"], axis=1)), atol=1e-3)


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert norms_of_run(tmp_path) is None
