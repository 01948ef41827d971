"""A run starts from another's checkpoint with another set of people: each centre goes to the one of its name."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recognition import warm_start
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.checkpoint import Keep, Saver, latest
from recognition.config import StartSettings
from recognition.distributed import Ranks
from recognition.errors import CheckpointError, SettingsError
from recognition.heads.centers import shard_range

BACKBONE = BackboneSettings("tiny", embedding_size=8, dropout=0.1)
OLD = [f"person {number}" for number in range(23)]
# Some left, some came, none stands where it stood; the last but one is in the old set without a name.
NEW = [*(OLD[number] for number in (22, 3, 17, 0)), "guest", *(OLD[number] for number in (9, 8, 21)), "other", "", "z"]


def _state(seed: int, momentum: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state = {f"backbone.{name}": x.clone() for name, x in build(BACKBONE).state_dict().items()}
    if momentum:
        state |= {f"momentum.{name}": x.clone() for name, x in build(BACKBONE).state_dict().items()}
    return state | {"optimizer.scale": torch.tensor(2.0 + seed)}


def _rows(classes: int, ranks: Ranks, seed: int, *shape: int) -> tuple[int, dict[str, torch.Tensor]]:
    start, stop = shard_range(classes, ranks.rank, ranks.world_size)
    weight = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(seed))
    return start, {"weight": weight[start:stop].clone(), "stamp": torch.full((stop - start,), seed)}


def _save(ranks: Ranks, folder: str, labels: list[str] | None = OLD, momentum: bool = True) -> None:
    start, rows = _rows(len(OLD), ranks, 1, 8)
    with Saver(Path(folder), ranks, Keep(), labels=labels) as saver:
        saver.save(7, _state(1, momentum), rows, start, {})


def _begin(ranks: Ranks, start: StartSettings, names: dict[int, str] | None, *shape: int) -> tuple:
    first, rows = _rows(len(NEW), ranks, 2, *shape)
    state = _state(2, momentum=True)
    said = warm_start.warm_start(start, BACKBONE, state, rows, first, names, len(NEW), ranks)
    return {name: x.numpy() for name, x in rows.items()}, {name: x.numpy() for name, x in state.items()}, said


@pytest.mark.parametrize("at_once", [4, 1 << 16])
@pytest.mark.parametrize("world", [1, 4])
def test_each_kept_centre_is_the_one_of_its_name(on_ranks, tmp_path, world, at_once, monkeypatch):
    monkeypatch.setattr(warm_start, "CLASSES_AT_ONCE", at_once)  # only where there is one process
    on_ranks(2, _save, str(tmp_path / "run" / "checkpoints"))
    names = {number: name for number, name in enumerate(NEW) if name}
    results = on_ranks(world, _begin, StartSettings(checkpoint=str(tmp_path / "run")), names, 8)
    weight = np.concatenate([rows["weight"] for rows, _, _ in results])
    old, new = _rows(len(OLD), Ranks(), 1, 8)[1]["weight"].numpy(), _rows(len(NEW), Ranks(), 2, 8)[1]["weight"].numpy()
    for number, name in enumerate(NEW):
        expected = old[OLD.index(name)] if name in OLD else new[number]
        np.testing.assert_array_equal(weight[number], expected, err_msg=name)
    saved = _state(1, momentum=True)
    for rows, state, said in results:
        assert (rows["stamp"] == 2).all(), "only centres are taken over"
        assert state["optimizer.scale"] == 4.0
        for name, tensor in saved.items():
            if not name.startswith("optimizer"):
                np.testing.assert_array_equal(state[name], tensor.numpy())
        assert "7 of 11 centres, by name (16 of its classes are not in this set)" in said


def test_without_a_momentum_backbone_the_other_one_stands_in(tmp_path):
    _save(Ranks(), str(tmp_path), momentum=False)
    _, state, _ = _begin(Ranks(), StartSettings(checkpoint=str(tmp_path)), dict(enumerate(NEW)), 8)
    for name, tensor in _state(1, momentum=False).items():
        if name.startswith("backbone."):
            np.testing.assert_array_equal(state[name], tensor.numpy())
            np.testing.assert_array_equal(state[name.replace("backbone.", "momentum.")], tensor.numpy())


def test_by_number_only_when_asked(tmp_path):
    _save(Ranks(), str(tmp_path), labels=None)
    save = tmp_path / "step-000000007"
    for names in (dict(enumerate(NEW)), None):
        with pytest.raises(SettingsError, match=r"no names of identities.*start\.match=number"):
            _begin(Ranks(), StartSettings(checkpoint=str(save)), names, 8)
    rows, _, said = _begin(Ranks(), StartSettings(checkpoint=str(save), match="number"), None, 8)
    np.testing.assert_array_equal(rows["weight"], _rows(len(OLD), Ranks(), 1, 8)[1]["weight"][: len(NEW)].numpy())
    assert "11 of 11 centres, by number" in said


def _fails(ranks: Ranks, start: StartSettings, *shape: int) -> str:
    try:
        _begin(ranks, start, dict(enumerate(NEW)) if ranks.is_first else None, *shape)
    except (CheckpointError, SettingsError) as error:
        return f"{error.status} {error}"
    return ""


def test_what_does_not_fit_is_told_on_all_ranks(on_ranks, tmp_path):
    on_ranks(2, _save, str(tmp_path / "named"))
    on_ranks(2, _save, str(tmp_path / "nameless"), None)
    for start, shape, expected in [
        (StartSettings(checkpoint=str(tmp_path / "named")), (2, 8), "4 .*centres of shape [8] a class; this run's are"),
        (StartSettings(checkpoint=str(tmp_path / "nameless")), (8,), "2 start.checkpoint"),
        (StartSettings(checkpoint=str(tmp_path / "absent")), (8,), "4 .*absent: no checkpoint here"),
        (StartSettings(backbone=str(tmp_path / "absent.pt")), (8,), "4 .*absent.pt: no such file"),
    ]:
        messages = on_ranks(2, _fails, start, *shape)
        assert messages[0] == messages[1]
        status, _, part = expected.partition(".*")
        assert messages[0].startswith(status[0])
        assert (part or status) in messages[0]


@pytest.mark.parametrize("kind", ["model file", "published", "safetensors"])
def test_a_backbone_alone(tmp_path, kind):
    torch.manual_seed(5)
    settings = dataclasses.replace(BACKBONE, dropout=0.4)  # of a run whose dropout was another
    module = build(settings)
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "model file":
        save_model(path, module, settings, {})
    elif kind == "published":
        torch.save(module.state_dict(), path)
    else:
        save_file({name: x.contiguous() for name, x in module.state_dict().items()}, path)
    rows, state, said = _begin(Ranks(), StartSettings(backbone=str(path)), None, 8)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(state[f"backbone.{name}"], tensor.numpy())
        np.testing.assert_array_equal(state[f"momentum.{name}"], tensor.numpy())
    np.testing.assert_array_equal(rows["weight"], _rows(len(NEW), Ranks(), 2, 8)[1]["weight"].numpy())
    assert str(path) in said


def test_another_backbone_is_refused(tmp_path):
    other = BackboneSettings("tiny", embedding_size=16)
    save_model(tmp_path / "other.pt", build(other), other, {})
    with pytest.raises(CheckpointError, match="embedding_size=16"):
        _begin(Ranks(), StartSettings(backbone=str(tmp_path / "other.pt")), None, 8)


def test_nothing_named_changes_nothing():
    rows, state, said = _begin(Ranks(), StartSettings(), None, 8)
    np.testing.assert_array_equal(rows["weight"], _rows(len(NEW), Ranks(), 2, 8)[1]["weight"].numpy())
    assert (state["optimizer.scale"], said) == (4.0, "")


def test_centres_that_are_not_finite_are_refused(tmp_path):
    start, rows = _rows(len(OLD), Ranks(), 1, 8)
    rows["weight"][3, 2] = torch.nan
    with Saver(tmp_path, Ranks(), Keep(), labels=OLD) as saver:
        saver.save(7, _state(1, True), rows, start, {})
    saved = latest(tmp_path, Ranks())
    assert saved is not None
    with pytest.raises(CheckpointError, match="not finite"):
        warm_start.load_centers(saved, torch.zeros(2, 8), np.array([3, 4]))
    warm_start.load_centers(saved, torch.zeros(2, 8), np.array([-1, 4]))
