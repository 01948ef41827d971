"""The verb `merge`: several sets as one, identities joined by their names or kept apart in label ranges.

By name an identity of two sets gets one label and all its images; every set must have names then, and where all names
of a set are numbers, which others have too by chance, the user must say that they mean persons (`--by-name`). With
`--separate`
the labels of each set follow those of the one before, and nobody is joined. Labels go by the order of the sets, then by
the old labels; identities without images get none. Beside the set stands `labels_from.tsv`, a line
`label <tab> number of the source <tab> label there`. Proven by tests/tools/records/test_copies.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recognition.data.dataset import RecordDataset
from recognition.errors import SettingsError
from tools.records.common_options import add_common, report
from tools.records.names import identity_names, set_name
from tools.records.new_set import Selection, Writing, add_writing, source_facts, table_of, write_selection
from tools.records.output import new_folder, write_provenance
from tools.records.reorder import Sets, open_set


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `merge` to the verbs of a parser."""
    verb = verbs.add_parser("merge", help="write several sets as one, identities joined by name or kept apart")
    verb.set_defaults(verb=_merge)
    verb.add_argument("out", type=Path, metavar="OUT", help="folder of the new set")
    verb.add_argument("sets", type=Path, nargs="+", metavar="SET", help="folders of sets, or .rec files")
    who = verb.add_mutually_exclusive_group()
    who.add_argument("--separate", action="store_true", help="join nobody: a range of labels for each set")
    who.add_argument("--by-name", action="store_true", help="join by names that are numbers, too: the same number is "
                     "the same person in all sets")
    add_writing(verb)
    add_common(verb, threads=False)


def _merge(options: argparse.Namespace) -> int:
    how = Writing(options.shards, options.memory)
    facts = merge(options.sets, options.out, options.separate, how, options.replace, options.by_name)
    table = table_of(facts, facts["set"])
    table.add_row(["identities joined", f"{facts['joined']:,}"])
    for source in facts["sources"]:
        table.add_row([f"from {source['set']}", f"{source['images']:,} images; {source['labels']}"])
    report(facts, str(table), options.json)
    return 0


def merge(
    roots: Sequence[Path], out: Path, separate: bool, how: Writing, replace: bool = False, by_name: bool = False
) -> dict[str, Any]:
    """Write the merged set to `out` and say what it is; SettingsError where it is not known who is who (`_check_names`)
    and for a .rec file that is given twice.
    """
    datasets = [open_set(root) for root in roots]
    _check_files(datasets)
    names = [identity_names(dataset) for dataset in datasets]
    if not separate:
        _check_names(datasets, names, by_name)
    new_labels, new_names = _labels(datasets, names, separate)
    label = np.concatenate([new[dataset.labels] for new, dataset in zip(new_labels, datasets, strict=True)])
    sample = np.argsort(label, kind="stable")
    sources = []
    for dataset, new in zip(datasets, new_labels, strict=True):
        used = new[new >= 0]
        sources.append({**source_facts(dataset), "labels": f"{used.min()} to {used.max()}"})
    joined = sum(int((new >= 0).sum()) for new in new_labels) - len(new_names)
    with new_folder(out, replace, roots) as folder:
        chosen = Selection(sample, label[sample], len(new_names), dict(enumerate(new_names)))
        facts = write_selection(folder, Sets(datasets), chosen, how)
        with open(folder / "labels_from.tsv", "w", newline="\n") as file:
            for number, new in enumerate(new_labels):
                file.writelines(f"{new[old]}\t{number}\t{old}\n" for old in np.flatnonzero(new >= 0).tolist())
        write_provenance(folder, "merge", {"separate": separate, "sources": sources})
    return {"set": str(out), "separate": separate, "joined": joined, "sources": sources, **facts}


def _check_files(datasets: Sequence[RecordDataset]) -> None:
    """Refuse a .rec file that would be read twice, by whatever path: all its images would be there twice."""
    seen: set[Path] = set()
    for path in (path for dataset in datasets for path in dataset.paths):
        if path.resolve() in seen:
            raise SettingsError(f"{path}: given twice; a set is merged once")
        seen.add(path.resolve())


def _check_names(
    datasets: Sequence[RecordDataset], names: Sequence[dict[int, str] | None], by_name: bool
) -> None:
    """Refuse to join sets without names, and unless asked (`by_name`) those of which one has nothing but numbers."""
    nameless = [str(dataset.root) for dataset, known in zip(datasets, names, strict=True) if known is None]
    if nameless:
        raise SettingsError(f"{', '.join(nameless)}: no labels.tsv and no list file, so nobody knows who is who; "
                            "--separate keeps the sets' labels apart")
    if by_name or len(datasets) == 1:
        return
    for dataset, known in zip(datasets, names, strict=True):
        if known and all(name.isdecimal() for name in known.values()):
            raise SettingsError(f"{dataset.root}: all names are numbers, and the same number may be another person in "
                                "another set; --separate keeps the sets' labels apart, --by-name joins equal numbers")


def _labels(
    datasets: Sequence[RecordDataset], names: Sequence[dict[int, str] | None], separate: bool
) -> tuple[list[np.ndarray], list[str]]:
    """New labels by old ones, int64 [classes] a set, −1 for classes without images; and the names by new label."""
    prefixes = _prefixes(datasets) if separate else [""] * len(datasets)
    label_of: dict[str, int] = {}
    new_labels = []
    for dataset, known, prefix in zip(datasets, names, prefixes, strict=True):
        new = np.full(dataset.num_classes, -1, np.int64)
        for old in np.unique(dataset.labels).tolist():
            name = prefix + (str(old) if known is None else known[old])
            new[old] = label_of.setdefault(name, len(label_of))
        new_labels.append(new)
    return new_labels, list(label_of)


def _prefixes(datasets: Sequence[RecordDataset]) -> list[str]:
    """What stands before the names of each set so that no two sets share one: SET/ or, for namesakes, SET-2/."""
    prefixes: list[str] = []
    for dataset in datasets:
        name = base = set_name(dataset.root)
        number = 1
        while f"{name}/" in prefixes:
            number += 1
            name = f"{base}-{number}"
        prefixes.append(f"{name}/")
    return prefixes
