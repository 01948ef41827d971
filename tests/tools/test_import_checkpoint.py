"""A checkpoint of arcface_torch becomes one of ours: same backbone, every centre in its place, nothing executed."""

import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from recognition import checkpoint
from recognition.assembly import assemble
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import load_model
from recognition.config import Config, DataSettings, EvaluationSettings, StartSettings
from recognition.distributed import Ranks
from recognition.errors import CheckpointError
from recognition.heads.centers import shard_range
from recognition.state import replicated_state
from recognition.train import train_step
from recognition.warm_start import warm_start
from tools import checkpoint as tool
from tools import import_checkpoint as importer

CLASSES, SIZE = 12, 8


def _backbone(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(BackboneSettings("tiny", embedding_size=SIZE))


def _centers() -> torch.Tensor:
    return torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(3))


def _write(folder: Path, ranks: int = 3, changes: dict[int, dict] | None = None) -> Path:
    """What `train_v2.py` writes at the end of an epoch: optimiser and schedule of torch's own classes."""
    folder.mkdir(exist_ok=True)
    for rank in range(ranks):
        start, stop = shard_range(CLASSES, rank, ranks)
        backbone, head = _backbone(7), torch.nn.Parameter(_centers()[start:stop].clone())
        groups = [{"params": backbone.parameters()}, {"params": [head]}]
        optimizer = torch.optim.SGD(groups, 0.1, 0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _: 1.0] * 2)
        head.grad = torch.zeros_like(head)
        optimizer.step()
        head.data = _centers()[start:stop].clone()
        content = {
            "epoch": 2, "global_step": 40, "state_dict_backbone": backbone.state_dict(),
            "state_dict_softmax_fc": OrderedDict(weight=head.data), "state_optimizer": optimizer.state_dict(),
            "state_lr_scheduler": schedule.state_dict(),
        }
        torch.save(content | (changes or {}).get(rank, {}), folder / f"checkpoint_gpu_{rank}.pt")
    return folder


@pytest.mark.parametrize("ranks", [1, 5])
def test_every_centre_stands_in_its_place(tmp_path, ranks, monkeypatch):
    monkeypatch.setattr(importer, "ROWS_AT_ONCE", 2)
    # Tensors of a GPU carry its name in the file.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:1")
    folder = _write(tmp_path / "theirs", ranks)
    monkeypatch.undo()
    saved = checkpoint.read(importer.import_checkpoint(folder, tmp_path / "ours", "tiny"))
    assert (saved.step, saved.num_classes, len(saved.row_files)) == (40, CLASSES, ranks)
    assert torch.equal(saved.rows(0, CLASSES)["weight"], _centers())
    for name, tensor in _backbone(7).state_dict().items():
        assert torch.equal(saved.replicated()[f"backbone.{name}"], tensor)


def test_a_run_starts_from_it(tmp_path, small_set):
    importer.import_checkpoint(_write(tmp_path / "theirs"), tmp_path / "ours", "tiny")
    config = Config(
        "run", output=str(tmp_path), batch_size=4, epochs=1, data=DataSettings(str(small_set), reader="fallback"),
        backbone=BackboneSettings("tiny", embedding_size=SIZE), evaluation=EvaluationSettings(every_epochs=0),
    )
    run = assemble(config, Ranks())
    start = StartSettings(checkpoint=str(tmp_path / "ours"), match="number")
    said = warm_start(start, config.backbone, replicated_state(run), run.head.state(), 0, None, CLASSES, Ranks())
    assert f"{CLASSES} of {CLASSES} centres, by number" in said
    assert torch.equal(run.head.weight, _centers())
    for name, tensor in _backbone(7).state_dict().items():
        assert torch.equal(run.backbone.state_dict()[name], tensor)
    batch = next(iter(run.loader.batches(0, 1)))
    assert not train_step(run, batch, 0.01).bad


