"""The verb `verify`: framing, index, labels, checksums and every image, with all problems found and not only the first.

Opening a set (recognition/data/dataset.py) stops at its first fault; this walks every shard record by record, finds its
way again after damaged framing, decodes every image, and in the end opens the set as a run would. Problems are what a
run would refuse or stumble over; warnings are hints of the layout (header record, identity records, image count in
`property`) that disagree with what is there and mislead other readers. `--repair` writes what is left without the bad
records. Proven by tests/tools/test_rec_builder.py and tests/tools/records/test_verify.py.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from recognition.data.dataset import Property, find_shards, open_dataset, read_property
from recognition.errors import DataError, SettingsError
from tools.records.common_options import add_common, report
from tools.records.findings import Findings, reason_of, sentence
from tools.records.new_set import Writing, add_writing
from tools.records.repair import repair
from tools.records.shard_check import ShardCheck


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `verify` to the verbs of a parser."""
    verb = verbs.add_parser("verify", help="check framing, index, labels, checksums and every image")
    verb.set_defaults(verb=_verify)
    verb.add_argument("set", type=Path, metavar="SET", help="folder of the set, or a .rec file")
    verb.add_argument("--repair", type=Path, metavar="OUT", help="write a copy without the bad records to the folder "
                      "OUT; status 0 then says that the copy is whole")
    add_writing(verb)
    add_common(verb)


def _verify(options: argparse.Namespace) -> int:
    if options.replace and not options.repair:
        raise SettingsError("--replace without --repair: nothing is written")
    findings, checks = check(options.set, options.threads)
    facts: dict[str, Any] = {"root": str(options.set)}
    if options.repair:  # which may find something, too
        how = Writing(options.shards, options.memory)
        facts["repair"] = repair(options.set, checks, findings, options.repair, how, options.replace)
    facts.update(vars(findings))
    lines = [sentence(problem) for problem in findings.problems]
    lines += [f"warning: {sentence(warning)}" for warning in findings.warnings]
    compared = f", {findings.compared:,} checksums compared" if findings.compared else ", no checksums"
    lines.append(f"{options.set}: {findings.records:,} records, {findings.images:,} images, "
                 f"{len(findings.problems)} problems, {len(findings.warnings)} warnings{compared}")
    if options.repair:
        lines.append(f"{options.repair}: {facts['repair']['images']:,} images; what was left out is in left_out.tsv")
    report(facts, "\n".join(lines), options.json)
    return DataError.status if findings.problems and not options.repair else 0


def verify(root: Path, threads: int | None = None) -> Findings:
    """Check all of a set, decoding every image on all cores or `threads` of them."""
    return check(root, threads)[0]


def check(root: Path, threads: int | None = None) -> tuple[Findings, list[ShardCheck]]:
    """What `verify` finds, and the walks over the shards, which know the good images."""
    findings = Findings()
    paths = find_shards(root)
    try:
        stated = read_property(paths[0].parent / "property")
    except DataError as error:
        findings.problem(paths[0].parent / "property", None, None, reason_of(paths[0].parent / "property", error))
        stated = Property()
    checks = [ShardCheck(path, stated, findings) for path in paths]
    for walk in checks:
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            walk.run(pool)
    if stated.num_images is not None and stated.num_images != findings.images:
        reason = f"states {stated.num_images} images; the shards have {findings.images}"
        findings.warning(paths[0].parent / "property", None, None, reason)
    if not findings.problems:
        try:
            open_dataset(root, sidecar="ignore")
        except DataError as error:
            findings.problem(root, None, None, str(error))
    return findings, checks
