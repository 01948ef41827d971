"""Which saves stay, as a rule on their steps and scores and as folders on the disk."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recognition import checkpoint
from recognition.checkpoint import Keep, Saver
from recognition.distributed import Ranks
from recognition.errors import CheckpointError

scored = st.dictionaries(st.integers(0, 500), st.none() | st.floats(-1, 1), max_size=30)


@given(scored, st.integers(1, 4), st.booleans(), st.integers(0, 60))
def test_what_stays(scores, last, best, every):
    stay = Keep(last, best, every).steps(scores)
    assert stay <= scores.keys()
    assert set(sorted(scores)[-last:]) <= stay
    known = [score for score in scores.values() if score is not None]
    if best and known:
        assert max(known) in {scores[step] for step in stay}
    intervals = [step // every for step in stay] if every else []
    assert {step // every for step in scores if every and step >= every} <= set(intervals)
    assert len(stay) <= last + best + (len(set(intervals)) if every else 0)


@given(scored, st.integers(1, 3), st.integers(0, 60))
def test_saving_one_by_one_keeps_what_pruning_at_once_does(scores, last, every):
    """So what stays for good does not depend on when old saves were removed."""
    keep, present = Keep(last, True, every), {}
    for step in sorted(scores):
        present[step] = scores[step]
        present = {kept: present[kept] for kept in keep.steps(present)}
    assert present.keys() == keep.steps(scores)


def test_keep_nothing_away():
    assert Keep(last=0).steps({1: None, 2: 0.5}) == {1, 2}


def _steps(folder: Path) -> list[int]:
    assert not list(folder.glob(".*")), "nothing half removed is left"
    return [int(path.name.removeprefix("step-")) for path in checkpoint.saves(folder)]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_saver_keeps_the_newest_the_best_and_every_kth(tmp_path, asynchronous):
    scores = {10: 0.1, 20: 0.9, 30: None, 40: 0.3, 50: 0.9, 60: 0.2}
    with Saver(tmp_path, Ranks(), Keep(last=2, best=True, every_steps=35), asynchronous) as saver:
        for step, score in scores.items():
            saver.save(step, {}, {"weight": torch.zeros(2, 2)}, 0, {}, score=score)
            saver.finish()
            assert saver.newest == tmp_path / f"step-{step:09d}"
    assert _steps(tmp_path) == [20, 40, 50, 60]
    assert all(checkpoint.problems(path) == [] for path in checkpoint.saves(tmp_path))


def test_what_a_run_fell_back_from_does_not_push_out_what_it_saves(tmp_path):
    rows = {"weight": torch.zeros(2, 2)}
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, {}, rows, 0, {}, Ranks())
    for step in (3, 4):
        (tmp_path / f"step-{step:09d}" / "manifest.json").write_text("{}")
    with Saver(tmp_path, Ranks(), Keep(last=1)) as saver:
        saver.save(2, {}, rows, 0, {"again": True})
        saver.save(3, {}, rows, 0, {})
    assert _steps(tmp_path) == [3, 4]  # 4 is looked at again when the run gets there
    saved = checkpoint.latest(tmp_path, Ranks())
    assert saved is not None
    assert saved.step == 3


def test_a_save_whose_score_cannot_be_read_is_not_the_best(tmp_path):
    for step, score in ((1, 0.9), (2, 0.5), (3, 0.1)):
        with Saver(tmp_path, Ranks(), Keep(last=0)) as saver:
            saver.save(step, {}, {"weight": torch.zeros(2, 2)}, 0, {}, score=score)
    state = tmp_path / "step-000000001" / "state.json"
    for content in ("{", json.dumps({"score": "0.9"}), json.dumps({"score": True})):
        state.write_text(content)
        assert Keep(last=1).steps({1: checkpoint.score_of(state.parent), 2: 0.5, 3: 0.1}) == {2, 3}


def _does_not_read_back(ranks: Ranks, folder: str) -> str:
    """Saves step 3 on a disk that changes a byte of what it was given."""
    try:
        with Saver(Path(folder), ranks, Keep(last=1)) as saver:
            saver.save(3, {}, {"weight": torch.zeros(2, 2)}, 0, {})
    except CheckpointError as error:
        return str(error)
    return ""


def test_nothing_goes_when_the_new_save_does_not_read_back(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {}, {"weight": torch.zeros(2, 2)}, 0, {}, Ranks())

    def lying_disk(event: str, arguments: tuple) -> None:
        if event == "recognition.checkpoint" and arguments[0] == "replicated written":
            (path,) = tmp_path.glob(".step-*/rows-*")
            path.write_bytes(path.read_bytes()[:-1] + b"\1")

    child = os.fork()
    if not child:  # an audit hook stays for good
        sys.addaudithook(lying_disk)
        said = _does_not_read_back(Ranks(), str(tmp_path))
        os._exit(0 if "just written, but rows-00000000-00000002.safetensors is damaged" in said else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert _steps(tmp_path) == [1, 2]
