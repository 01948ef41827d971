"""Build, verify and inspect RecordIO training sets.

    python tools/rec_builder.py build SOURCE OUT   a folder per identity -> train.rec, .idx, .lst, property, labels.tsv
    python tools/rec_builder.py verify SET         framing, index, labels, every image; status 3 if anything is wrong
    python tools/rec_builder.py inspect SET        what is in it, in tables

A SET is a folder with train.rec (or several shards), or a .rec file. Each verb prints JSON instead with `--json`, or
writes it with `--json FILE`. Proven by tests/tools/test_rec_builder.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2

from recognition.data.dataset import open_dataset
from recognition.errors import DataError, run_command
from tools.records import build_command, merge, shuffle, split, summary, verify
from tools.records.common_options import add_common, report


def main(arguments: Sequence[str]) -> int:
    """Run one verb; 0, or 3 when `verify` found a problem."""
    options = _parser().parse_args(arguments)
    status: int = options.verb(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rec_builder.py", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    build_command.add_verb(verbs)

    verb = verbs.add_parser("inspect", help="say what is in a set")
    verb.set_defaults(verb=_inspect)
    verb.add_argument("set", type=Path, metavar="SET", help="folder of the set, or a .rec file")
    verb.add_argument("--sheet", type=Path, metavar="PNG", help="write a contact sheet of identities")
    add_common(verb, threads=False)

    for module in (verify, shuffle, merge, split):
        module.add_verb(verbs)
    return parser


def _inspect(options: argparse.Namespace) -> int:
    dataset = open_dataset(options.set)
    facts = summary.summarise(dataset)
    if options.sheet:
        sheet = cv2.cvtColor(summary.contact_sheet(dataset), cv2.COLOR_RGB2BGR)
        if options.sheet.suffix.lower() != ".png" or not cv2.imwrite(str(options.sheet), sheet):
            raise DataError(f"{options.sheet}: could not be written; expected the name of a .png file in a folder")
        facts["sheet"] = str(options.sheet)
    report(facts, summary.tables(facts), options.json)
    return 0


if __name__ == "__main__":
    run_command(main)
