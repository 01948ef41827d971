"""The verb `inspect` of tools/rec_builder.py: its options, and what it prints and draws.

Proven by tests/tools/test_rec_builder.py and tests/tools/records/test_inspect.py.
"""

import argparse
from pathlib import Path

import cv2

from recognition.errors import SettingsError
from tools.records import summary
from tools.records.common_options import add_common, report
from tools.records.histogram import draw_histogram
from tools.records.output import new_file
from tools.records.reorder import open_set


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `inspect` to the verbs of a parser."""
    verb = verbs.add_parser("inspect", help="say what is in a set")
    verb.set_defaults(verb=_inspect)
    verb.add_argument("set", type=Path, metavar="SET", help="folder of the set, or a .rec file")
    verb.add_argument("--sheet", type=Path, metavar="PNG", help="write a contact sheet of identities")
    verb.add_argument("--histogram", type=Path, metavar="PNG", help="draw how many identities have how many images")
    verb.add_argument("--replace", action="store_true", help="replace pictures that exist")
    add_common(verb, threads=False)


def _inspect(options: argparse.Namespace) -> int:
    for picture in (options.sheet, options.histogram):
        if picture and picture.suffix.lower() != ".png":
            raise SettingsError(f"{picture}: expected the name of a .png file")
    dataset = open_set(options.set)
    facts = summary.summarise(dataset)
    if options.sheet:
        with new_file(options.sheet, options.replace) as writing:
            cv2.imwrite(str(writing), cv2.cvtColor(summary.contact_sheet(dataset), cv2.COLOR_RGB2BGR))
        facts["sheet"] = str(options.sheet)
    if options.histogram:
        with new_file(options.histogram, options.replace) as writing:
            draw_histogram(facts, writing)
        facts["histogram"] = str(options.histogram)
    report(facts, summary.tables(facts), options.json)
    return 0
