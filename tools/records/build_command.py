"""The verb `build` of tools/rec_builder.py: its options, and what it prints.

Proven by tests/tools/records/test_build.py.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from prettytable import PrettyTable

from recognition.data.align import SIZE
from recognition.data.face_detector import MIN_SCORE
from tools.records import build
from tools.records.common_options import add_common, report, share, whole
from tools.records.prepare import DEFAULT_QUALITY, PictureSettings
from tools.records.set_writer import ShardSettings

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SHOWN = 5  # examples of what was left out; all are in the files and in --json


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `build` to the verbs of a parser."""
    verb = verbs.add_parser(
        "build", help="write a set from folders, archives or lists of pictures",
        description="Write a set. An interrupted build goes on when the same command is given again.")
    verb.set_defaults(verb=_build)
    verb.add_argument("source", type=Path, metavar="SOURCE", help="folder with a folder of images per identity, .zip "
                      "or .tar of one, LMDB, or a list: .lst, .csv, .parquet")
    verb.add_argument("out", type=Path, metavar="OUT", help="folder of the set; an earlier build there is replaced")
    verb.add_argument("--images", type=Path, metavar="ROOT", help="folder, .zip, .tar or LMDB that the paths of a list "
                      "are in (default: the list's folder)")
    shards = verb.add_mutually_exclusive_group()
    shards.add_argument("--shards", type=int, default=1, metavar="N", help="write train_00.rec … instead of train.rec")
    shards.add_argument("--shard-bytes", type=_bytes, metavar="SIZE", help="write shards of at most this size, as 2G")
    verb.add_argument("--size", type=whole(1, 4096), metavar="SIDE", help="images of the set have SIDE × SIDE pixels "
                      f"(default: {SIZE}, the only size that training takes); others are left out as unreadable")
    verb.add_argument("--resize", type=whole(1, 4096), metavar="SIDE", help="give every image SIDE × SIDE pixels (no "
                      "alignment)")
    verb.add_argument("--align", type=Path, metavar="CSV", help="align faces from the landmarks path,x1,y1,…,x5,y5")
    verb.add_argument("--detect", type=Path, metavar="ONNX", help="find the largest central face by a YuNet model and "
                      "align it; with --align only in pictures that the CSV lacks")
    verb.add_argument("--min-score", type=share, default=MIN_SCORE, metavar="SCORE", help="faces below it are none "
                      "(default: %(default)s)")
    verb.add_argument("--quality", type=whole(1, 100), metavar="1-100", help="encode every image as JPEG of this "
                      f"quality; without it JPEG is copied and others encoded at {DEFAULT_QUALITY}")
    verb.add_argument("--keep-encoding", action="store_true", help="copy PNG, BMP and WebP too (no loss, larger)")
    verb.add_argument("--min-images", type=whole(1, 1 << 30), default=1, metavar="N", help="leave out identities with "
                      "fewer images that can be used (default: 1)")
    verb.add_argument("--max-unreadable", type=share, metavar="SHARE", help="more unreadable images than this share "
                      f"stop the build with status 3 (default: {build.DEFAULT_UNREADABLE_SHARE:g}, but never for up to "
                      f"{build.DEFAULT_UNREADABLE_IMAGES} images)")
    verb.add_argument("--workers", "--threads", type=whole(1, 1024), metavar="N", help="processes (default: one a "
                      "core)")
    add_common(verb, threads=False)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)B?", text.strip().upper())
    if not match or (size := int(match[1]) * _UNITS[match[2]]) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text}; expected a size from 64K on, as 500M or 2G")
    return size


def _build(options: argparse.Namespace) -> int:
    picture = PictureSettings(
        options.resize or options.size or SIZE, options.resize is not None, options.align is not None, options.detect,
        options.min_score, options.quality, options.keep_encoding)
    shard = ShardSettings(options.shards, options.shard_bytes, options.min_images)
    settings = build.BuildSettings(
        picture, shard, options.images, options.align, options.max_unreadable, options.workers)
    done = build.build(options.source, options.out, settings)
    report(done, _tables(done), options.json)
    return 0


def _tables(done: dict[str, Any]) -> str:
    table = PrettyTable(["set", done["set"]], align="l")
    for name in ("images", "identities", "height", "width", "shards", "bytes"):
        table.add_row([name, f"{done[name]:,}"])
    table.add_row(["labels", done["labels"]])
    anew = ", ".join(f"{count:,} {kind}" for kind, count in sorted(done["encoded"].items()))
    table.add_row(["copied, encoded as JPEG", f"{done['copied']:,}, {anew or 0}"])
    table.add_row(["unreadable images, left out", f"{len(done['unreadable']):,}"])
    table.add_row(["identities left out with them", f"{done['identities_without_readable_image']:,}"])
    for name, text in (("without_face", "images without a face, left out"),):
        if done[name]:
            table.add_row([text, f"{len(done[name]):,}"])
    if done["identities_below_min_images"]:
        table.add_row(["identities with too few images", f"{done['identities_below_min_images']:,}"])
    repeated = done["repeated_under_other_labels"]
    table.add_row(["images that stand under other labels too", f"{repeated['images']:,}"])
    table.add_row(["other files, not looked at", f"{len(done['ignored']):,}"])
    lines = [f"the same image: {first} and {second}" for first, second in repeated["examples"][:_SHOWN]]
    return "\n".join([str(table), *lines, *done["notes"]])
