"""The loop on 1, 2 and 4 ranks: same losses, exact resume, what it leaves behind, how it ends when it must."""

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.during_training import Verifier
from eval.verification import evaluate, load_bin
from recognition import checkpoint
from recognition.assembly import Run, assemble
from recognition.backbones import BackboneSettings
from recognition.backbones.model_file import load_model
from recognition.config import CheckpointSettings, Config, DataSettings, EvaluationSettings, LogSettings, settings_of
from recognition.data.batch import normalise
from recognition.data.dataset import open_dataset
from recognition.data.plan import Augmentation
from recognition.data.shard_writer import ShardWriter
from recognition.distributed import Ranks, gather_uneven_rows
from recognition.errors import DataError, NumericsError, SettingsError
from recognition.heads.margins import AdaFace, ArcFace, BroadFace, CurricularFace, SphereFace2, SubCenter
from recognition.heads.row_optimizers import RowAdagrad, RowAdamW
from recognition.heads.sharded import HeadSettings
from recognition.log import RunLog
from recognition.memory import VPL, QAFace
from recognition.optimizer import OptimizerSettings
from recognition.schedule import ScheduleSettings
from recognition.state import make_saver, model_info, replicated_state, resume, save
from recognition.stopping import StopRequest
from recognition.train import evaluate_where_due, train, train_step


def _config(output: Path, root: Path, **changed: object) -> Config:
    config = Config(
        name="run",
        output=str(output),
        seed=3,
        batch_size=16,
        epochs=4,
        data=DataSettings(str(root), reader="fallback", augmentation=Augmentation(crop=0.2, downsample=0.2)),
        backbone=BackboneSettings("tiny", embedding_size=32),
        head=HeadSettings(ArcFace(s=16.0, m=0.3)),
        optimizer=OptimizerSettings(lr=0.05),
        schedule=ScheduleSettings("cosine", warmup_epochs=1),
        evaluation=EvaluationSettings(every_epochs=0),
        checkpoint=CheckpointSettings(every_epochs=1, keep=2),
        log=LogSettings(every_steps=1, tensorboard=False),
    )
    return dataclasses.replace(config, **changed)


def _metrics(config: Config) -> list[dict]:
    return [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]


def _train(ranks: Ranks, config: Config) -> list[float]:
    train(config, ranks)
    return [line["loss"] for line in _metrics(config) if "loss" in line] if ranks.is_first else []


def test_losses_do_not_depend_on_the_number_of_ranks(on_ranks, tmp_path, small_set):
    """20 steps at the same global batch, a backbone without batch statistics: 1e-5, on 1, 2 and 4 ranks.

    Scale, rate and clipping are ones at which rounding is not amplified: with s = 16 and a rate of 0.05 this small
    problem is chaotic, and the last bits of the first step, which differ by the order of sums, make 1 % after 20.
    """
    losses = {}
    for world in (1, 2, 4):
        config = _config(tmp_path / str(world), small_set, backbone=BackboneSettings("tiny", 32, norm="group"),
                         head=HeadSettings(ArcFace(s=8.0, m=0.3)), epochs=20 / 6,
                         optimizer=OptimizerSettings(lr=0.003, clip_norm=1.0))
        losses[world] = on_ranks(world, _train, config)[0]
    assert len(losses[1]) == 20
    assert losses[1][-1] < 0.7 * losses[1][0]
    for world in (2, 4):
        np.testing.assert_allclose(losses[world], losses[1], rtol=1e-5)


def _all_state(ranks: Ranks, config: Config, stop_at: int | None) -> dict[str, np.ndarray]:
    """Train to the end or to a step, in a way that a kill would leave; the state, gathered."""
    run = assemble(config, ranks)
    resume(run)
    last = stop_at or len(run.rates)
    with make_saver(run) as saver:
        for batch in run.loader.batches(run.step, last):
            train_step(run, batch, float(run.rates[run.step]))
            if run.step % 5 == 0:
                save(run, saver)
    return _values(run, ranks)


