"""Known failures are one line and their status, faults of the program keep their traceback."""

import pytest

from recognition import errors
from recognition.errors import run_command


def _status(main, arguments=()) -> int:
    with pytest.raises(SystemExit) as caught:
        run_command(main, list(arguments))
    return int(caught.value.code or 0)


@pytest.mark.parametrize(("kind", "status"), [
    ("SettingsError", 2), ("DataError", 3), ("CheckpointError", 4), ("NumericsError", 5), ("DistributedError", 6),
])
def test_known_failures(capsys, monkeypatch, kind, status):
    monkeypatch.delenv("DEBUG", raising=False)

    def main(_):
        raise getattr(errors, kind)("a.rec: record 3 @ offset 7: bad magic")

    assert _status(main) == status
    assert capsys.readouterr().err == "error: a.rec: record 3 @ offset 7: bad magic\n"


def test_debug_shows_the_traceback_and_is_not_an_argument(capsys, monkeypatch):
    monkeypatch.setenv("DEBUG", "")

    def main(arguments):
        assert arguments == ["x"]
        raise errors.DataError("bad")

    assert _status(main, ["x", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_success_interrupt_and_bugs():
    def interrupted(_):
        raise KeyboardInterrupt

    def bug(_):
        raise ZeroDivisionError

    assert _status(lambda _: None) == 0
    assert _status(lambda _: 7) == 7
    assert _status(interrupted) == 130
    with pytest.raises(ZeroDivisionError):
        run_command(bug, [])
