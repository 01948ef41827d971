"""The verb `shuffle`: the images of a set in a random order, all over the set.

For readers that only go through a file from its beginning to its end; the trainer's own order is global anyway. The
order is a function of the seed and the number of images. Proven by tests/tools/records/test_copies.py.
"""

import argparse
from pathlib import Path
from typing import Any

from recognition.data.plan import epoch_order
from tools.records.common_options import add_common, report, whole
from tools.records.names import identity_names
from tools.records.new_set import Selection, Writing, add_writing, source_facts, table_of, write_selection
from tools.records.output import new_folder, write_provenance
from tools.records.reorder import Sets, open_set


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `shuffle` to the verbs of a parser."""
    verb = verbs.add_parser("shuffle", help="write the images of a set in a random order, for readers in sequence")
    verb.set_defaults(verb=_shuffle)
    verb.add_argument("set", type=Path, metavar="SET", help="folder of the set, or a .rec file")
    verb.add_argument("out", type=Path, metavar="OUT", help="folder of the new set")
    verb.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, metavar="N", help="another order for each")
    add_writing(verb)
    add_common(verb, threads=False)


def _shuffle(options: argparse.Namespace) -> int:
    how = Writing(options.shards, options.memory, plain=True)
    facts = shuffle(options.set, options.out, options.seed, how, options.replace)
    report(facts, str(table_of(facts, facts["set"])), options.json)
    return 0


def shuffle(root: Path, out: Path, seed: int, how: Writing, replace: bool = False) -> dict[str, Any]:
    """Write the shuffled set to `out` and say what it is."""
    dataset = open_set(root)
    order = epoch_order(dataset.num_images, seed, 0)
    chosen = Selection(order, dataset.labels[order], dataset.num_classes, identity_names(dataset))
    with new_folder(out, replace, [root]) as folder:
        facts = write_selection(folder, Sets([dataset]), chosen, how)
        write_provenance(folder, "shuffle", {"seed": seed, "sources": [source_facts(dataset)]})
    return {"set": str(out), "seed": seed, **facts}
