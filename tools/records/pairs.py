"""The verb `pairs`: a `.bin` verification set, from a list of pairs or drawn at random.

The list is LFW's (eval/pair_list.py). What is written is what every reader of such sets expects: a pickle, protocol 2,
of (2N encoded images, N booleans). Beside OUT.bin, OUT.txt has the pairs as such a list.
Proven by tests/tools/records/test_pairs.py.
"""

import argparse
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prettytable import PrettyTable
from tqdm import tqdm

from eval.pair_list import NamedPair, read_pair_list
from eval.safe_pickle import MAX_IMAGES, load_pairs
from recognition.data.align import SIZE
from recognition.data.image_file import ImageError, decode_rgb
from recognition.errors import DataError, SettingsError
from tools.records.common_options import add_common, report, whole
from tools.records.draw_pairs import FOLDS, Face, draw_pairs
from tools.records.faces import Faces, Picture, open_faces
from tools.records.output import new_file


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `pairs` to the verbs of a parser."""
    verb = verbs.add_parser("pairs", help="write a .bin verification set, from a list of pairs or drawn")
    verb.set_defaults(verb=_pairs)
    verb.add_argument("source", type=Path, metavar="SOURCE", help=f"folder per identity, of {SIZE}×{SIZE} faces, or "
                      "a set")
    verb.add_argument("out", type=Path, metavar="OUT.bin", help="the verification set")
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument("--list", type=Path, metavar="FILE", help="the pairs, in the form of LFW's pairs.txt")
    which.add_argument("--random", type=whole(2 * FOLDS, MAX_IMAGES // 2), metavar="N", help="draw N pairs, half "
                       "of them genuine, in ten folds with people of their own")
    verb.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, metavar="N", help="other pairs for each")
    verb.add_argument("--replace", action="store_true", help="replace OUT.bin and OUT.txt")
    add_common(verb, threads=False)


def _pairs(options: argparse.Namespace) -> int:
    faces = open_faces(options.source)
    chosen = read_pair_list(options.list)[0] if options.list else drawn(faces, options.random, options.seed)
    where = f"{options.list}: line" if options.list else "pair"
    facts = {"source": str(options.source), **write_pairs(faces, chosen, options.out, options.replace, where)}
    table = PrettyTable(["set", facts["set"]], align="l")
    for name in ("pairs", "genuine", "impostor", "identities", "images", "images_used_again", "bytes"):
        table.add_row([name.replace("_", " "), f"{facts[name]:,}"])
    report(facts, str(table), options.json)
    return 0


def drawn(faces: Faces, count: int, seed: int) -> list[NamedPair]:
    """Pairs at random."""
    pairs = draw_pairs([faces.count(name) for name in faces.names], count, seed)
    numbers: dict[int, list[int]] = {}
    for person in {face[0] for pair in pairs for face in pair}:
        numbers[person] = list(faces.pictures(faces.names[person]))

    def named(face: Face) -> tuple[str, int]:
        return faces.names[face[0]], numbers[face[0]][face[1]]

    return [NamedPair(named(first), named(second), line) for line, (first, second) in enumerate(pairs, 1)]


def write_pairs(
    faces: Faces, pairs: Sequence[NamedPair], out: Path, replace: bool = False, where: str = "pair"
) -> dict[str, Any]:
    """Write OUT.bin and OUT.txt and say what is in them.

    A face that is missing, or no picture of a face's size, is a DataError; `where` and the pair's line begin its text.
    """
    if out.suffix != ".bin":
        raise SettingsError(f"{out}: expected a name that ends in .bin")
    listed = out.with_suffix(".txt")
    with new_file(out, replace) as writing, new_file(listed, replace) as writing_list:
        images = _images(faces, pairs, where)
        writing.write_bytes(pickle.dumps((images, [pair.same for pair in pairs]), protocol=2))
        load_pairs(writing)  # nobody could use a set that the evaluation refuses
        with open(writing_list, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.writelines(_line(pair) for pair in pairs)
        size = writing.stat().st_size
    sides = [face for pair in pairs for face in (pair.first, pair.second)]
    genuine = sum(pair.same for pair in pairs)
    return {
        "set": str(out), "list": str(listed), "pairs": len(pairs), "genuine": genuine, "impostor": len(pairs) - genuine,
        "identities": len({name for name, _ in sides}), "images": len(set(sides)),
        "images_used_again": len(sides) - len(set(sides)), "bytes": size,
    }


def _line(pair: NamedPair) -> str:
    names = (pair.first[0], str(pair.first[1])), (pair.second[0], str(pair.second[1]))
    return "\t".join((*names[0], names[1][1]) if pair.same else (*names[0], *names[1])) + "\n"


def _images(faces: Faces, pairs: Sequence[NamedPair], where: str) -> list[bytes]:
    """The encoded images, two a pair; each picture is read once and decoded to see that it can be."""
    known: dict[str, dict[int, Picture]] = {}
    read: dict[tuple[str, int], bytes] = {}
    existing = set(faces.names)
    images = []
    for pair in tqdm(pairs, unit=" pairs", disable=None):
        for name, number in (pair.first, pair.second):
            if name not in existing:
                raise DataError(f"{where} {pair.line}: nobody is called {name!r} in the source")
            if name not in known:
                known[name] = faces.pictures(name)
            pictures = known[name]
            if number not in pictures:
                raise DataError(f"{where} {pair.line}: {name!r} has no picture {number}, but {_some(pictures)}")
            if (name, number) not in read:
                read[name, number] = _checked(pictures[number])
            images.append(read[name, number])
    return images


def _some(pictures: dict[int, Picture]) -> str:
    numbers = sorted(pictures)
    return ", ".join(map(str, numbers[:8])) + (" …" if len(numbers) > 8 else "")


def _checked(picture: Picture) -> bytes:
    try:
        encoded = picture.read()
        height, width = decode_rgb(encoded).shape[:2]
    except OSError as error:
        raise DataError(f"{picture.name}: {error.strerror}") from error
    except ImageError as error:
        raise DataError(f"{picture.name}: {error}") from error
    if (height, width) != (SIZE, SIZE):
        raise DataError(f"{picture.name}: {width}×{height} pixels; evaluation takes {SIZE}×{SIZE}: "
                        "`rec_builder.py build --align` or `--detect` makes a set of such faces")
    return encoded