def test_the_verb(tmp_path, capsys):
    folder = _write(tmp_path / "theirs")
    assert tool.main(["import", str(folder), str(tmp_path / "ours"), "--network", "tiny", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"from": str(folder), "to": str(tmp_path / "ours" / "step-000000040"), "step": 40,
                     "classes": CLASSES, "row_files": 3}
    assert tool.main(["extract-backbone", facts["to"], str(tmp_path / "out.pt")]) == 0
    module, settings, info = load_model(tmp_path / "out.pt")
    assert (settings.name, info["run"], info["step"]) == ("tiny", "theirs", 40)
    assert torch.equal(module.state_dict()["conv1.weight"], _backbone(7).state_dict()["conv1.weight"])
    with pytest.raises(CheckpointError, match="is there already"):
        importer.import_checkpoint(folder, tmp_path / "ours", "tiny")


@pytest.mark.parametrize(("network", "name"), [
    ("r100", "iresnet100"), ("mbf", "mobilefacenet"), ("vit_t_dp005_mask0", "vit_t"), ("vit_b_dp005_mask_005", "vit_b"),
    ("iresnet50", "iresnet50"), ("tiny", "tiny"),
])
def test_backbones_have_both_names(network, name):
    assert importer.backbone_name(network) == name


def _nan() -> torch.Tensor:
    return _centers()[4:8].clone().index_fill_(1, torch.tensor([2]), torch.nan)


@pytest.mark.parametrize(("changes", "expected"), [
    ({1: {"global_step": 41}}, r"checkpoint_gpu_1\.pt: of step 41; checkpoint_gpu_0\.pt is of 40"),
    ({0: {"global_step": -1}}, "global_step: expected a count"),
    ({2: {"state_dict_softmax_fc": {"weight": torch.zeros(5, SIZE)}}}, "a rank's file is missing, or of another run"),
    ({1: {"state_dict_softmax_fc": {"weight": torch.zeros(4, 2 * SIZE)}}}, "a rank's file is missing, or of another"),
    ({1: {"state_dict_softmax_fc": {"weight": _nan()}}}, r"checkpoint_gpu_1\.pt: centres that are not finite"),
    ({1: {"state_dict_softmax_fc": {"weight": torch.zeros(1).expand(1 << 40, SIZE)}}}, "claim more bytes"),
    ({0: {"state_dict_softmax_fc": {"bias": torch.zeros(2)}}}, r"expected weight \[classes, d\], got \['bias'\]"),
    ({0: {"state_dict_softmax_fc": None}}, "state_dict_softmax_fc: expected a dict of tensors"),
    ({0: {"state_dict_backbone": {"conv1.weight": torch.zeros(3)}}}, "not tiny: missing"),
])
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, changes, expected):
    folder = _write(tmp_path / "theirs", changes=changes)
    with pytest.raises(CheckpointError, match=expected):
        importer.import_checkpoint(folder, tmp_path / "ours", "tiny")
    assert not list((tmp_path / "ours").glob("*"))


def test_missing_ranks_are_told(tmp_path):
    with pytest.raises(CheckpointError, match="save_all_states"):
        importer.import_checkpoint(tmp_path, tmp_path / "ours", "tiny")
    folder = _write(tmp_path / "theirs")
    (folder / "checkpoint_gpu_1.pt").unlink()
    with pytest.raises(CheckpointError, match=r"2 files checkpoint_gpu_N\.pt, but checkpoint_gpu_1\.pt is missing"):
        importer.import_checkpoint(folder, tmp_path / "ours", "tiny")
    (folder / "checkpoint_gpu_2.pt").rename(folder / "checkpoint_gpu_7.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint_gpu_1\.pt is missing"):
        importer.import_checkpoint(folder, tmp_path / "ours", "tiny")


class _Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_hostile_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = _write(tmp_path / "theirs", changes={1: {"state_optimizer": _Hostile()}})
    with pytest.raises(CheckpointError, match=r"refused: it names .*mkdir"):
        tool.main(["import", str(folder), str(tmp_path / "ours"), "--network", "tiny"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]
