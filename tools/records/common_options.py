"""What all verbs of tools/rec_builder.py share: the options `--threads` and `--json`, bounded numbers, and the report.

Proven by tests/tools/test_rec_builder.py.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def whole(least: int, most: int) -> Callable[[str], int]:
    """A type of argparse options: a whole number in [least, most]."""

    def parse(text: str) -> int:
        if not least <= (number := int(text)) <= most:
            raise argparse.ArgumentTypeError(f"{text}; expected {least} to {most}")
        return number

    return parse


def share(text: str) -> float:
    """A type of argparse options: a number in [0, 1]."""
    if not 0 <= (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text}; expected 0 to 1")
    return number


def add_common(verb: argparse.ArgumentParser, threads: bool = True) -> None:
    """Add `--threads`, where the verb has any, and `--json`."""
    if threads:
        verb.add_argument("--threads", type=whole(1, 1024), metavar="N", help="threads (default: one a core)")
    verb.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON instead of tables, or to FILE")


def report(facts: Any, text: str, target: str | None) -> None:
    """Print the text, or the facts as JSON; a file gets the JSON beside the printed text."""
    if target == "-":
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    print(text)
    if target:
        Path(target).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