def _values(run: Run, ranks: Ranks) -> dict[str, np.ndarray]:
    """All state of a run, the shards joined; NumPy has no bfloat16, float32 holds it."""
    tensors = replicated_state(run) | {
        name: gather_uneven_rows(rows, ranks) for name, rows in run.head.state().items()
    }
    return {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().clone().numpy()
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(("world", "rate", "parts"), [(1, 0.5, 1), (2, 1.0, 1), (2, 0.5, 1), (2, 0.5, 2), (4, 1.0, 1)])
def test_resume_equals_uninterrupted_to_the_bit(on_ranks, tmp_path, small_set, world, rate, parts):
    head = HeadSettings(ArcFace(s=16.0, m=0.3), sample_rate=rate, inject=QAFace(start_epoch=0.5))
    backbone = BackboneSettings("tiny", embedding_size=32, dropout=0.3)
    changed = {"head": head, "backbone": backbone, "epochs": 2, "micro_batches": parts}
    whole, stopped = (_config(tmp_path / name, small_set, **changed) for name in ("whole", "stopped"))
    for config in (whole, stopped):
        config.folder.mkdir(parents=True)
    uninterrupted = on_ranks(world, _all_state, whole, None)
    on_ranks(world, _all_state, stopped, 7)  # two steps after the save are lost
    resumed = on_ranks(world, _all_state, stopped, None)
    for rank, expected in enumerate(uninterrupted):
        for name, value in expected.items():
            np.testing.assert_array_equal(resumed[rank][name], value, err_msg=f"rank {rank}: {name}")


KINDS = {
    "qaface": HeadSettings(ArcFace(s=16.0, m=0.3), 0.5, inject=QAFace(start_epoch=0.2, stat_momentum=0.5)),
    "adaface, adamw, bf16, decay": HeadSettings(
        AdaFace(s=16.0), 0.5, RowAdamW(), inject=VPL(start_epoch=0.2), storage="bf16", catch_up_decay=True
    ),
    "sphereface2, adagrad": HeadSettings(SphereFace2(), 0.5, RowAdagrad()),
    "curricularface": HeadSettings(CurricularFace(s=16.0), catch_up_decay=True),
    "subcenter, dropping": HeadSettings(SubCenter(s=16.0, drop_degrees=80.0, drop_epoch=0.2)),
    "broadface": HeadSettings(BroadFace(s=16.0, queue=40)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_a_head_learns_is_resumed_to_the_bit(on_ranks, tmp_path, small_set, kind):
    whole, stopped = (_config(tmp_path / name, small_set, head=KINDS[kind], epochs=2) for name in ("whole", "stopped"))
    for config in (whole, stopped):
        config.folder.mkdir(parents=True)
    uninterrupted = on_ranks(2, _all_state, whole, None)
    on_ranks(2, _all_state, stopped, 7)
    resumed = on_ranks(2, _all_state, stopped, None)
    for name, value in uninterrupted[0].items():
        np.testing.assert_array_equal(resumed[0][name], value, err_msg=name)


def _load_and_save(ranks: Ranks, source: Config, target: Config) -> dict[str, np.ndarray]:
    """All state of a run as this number of ranks finds it, saved again in another place."""
    torch.manual_seed(ranks.world_size)
    run = assemble(source, ranks)
    resume(run)
    run.config = target
    with make_saver(run) as saver:
        save(run, saver)
    return _values(run, ranks)


@pytest.mark.parametrize("kind", KINDS)
def test_other_numbers_of_ranks_find_all_state_to_the_bit(on_ranks, tmp_path, small_set, kind):
    """Trained on 2 ranks, then 1, then 4: memory, stamps and statistics, the optimiser's rows, the margin's state."""
    trained, on_one, on_four = (_config(tmp_path / n, small_set, head=KINDS[kind], epochs=2) for n in ("2", "1", "4"))
    for config in (trained, on_one, on_four):
        config.folder.mkdir(parents=True)
    before = on_ranks(2, _all_state, trained, 5)[0]
    for found in (on_ranks(1, _load_and_save, trained, on_one)[0], on_ranks(4, _load_and_save, on_one, on_four)[0]):
        assert found.keys() == before.keys()
        for name, value in before.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    moved = {"qaface": ["memory", "stamp", "memory.statistics"], "sphereface2, adagrad": ["head.bias", "square"],
             "subcenter, dropping": ["chosen"], "broadface": ["head.past_label"]}
    assert all(np.unique(before[name]).size > 1 or before[name].size == 1 for name in moved.get(kind, []))


def _scores(ranks: Ranks, path: str) -> list[dict]:
    torch.manual_seed(0)
    config = _config(Path(path), Path(path))
    run = assemble(config, ranks)
    return Verifier([Path(path) / "pairs.bin"], [8], ranks).score(run.backbone, torch.float32)


@pytest.mark.parametrize("world", [2, 4])
def test_scores_during_training_are_those_of_evaluation(on_ranks, small_set, world):
    results = on_ranks(world, _scores, str(small_set))
    assert all(result == results[0] for result in results)
    run = assemble(_config(small_set, small_set), Ranks())
    run.backbone.eval()

    def embed(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return run.backbone(normalise(torch.from_numpy(images))).numpy()

    pairs = load_bin(small_set / "pairs.bin")
    for got, side in zip(results[0], (None, 8), strict=True):
        expected = evaluate(embed, pairs, side)
        assert got.keys() == expected.keys()
        assert got["accuracy"] == expected["accuracy"]
        assert got["mean_norm"] == pytest.approx(expected["mean_norm"], rel=1e-5)


def test_what_a_run_leaves_behind(tmp_path, small_set):
    evaluation = EvaluationSettings(("pairs",), every_epochs=1)
    config = _config(tmp_path, small_set, evaluation=evaluation, log=LogSettings(every_steps=2, tensorboard=True))
    run = train(config, Ranks())
    folder = config.folder
    lines = _metrics(config)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(2, 25, 2))
    norms = {f"embedding_norm_{figure}" for figure in ("mean", "std", "min", "max")}
    assert steps[0].keys() == {"step", "epoch", "loss", "lr", "gradient_norm", "images_per_second", "data_wait",
                               "memory_gb"} | norms
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert [line["epoch"] for line in lines if "verification" in line] == [1, 2, 3, 4]
    assert any((folder / "tensorboard").iterdir())
    assert "12 identities" in (folder / "train.log").read_text()
    record = json.loads((folder / "config.json").read_text())
    assert record["settings"] == json.loads(json.dumps(settings_of(config)))
    assert record["versions"]["torch"] == torch.__version__
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-000000018", "step-000000024"]
    module, settings, info = load_model(folder / "model_last.pt")
    assert (settings, info["step"]) == (config.backbone, 24)
    for name, tensor in run.backbone.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor)
    best = load_model(folder / "model_best.pt")[2]["scores"][0]["accuracy"]
    assert best == max(line["verification"][0]["accuracy"] for line in lines if "verification" in line)


def test_a_model_file_tells_no_scores_of_an_earlier_step():
    run = SimpleNamespace(config=SimpleNamespace(name="run"), step=8, epoch=2, scores=[{"accuracy": 0.9}], scored=8,
                          head=SimpleNamespace(memory=None), product_dtype=torch.bfloat16)
    assert model_info(run)["scores"] == run.scores
    assert model_info(run)["scores_in"] == "bfloat16"
    run.scored = 6
    assert model_info(run)["scores"] == []


def test_a_run_that_ends_unscored_tells_no_earlier_scores(tmp_path, small_set):
    """It was scored in step 6, stopped, and went on with evaluation.every_epochs=0."""
    run = assemble(_config(tmp_path, small_set, evaluation=EvaluationSettings(every_epochs=0)), Ranks())
    run.scores, run.scored, run.step = [{"accuracy": 0.9, "degrade": None}], 6, len(run.rates)
    with closing(RunLog(tmp_path, Ranks())) as log, StopRequest() as stop, make_saver(run) as saver:
        evaluate_where_due(run, log, Verifier([], (), Ranks()), saver, stop)
    assert (model_info(run)["scores"], run.scored) == ([], run.step)


def test_going_on_keeps_each_step_once_in_the_metrics(tmp_path, small_set):
    config = _config(tmp_path, small_set, epochs=2)
    train(config, Ranks())
    for name in ("step-000000012",):  # as if killed after the first epoch's save, a step being written
        for file in (config.folder / "checkpoints" / name).iterdir():
            file.unlink()
    with (config.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    first = _metrics_text(config)
    train(config, Ranks())
    assert [line["step"] for line in _metrics(config)] == list(range(1, 13))
    assert [json.loads(line)["loss"] for line in first.splitlines()[:12]] == [line["loss"] for line in _metrics(config)]


def _metrics_text(config: Config) -> str:
    return (config.folder / "metrics.jsonl").read_text()


def test_other_settings_do_not_go_on(tmp_path, small_set):
    config = _config(tmp_path, small_set, epochs=1)
    train(config, Ranks())
    with pytest.raises(SettingsError, match=r"head\.margin\.m: 0\.3 → 0\.4(?s:.)*seed: 3 → 4"):
        train(dataclasses.replace(config, seed=4, head=HeadSettings(ArcFace(s=16.0, m=0.4))), Ranks())
    train(dataclasses.replace(config, log=LogSettings(every_steps=3, tensorboard=False)), Ranks())


def test_a_loss_that_stays_not_finite_ends_the_run(tmp_path, small_set):
    config = _config(tmp_path, small_set)
    config.folder.mkdir()
    run = assemble(config, Ranks())
    with torch.no_grad():
        next(run.backbone.parameters()).fill_(torch.nan)
    before = run.head.weight.clone()
    with make_saver(run) as saver:
        save(run, saver)
    with pytest.raises(NumericsError, match="by step 3 after going back to a checkpoint, 3 steps of the last 1000"):
        train(config, Ranks())
    saved = checkpoint.latest(config.folder / "checkpoints", Ranks())
    assert saved is not None
    assert torch.equal(saved.rows(0, 12)["weight"], before)


@pytest.mark.parametrize("batch_size", [17, 97])
def test_batch_that_cannot_be_cut_shows_both_numbers(tmp_path, small_set, batch_size):
    config = _config(tmp_path, small_set, batch_size=batch_size)
    with pytest.raises(SettingsError, match=str(batch_size)):
        assemble(config, Ranks(rank=0, world_size=2))


def test_parts_that_do_not_divide_a_share_show_both_numbers(tmp_path, small_set):
    with pytest.raises(SettingsError, match=r"3 parts do not divide a rank's 8 images \(batch_size 16 over 2 ranks\)"):
        assemble(_config(tmp_path, small_set, micro_batches=3), Ranks(rank=0, world_size=2))


def _differ(ranks: Ranks, config: Config) -> str:
    try:
        assemble(dataclasses.replace(config, seed=ranks.rank), ranks)
    except SettingsError as error:
        return str(error)
    return ""


def test_ranks_with_other_settings_are_found_before_training(on_ranks, tmp_path, small_set):
    for message in on_ranks(2, _differ, _config(tmp_path, small_set)):
        assert "seed: 1 on rank 1, 0 on rank 0" in message


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])  # slow on CPUs
def test_mixed_precision_learns(tmp_path, small_set, precision):
    config = _config(tmp_path, small_set, precision=precision, epochs=3)
    losses = _train(Ranks(), config)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def _train_on_bad(ranks: Ranks, config: Config) -> str:
    try:
        train(config, ranks)
    except DataError as error:
        return str(error)
    return ""


def test_the_allowed_share_of_bad_samples_is_that_of_all_ranks(on_ranks, tmp_path, small_set):
    """Three bad images, each rank meets fewer than are allowed to it alone: together they are one too many."""
    root = tmp_path / "set"
    root.mkdir()
    with ShardWriter(root / "train.rec") as shard:
        dataset = open_dataset(small_set)
        for sample in range(dataset.num_images):
            image = bytes(dataset.encoded(sample))
            shard.add(int(dataset.labels[sample]), image[:200] if sample in (3, 40, 77) else image, str(sample))
    (root / "property").write_text("12,112,112\n")
    data = DataSettings(str(root), reader="fallback", bad_share=2.5 / 96)
    config = _config(tmp_path, root, data=data, epochs=1)
    messages = on_ranks(2, _train_on_bad, config)
    assert all("3 samples could not be used" in message for message in messages), messages
    enough = dataclasses.replace(config, name="enough", data=dataclasses.replace(data, bad_share=3.5 / 96))
    assert on_ranks(2, _train_on_bad, enough) == ["", ""]
    assert _metrics(enough)[-1]["bad_samples"] == 3
