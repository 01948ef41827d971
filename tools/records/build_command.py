"""The verb `build` of tools/rec_builder.py: its options, and what it prints.

Proven by tests/tools/test_rec_builder.py.
"""

import argparse
from pathlib import Path

from prettytable import PrettyTable

from tools.records import build
from tools.records.common_options import add_common, report, share, whole


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `build` to the verbs of a parser."""
    verb = verbs.add_parser("build", help="write a set from a folder per identity")
    verb.set_defaults(verb=_build)
    verb.add_argument("source", type=Path, metavar="SOURCE", help="folder with one folder of images per identity")
    verb.add_argument("out", type=Path, metavar="OUT", help="folder of the set; an earlier build there is replaced")
    verb.add_argument("--shards", type=int, default=1, metavar="N", help="write train_00.rec … instead of train.rec")
    verb.add_argument("--resize", type=whole(1, 4096), metavar="SIDE",
                      help="give every image SIDE × SIDE pixels (no alignment)")
    verb.add_argument("--quality", type=whole(1, 100), metavar="1-100", help="encode every image as JPEG of this "
                      f"quality; without it JPEG files are copied and others encoded at {build.DEFAULT_QUALITY}")
    verb.add_argument("--max-unreadable", type=share, metavar="SHARE", help="more unreadable images than this share "
                      f"stop the build with status 3 (default: {build.DEFAULT_UNREADABLE_SHARE:g}, but never for up to "
                      f"{build.DEFAULT_UNREADABLE_IMAGES} images)")
    add_common(verb)


def _build(options: argparse.Namespace) -> int:
    settings = build.BuildSettings(
        options.shards, options.resize, options.quality, options.max_unreadable, options.threads)
    done = build.build(options.source, options.out, settings)
    table = PrettyTable(["set", done["set"]], align="l")
    for name in ("images", "identities", "height", "width", "shards", "bytes"):
        table.add_row([name, f"{done[name]:,}"])
    table.add_row(["unreadable images, left out", len(done["unreadable"])])
    table.add_row(["identities left out with them", done["identities_without_readable_image"]])
    table.add_row(["other files, not looked at", len(done["ignored"])])
    report(done, str(table), options.json)
    return 0
