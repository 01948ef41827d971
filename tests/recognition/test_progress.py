"""A rank's notes of where it is, read when it can no longer be asked."""

import os
import signal
import time

from recognition.progress import Place, Progress, read_progress, who_is_missing


def test_notes_outlive_a_killed_process(tmp_path):
    child = os.fork()
    if child == 0:
        progress = Progress(tmp_path / "progress-3")
        progress.at("a step", 41)
        progress.exchange("gather_rows")
        progress.exchange("sum_over_ranks")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    place = read_progress(tmp_path / "progress-3")
    assert place[:2] == (41, 2)
    assert place.doing == "sum_over_ranks (a step)"
    assert abs(place.seconds - time.time()) < 60


def test_long_and_foreign_words_are_cut_not_refused(tmp_path):
    progress = Progress(tmp_path / "progress-0")
    progress.at("ж" * 500, 1)
    assert read_progress(tmp_path / "progress-0").doing.startswith("жжж")


def test_the_rank_that_others_wait_for_is_named():
    places = {
        0: Place(12, 31, 95.0, "sum_over_ranks (a step)"),
        1: Place(12, 30, 40.0, "loading a batch"),
        2: Place(12, 31, 95.0, "sum_over_ranks (a step)"),
    }
    told = who_is_missing(places, now=100.0)
    assert told.startswith("rank 1 did not come: at step 12 it is in loading a batch since 60 s")
    assert told.endswith("the others wait for it at step 12 in sum_over_ranks (a step)")


def test_nobody_is_blamed_when_all_stand_at_the_same_exchange():
    assert who_is_missing({0: Place(1, 5, 0.0, "x"), 1: Place(1, 5, 0.0, "x")}, 1.0) == ""
    assert who_is_missing({}, 1.0) == ""
