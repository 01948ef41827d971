"""The verb `split`: a set into two with no identity in common, one to train on and one held out.

Which identities are held out is a function of the seed and of their number, or said by a list of names or labels.
Labels are counted anew in both, in the old order; `labels_from.tsv` has a line `label <tab> 0 <tab> label there`, as of
`merge`. A set without names gets none: its old labels would be taken for names. Proven by
tests/tools/records/test_copies.py.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from recognition.data.dataset import RecordDataset
from recognition.data.plan import epoch_order
from recognition.errors import DataError, SettingsError
from tools.records.common_options import add_common, report, share, whole
from tools.records.names import identity_names
from tools.records.new_set import Selection, Writing, add_writing, source_facts, table_of, write_selection
from tools.records.output import new_folder, write_provenance
from tools.records.reorder import Sets, open_set

PARTS = ("train", "held_out")


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `split` to the verbs of a parser."""
    verb = verbs.add_parser("split", help="write a set as two, some identities held out")
    verb.set_defaults(verb=_split)
    verb.add_argument("set", type=Path, metavar="SET", help="folder of the set, or a .rec file")
    verb.add_argument("out", type=Path, metavar="OUT", help="folder that gets the sets train and held_out")
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument("--share", type=share, metavar="SHARE", help="hold out this share of the identities")
    which.add_argument("--list", type=Path, metavar="FILE", help="hold out these: a name or a label a line")
    verb.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, metavar="N", help="other identities for each")
    add_writing(verb)
    add_common(verb, threads=False)


def _split(options: argparse.Namespace) -> int:
    dataset = open_set(options.set)
    names = identity_names(dataset)
    present = np.unique(dataset.labels)
    if options.list:
        held, how_chosen = listed(options.list, present, names), {"list": options.list.name}
    else:
        held, how_chosen = drawn(options.share, present, options.seed), {"share": options.share, "seed": options.seed}
    facts = split(dataset, options.out, held, names, Writing(options.shards, options.memory), how_chosen,
                  options.replace)
    report(facts, "\n".join(str(table_of(facts[part], f"{options.out}/{part}")) for part in PARTS), options.json)
    return 0


def drawn(held_out: float, present: np.ndarray, seed: int) -> np.ndarray:
    """The labels held out, a share of those present, rounded, but at least one and not all."""
    if len(present) < 2:
        raise SettingsError(f"--share {held_out:g}; a set of {len(present)} identity cannot be split")
    count = min(max(1, round(held_out * len(present))), len(present) - 1)
    return np.sort(present[epoch_order(len(present), seed, 0, 0, count)])


def listed(path: Path, present: np.ndarray, names: dict[int, str] | None) -> np.ndarray:
    """The labels that a list says, by name where the set has names and else by number."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    known = {str(label): label for label in present.tolist()} if names is None else {
        names[label]: label for label in present.tolist()}
    wanted = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(lines, 1):
        if line.strip() and line.strip() not in known:
            kind = "label" if names is None else "name"
            raise DataError(f"{path}: line {number}: no identity with the {kind} {line.strip()[:60]!r} has images")
    held = np.unique([known[name] for name in wanted])
    if not 0 < len(held) < len(present):
        raise DataError(f"{path}: lists {len(held)} of {len(present)} identities; both parts need some")
    return held.astype(np.int64)


def split(
    dataset: RecordDataset, out: Path, held: np.ndarray, names: dict[int, str] | None, how: Writing,
    how_chosen: dict[str, Any], replace: bool = False,
) -> dict[str, Any]:
    """Write OUT/train and OUT/held_out and say what they are."""
    is_held = np.isin(dataset.labels, held)
    sources = Sets([dataset])
    facts: dict[str, Any] = {"set": str(dataset.root), **how_chosen}
    with new_folder(out, replace, [dataset.root]) as folder:
        for part, chosen in zip(PARTS, (~is_held, is_held), strict=True):
            (folder / part).mkdir()
            selection, old = _renumbered(dataset, chosen, names)
            facts[part] = write_selection(folder / part, sources, selection, how)
            with open(folder / part / "labels_from.tsv", "w", newline="\n") as file:
                file.writelines(f"{new}\t0\t{label}\n" for new, label in enumerate(old.tolist()))
        write_provenance(folder, "split", {**how_chosen, "sources": [source_facts(dataset)]})
    return facts


def _renumbered(
    dataset: RecordDataset, chosen: np.ndarray, names: dict[int, str] | None
) -> tuple[Selection, np.ndarray]:
    """The chosen samples under labels from 0, and the old label of each new one, integers [classes]."""
    sample = np.flatnonzero(chosen)
    old, label = np.unique(dataset.labels[sample], return_inverse=True)
    kept = None if names is None else {new: names[number] for new, number in enumerate(old.tolist())}
    return Selection(sample, label, len(old), kept), old
