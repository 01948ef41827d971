"""Look into the checkpoints of a run, check them, cut them anew, take the backbone out of one, make one of others'.

    python tools/checkpoint.py list PATH                     step, size, score, and whether each verifies
    python tools/checkpoint.py verify PATH                   every byte of each; status 4 when one is not good
    python tools/checkpoint.py inspect PATH                  tensors, files, settings
    python tools/checkpoint.py reshard PATH OUT --ranks N    the same save with N row files, in the folder OUT
    python tools/checkpoint.py extract-backbone PATH OUT.pt  a model file that evaluation and export read
    python tools/checkpoint.py import FOLDER OUT --network r50   arcface_torch's checkpoint_gpu_*.pt as a save, in OUT

PATH is a run's folder, its folder of checkpoints, or one save; the verbs that want one save take the newest good one.
Each prints JSON instead with `--json`, or writes it with `--json FILE`. Nothing in a checkpoint is executed.
Proven by tests/tools/test_checkpoint_tool.py.
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prettytable import PrettyTable
from torch import Tensor

from eval.snapshots import backbone_settings
from recognition import checkpoint
from recognition.backbones.model_file import module_with, save_model
from recognition.checkpoint import Keep, Saved
from recognition.checkpoint.layout import STATE, read_json, row_range, step_folder
from recognition.checkpoint.snapshot import Content
from recognition.checkpoint.tensor_file import Blocks, read_header
from recognition.checkpoint.writing import Writing
from recognition.distributed import Ranks
from recognition.errors import CheckpointError, SettingsError, run_command
from recognition.heads.centers import shard_range
from tools.import_checkpoint import import_checkpoint
from tools.records.common_options import add_common, report

CLASSES_AT_ONCE = 1 << 16


def main(arguments: Sequence[str]) -> int:
    """Run one verb; 0, or 4 when `verify` found a save that is not good."""
    options = _parser().parse_args(arguments)
    status: int = options.verb(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="checkpoint.py", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(
        name: str, function: Any, help: str, path: str = "a run's folder, its checkpoints, or one save"
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help)
        added.set_defaults(verb=function)
        added.add_argument("path", type=Path, metavar="PATH", help=path)
        add_common(added, threads=False)
        return added

    verb("list", _list, "step, size and score of each save, and whether it verifies")
    verb("verify", _verify, "check every byte of each save; status 4 when one is not good")
    verb("inspect", _inspect, "tensors, files and settings of a save")
    added = verb("reshard", _reshard, "write a save anew with another number of row files")
    added.add_argument("out", type=Path, metavar="OUT", help="folder in which the save's own folder is made")
    added.add_argument("--ranks", type=int, required=True, metavar="N", help="row files; a run needs no certain number")
    added = verb("extract-backbone", _extract, "write the backbone of a save as a model file")
    added.add_argument("out", type=Path, metavar="OUT.pt", help="the model file to write")
    added.add_argument("--momentum", action="store_true", help="the momentum backbone instead")
    added = verb("import", _import, "make a save of arcface_torch's checkpoint_gpu_*.pt, for start.checkpoint",
                 "the folder with these files, its config.output")
    added.add_argument("out", type=Path, metavar="OUT", help="folder in which the save's own folder is made")
    added.add_argument("--network", required=True, metavar="NAME", help="its config.network, or the name here")
    return parser


def _list(options: argparse.Namespace) -> int:
    found = summaries(options.path)
    table = PrettyTable(["step", "MB", "files", "score", "good"], align="r")
    for save in found:
        score = "" if save["score"] is None else f"{save['score']:.5f}"
        good = "yes" if not save["problems"] else "NO: " + "; ".join(save["problems"])
        table.add_row([save["step"], f"{save['bytes'] / 1e6:,.1f}", save["files"], score, good])
    report(found, str(table), options.json)
    return 0


def _verify(options: argparse.Namespace) -> int:
    found = summaries(options.path)
    lines = [f"{save['save']}: {'; '.join(save['problems']) or 'good'}" for save in found]
    report(found, "\n".join(lines), options.json)
    return CheckpointError.status if any(save["problems"] for save in found) else 0


def summaries(path: Path) -> list[dict[str, Any]]:
    """What is to be said of each save of a run, the oldest first; CheckpointError when there is none."""
    found = checkpoint.saves_in(path)
    if not found:
        raise CheckpointError(f"{path}: no checkpoint here; expected a run's folder, its checkpoints, or one of them")
    return [_summary(save) for save in found]


def _summary(save: Path) -> dict[str, Any]:
    problems, step = checkpoint.problems(save), None
    with contextlib.suppress(CheckpointError):
        step = read_json(save / STATE).get("step")
    files = [file for file in save.iterdir() if file.is_file()] if save.is_dir() else []
    return {
        "save": str(save), "step": step, "bytes": sum(file.lstat().st_size for file in files), "files": len(files),
        "score": checkpoint.score_of(save), "problems": problems,
    }


def _inspect(options: argparse.Namespace) -> int:
    facts = facts_of(checkpoint.open_save(options.path, Ranks()))
    tensors = PrettyTable(["tensor", "of", "type", "shape"], align="l", title=facts["save"])
    for tensor in facts["tensors"]:
        shape = "×".join(map(str, tensor["shape"])) or "scalar"
        tensors.add_row([tensor["name"], tensor["of"], tensor["dtype"], shape])
    files = PrettyTable(["rows of classes", "to", "MB"], align="r")
    for file in facts["row_files"]:
        files.add_row([file["start"], file["stop"], f"{file['bytes'] / 1e6:,.1f}"])
    settings = "\n".join(f"{name} = {value}" for name, value in facts["state"].get("settings", {}).items())
    text = f"{tensors}\n{files}\nstep {facts['step']}, {facts['classes']} classes, names: {facts['names']}\n{settings}"
    report(facts, text, options.json)
    return 0


def facts_of(saved: Saved) -> dict[str, Any]:
    """All that a save says of itself. Shapes of row tensors are those of all their rows together."""
    tensors = [("all ranks", name, entry.dtype, list(entry.shape))
               for name, entry in read_header(saved.folder / checkpoint.REPLICATED).items()]
    tensors += [("classes", name, entry.dtype, [saved.num_classes, *entry.shape[1:]])
                for name, entry in saved.row_headers().items()]
    labels = saved.labels()
    return {
        "save": str(saved.folder), "step": saved.step, "classes": saved.num_classes,
        "names": 0 if labels is None else sum(map(bool, labels)), "state": saved.state,
        "tensors": [
            {"name": name, "of": of, "dtype": str(dtype).removeprefix("torch."), "shape": shape,
             "bytes": math.prod(shape) * dtype.itemsize}
            for of, name, dtype, shape in tensors
        ],
        "row_files": [
            {"file": name, "start": bounds[0], "stop": bounds[1], "bytes": (saved.folder / name).stat().st_size}
            for name in saved.row_files if (bounds := row_range(name))
        ],
    }


def _reshard(options: argparse.Namespace) -> int:
    saved = checkpoint.open_save(options.path, Ranks())
    written = reshard(saved, options.out, options.ranks)
    facts = {"from": str(saved.folder), "to": str(written), "row_files": options.ranks}
    report(facts, f"{saved.folder} → {written}, {options.ranks} row files", options.json)
    return 0


def reshard(saved: Saved, out: Path, ranks: int) -> Path:
    """Write a save anew in the folder `out` as so many ranks would; never holds more than a block of its rows."""
    if not 1 <= ranks <= saved.num_classes:
        raise SettingsError(f"--ranks {ranks}; expected 1 to {saved.num_classes}, the number of classes")
    if step_folder(out, saved.step).exists():
        raise CheckpointError(f"{step_folder(out, saved.step)}: is there already; give another folder")

    def blocks(name: str, start: int, stop: int) -> Iterator[Tensor]:
        for low in range(start, stop, CLASSES_AT_ONCE):
            yield saved.rows(low, min(low + CLASSES_AT_ONCE, stop), [name])[name]

    row_files = []
    for start, stop in (shard_range(saved.num_classes, rank, ranks) for rank in range(ranks)):
        tensors = {
            name: Blocks(entry.dtype, (stop - start, *entry.shape[1:]), blocks(name, start, stop))
            for name, entry in saved.row_headers().items()
        }
        row_files.append((start, stop, tensors))
    content = Content(saved.step, saved.state, saved.replicated(), row_files)
    return Writing(out, content, Ranks(), Keep(last=0), saved.labels_file()).run()


def _extract(options: argparse.Namespace) -> int:
    saved = checkpoint.open_save(options.path, Ranks())
    part = "momentum" if options.momentum else "backbone"
    extract_backbone(saved, options.out, part)
    facts = {"from": str(saved.folder), "to": str(options.out), "part": part, "step": saved.step}
    report(facts, f"{part} of {saved.folder} → {options.out}", options.json)
    return 0


def extract_backbone(saved: Saved, out: Path, part: str) -> None:
    """Write the "backbone" or the "momentum" backbone of a save as a model file."""
    of_run = saved.state.get("settings")
    of_run = of_run if isinstance(of_run, dict) else {}
    settings = backbone_settings(saved.folder, of_run)
    tensors = saved.replicated()
    weights = {name.removeprefix(f"{part}."): x for name, x in tensors.items() if name.startswith(f"{part}.")}
    if not weights:
        raise CheckpointError(f"{saved.folder}: has no {part} backbone")
    module = module_with(saved.folder / checkpoint.REPLICATED, weights, settings)
    of_this = part == "backbone" and saved.state.get("scored") == saved.step
    info = {"run": of_run.get("name"), "step": saved.step, "part": part,
            "scores": saved.state.get("scores", []) if of_this else []}
    save_model(out, module, settings, info)


def _import(options: argparse.Namespace) -> int:
    written = import_checkpoint(options.path, options.out, options.network)
    saved = checkpoint.read(written)
    facts = {"from": str(options.path), "to": str(written), "step": saved.step, "classes": saved.num_classes,
             "row_files": len(saved.row_files)}
    text = (f"{options.path} → {written}: step {saved.step}, {saved.num_classes} classes without names\n"
            f"bash run.sh CONFIG --set start.checkpoint={written} start.match=number")
    report(facts, text, options.json)
    return 0


if __name__ == "__main__":
    run_command(main)
