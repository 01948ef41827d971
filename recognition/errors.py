"""Failures that a user can act on, each with the exit status that says what kind it is.

A command prints such a failure as one line on standard error and ends with its status; anything else is a fault of
the program and keeps its traceback. `--debug` (or the environment variable DEBUG=1) shows the traceback of both.
Imports nothing of the project. Proven by tests/recognition/test_errors.py.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence


class TrainerError(Exception):
    """A failure with a known cause. The message is one line that names the file or the setting at fault."""

    status = 1


class SettingsError(TrainerError):
    """Settings that cannot be run."""

    status = 2


class DataError(TrainerError):
    """Data that is damaged or not what it claims to be: `FILE: record K @ offset N: reason`."""

    status = 3


class CheckpointError(TrainerError):
    """No checkpoint that can be trusted."""

    status = 4


class NumericsError(TrainerError):
    """Numbers that are not finite, or replicas that differ."""

    status = 5


class DistributedError(TrainerError):
    """A rank failed, hung, or left the others behind."""

    status = 6


def debugging() -> bool:
    """Whether tracebacks of known failures are wanted."""
    return os.environ.get("DEBUG", "") not in ("", "0")


def run_command(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None = None) -> None:
    """Run a command's `main` on its arguments and leave the process with its exit status.

    A TrainerError becomes one line on standard error and its own status. A closed pipe ends quietly.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in arguments:
        arguments.remove("--debug")
        os.environ["DEBUG"] = "1"  # the environment takes it to the ranks that a command starts
    try:
        sys.exit(main(arguments) or 0)
    except TrainerError as error:
        if debugging():
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
