"""The options of the commands that take pictures as they come. Proven by tests/eval/test_embed_command.py."""

import argparse
from pathlib import Path

from eval.pictures import FaceMaker


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Add what is done to pictures that are no aligned faces of 112×112."""
    parser.add_argument("--detect", type=Path, metavar="YUNET", help="find and align the face with this YuNet model")
    parser.add_argument("--resize", action="store_true", help="take whole pictures of any size")


def face_maker(options: argparse.Namespace, threads: int) -> FaceMaker:
    """What makes faces of pictures as parsed options say, for so many threads; SettingsError as FaceMaker."""
    return FaceMaker(options.detect, options.resize, threads)
