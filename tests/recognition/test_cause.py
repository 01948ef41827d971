"""One line and one status for whatever ended a run, from notes and exit statuses."""

import json
import signal

import pytest

from recognition.cause import cause, failures, is_final, note_failure, note_stop, was_stopped
from recognition.errors import DataError, NumericsError
from recognition.progress import Progress


@pytest.fixture
def leave(tmp_path, monkeypatch):
    """Leave the note of a rank's failure, as the rank itself does."""
    monkeypatch.delenv("DEBUG", raising=False)

    def note(rank: int, error: Exception) -> None:
        monkeypatch.setenv("RUN_NOTES", str(tmp_path))
        monkeypatch.setenv("RANK", str(rank))
        note_failure(error)

    return note


def test_a_known_cause_goes_before_those_that_lost_the_rank(tmp_path, leave):
    leave(0, RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1"))
    leave(1, DataError("a.rec: record 7 @ offset 80: bad magic"))
    leave(2, RuntimeError("Timed out waiting 60000ms for recv operation"))
    assert cause(tmp_path, {0: 6, 1: 3, 2: 6}) == (3, "error: a.rec: record 7 @ offset 80: bad magic")
    assert is_final(tmp_path)


def test_a_fault_of_the_program_has_its_rank_and_traceback(tmp_path, leave):
    leave(0, RuntimeError("Connection reset by peer"))
    leave(1, KeyError("boom"))
    status, text = cause(tmp_path, {0: 6, 1: 6})
    assert status == 6
    assert text.endswith("error: rank 1: KeyError: 'boom'")
    assert "KeyError" in text.splitlines()[0]
    assert not is_final(tmp_path)


def test_a_killed_rank_goes_before_those_that_lost_it(tmp_path, leave):
    leave(0, RuntimeError("Connection closed by peer"))
    assert cause(tmp_path, {0: 6, 1: -signal.SIGKILL}) == (
        6, "error: rank 1 ended with status -9 and left no reason (killed; out of memory?)")


def test_who_did_not_come_is_named(tmp_path, leave):
    first, second = Progress(tmp_path / "progress-0"), Progress(tmp_path / "progress-1")
    for progress in (first, second):
        progress.at("a step", 3)
    first.exchange("gather_rows")
    leave(0, RuntimeError("Timed out waiting 5000ms for recv operation to complete"))
    status, text = cause(tmp_path, {0: 6, 1: -signal.SIGTERM})
    assert status == 6
    assert text.startswith("error: rank 1 did not come: at step 3 it is in a step")


def test_a_stop_is_no_failure_and_is_not_started_again(tmp_path, monkeypatch):
    monkeypatch.setenv("RUN_NOTES", str(tmp_path))
    monkeypatch.setenv("RANK", "5")
    assert note_stop(signal.SIGTERM) == 143
    assert cause(tmp_path, {5: 143}) == (143, "stopped by SIGTERM")
    assert not is_final(tmp_path)
    assert was_stopped(tmp_path)
    assert json.loads((tmp_path / "failure-5").read_text())["status"] == 143
    assert failures(tmp_path).keys() == {5}


def test_ranks_interrupted_before_they_could_note_it(tmp_path):
    assert cause(tmp_path, {0: 130}) == (130, "stopped by SIGINT")
    assert cause(tmp_path, {0: -signal.SIGTERM}) == (143, "stopped by SIGTERM")
    assert cause(tmp_path, {})[0] == 6


def test_numbers_go_before_an_unexpected_failure(tmp_path, leave):
    leave(0, ValueError("a fault"))
    leave(1, NumericsError("copies differ"))
    assert cause(tmp_path, {0: 6, 1: 5})[0] == 5
