"""Build, check and change RecordIO training sets, and make verification sets.

    python tools/rec_builder.py build SOURCE OUT         pictures -> train.rec, .idx, .crc, .lst, property, labels.tsv
    python tools/rec_builder.py inspect SET              what is in it, in tables and pictures
    python tools/rec_builder.py verify SET               framing, index, labels, checksums, every image; status 3 if
                                                         anything is wrong; --repair OUT copies what is right
    python tools/rec_builder.py index SET                index and checksums anew, from the .rec
    python tools/rec_builder.py shuffle SET OUT          the images in a random order
    python tools/rec_builder.py merge OUT SET SET…       several sets as one, by name or in label ranges
    python tools/rec_builder.py split SET OUT --share S  OUT/train and OUT/held_out, no identity in both
    python tools/rec_builder.py pairs FACES OUT.bin      a verification set: --list PAIRS.txt or --random N

A SET is a folder with train.rec (or several shards), or a .rec file. Each verb prints JSON instead with `--json`, or
writes it with `--json FILE`. A new verb is a file in tools/records/ with `add_verb`, and its name here.
Proven by tests/tools/test_rec_builder.py and tests/tools/records/.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recognition.errors import run_command
from tools.records import build_command, inspect_command, merge, pairs, reindex, shuffle, split, verify


def main(arguments: Sequence[str]) -> int:
    """Run one verb; 0, or 3 when `verify` found a problem."""
    options = _parser().parse_args(arguments)
    status: int = options.verb(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rec_builder.py", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    for module in (build_command, inspect_command, verify, reindex, shuffle, merge, split, pairs):
        module.add_verb(verbs)
    return parser


if __name__ == "__main__":
    run_command(main)
