"""Several runs that belong together, and one table of them: configs × variants × seeds.

    bash run.sh configs/a.py configs/b.py --seeds 0 1 2 3 4 [--side-by-side 2] [--set a.b=VALUE …]

A member is one config with one variant (where the config file has `variants()`) and one seed. Every member is an
ordinary run in a folder of its own, NAME[_VARIANT][_seedN], started as run.sh starts it. Members that are finished are
not run again and one that was stopped goes on from its checkpoint, so the same command survives any stop. A member
that fails does not keep the others from running.

    OUTPUT/LABEL+LABEL…[_seedsN+M…].comparison.json
        {"figures":     {label: {figure: {"mean", "deviation", "seeds", "values": {seed: value}}}},
         "differences": {label: {figure: {"mean", "error", "seeds"}}},
         "failed":      {member: exit status}}

Deviations are over seeds (n − 1 below the root). Differences are from the first label's run with the same seed, with
the standard error of their mean: what a method gains is read from them, because seeds move all labels together.
Proven by tests/recognition/test_compare.py.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from prettytable import PrettyTable

from eval.verification import write_json
from recognition.config import Config, changes, decisive_settings, find_sets, load, read_file
from recognition.cpus import available_cpus
from recognition.errors import SettingsError, TrainerError
from recognition.finish import evaluated_run

TAR_AT = "0.0001"
"""The false accept rate of the IJB figure that is compared."""


@dataclass(frozen=True)
class Member:
    """One run of a comparison. label: what it shares with the other seeds."""

    label: str
    path: str
    overrides: tuple[str, ...]
    config: Config

    @property
    def command(self) -> list[str]:
        """What runs it."""
        return [sys.executable, "-m", "recognition.launch", self.path, "--single", "--set", *self.overrides]

    @property
    def is_finished(self) -> bool:
        """Whether its folder holds the figures of exactly these settings, this data and these sets."""
        try:
            results = json.loads((self.config.folder / "evaluation.json").read_text())
            old, now = results["run"], evaluated_run(self.config)
            scored = {(row["set"], row["degrade"]) for row in results["verification"]}
            same = old["data"] == now["data"] and all(one in old["sets"] for one in now["sets"])
            whole = self.asked <= scored and {*self.config.evaluation.ijb} <= {*results["ijb"]}
            return same and whole and not changes(old["settings"], now["settings"])
        except (OSError, ValueError, KeyError, TypeError, TrainerError):
            return False

    @property
    def asked(self) -> set[tuple[str, int | None]]:
        """The verification figures that the settings ask for: set and side."""
        sides = (None, *self.config.evaluation.degrade)
        return {(path.stem, side) for path in find_sets(self.config) for side in sides}


def is_comparison(paths: Sequence[str], seeds: Sequence[int], single: bool) -> bool:
    """Whether a command compares runs: several configs, seeds, or a config with variants that are not turned off."""
    return len(paths) > 1 or bool(seeds) or (not single and hasattr(read_file(paths[0]), "variants"))


def require_one_machine(machines: int) -> None:
    """SettingsError for a comparison on several machines."""
    if machines > 1:
        raise SettingsError("several runs are compared on one machine; NNODES is for a single run")


def members(
    paths: Sequence[str], seeds: Sequence[int], overrides: Sequence[str], single: bool = False
) -> list[Member]:
    """All runs of a comparison, seed by seed, so that a stop leaves whole seeds behind.

    single: configs as they stand, without their variants.
    Raises SettingsError with every mistake of every member, and when two would share a folder or train the same.
    """
    if len(set(seeds)) < len(seeds):
        raise SettingsError(f"--seeds {' '.join(map(str, seeds))}: a seed is given twice")
    variants = [(path, variant, extra) for path in paths for variant, extra in _variants(path, single).items()]
    found = []
    each_seed: Sequence[int | None] = seeds or [None]
    for seed in each_seed:
        for path, variant, extra in variants:
            settings = [*extra, *overrides, *([f"seed={seed}"] if seed is not None else [])]
            label = "_".join(filter(None, [load(path, settings).name, variant]))
            name = label if seed is None else f"{label}_seed{seed}"
            settings.append(f"name={name}")
            found.append(Member(label, path, tuple(settings), load(path, settings)))
    folders = [member.config.folder for member in found]
    twice = {str(folder) for folder in folders if folders.count(folder) > 1}
    if twice:
        raise SettingsError(f"several runs would share a folder: {', '.join(sorted(twice))}")
    for number, member in enumerate(found):
        same = [one.config.name for one in found[:number] if _trains(one) == _trains(member)]
        if same:
            raise SettingsError(f"{member.config.name} would train the same as {same[0]}; is a variant overridden?")
    return found


def _variants(path: str, single: bool) -> dict[str | None, tuple[str, ...]]:
    """What a config file's `variants()` asks for: {name: overrides}; one without a name where there are none."""
    makes = None if single else getattr(read_file(path), "variants", None)
    if makes is None:
        return {None: ()}
    try:
        made = makes()
        good = made and all(isinstance(name, str) and not isinstance(extra, str) for name, extra in made.items())
        found: dict[str | None, tuple[str, ...]] = {name: tuple(map(str, extra)) for name, extra in made.items()}
    except Exception as error:
        raise SettingsError(f"{path}: variants(): {type(error).__name__}: {error}") from error
    if not good:
        raise SettingsError(f"{path}: variants(): expected {{name: (override, …)}} with at least one, got {made!r}")
    return found


def _trains(member: Member) -> dict[str, Any]:
    return decisive_settings(member.config) | {"root": member.config.data.root}


def compare(
    paths: Sequence[str], seeds: Sequence[int], overrides: Sequence[str], side_by_side: int = 1, single: bool = False
) -> int:
    """Run what is not finished, print and write the table; 0, or the status of the first member that failed."""
    signal.signal(signal.SIGTERM, _stopped)
    every = members(paths, seeds, overrides, single)
    shares = machine_shares(side_by_side)
    for member in {member.path: member for member in every}.values():
        prepare = getattr(read_file(member.path), "prepare", None)
        if prepare is not None:  # here, once: members side by side would all make the same data
            prepare(member.config)
    for member in every:
        find_sets(member.config)  # what is missing is told once, before anything runs
    finished = {member.config.name for member in every if member.is_finished}  # opens the data of each: asked once
    waiting = [member for member in every if member.config.name not in finished]
    print(f"{len(every)} runs, {len(every) - len(waiting)} of them finished already", flush=True)
    failed = run_all(waiting, shares)
    ended = [member for member in waiting if member.config.name not in failed]
    finished |= {member.config.name for member in ended if member.is_finished}
    failed |= {member.config.name: 1 for member in ended if member.config.name not in finished}
    result = summary(every, finished) | {"failed": failed}
    if any(result["figures"].values()):
        output = every[0].config.folder.with_name(f"{_name(every, seeds)}.comparison.json")
        write_json(output, result)
        for table in tables(result):
            print(table)
        print(f"written to {output}")
    else:
        print("no figures to compare: nothing finished, or no evaluation sets were given")
    for name, status in failed.items():
        print(f"{name}: failed with status {status}", file=sys.stderr)
    return next(iter(failed.values()), 0)


def _stopped(*_: object) -> None:
    """End as Ctrl-C does, so that no run is left behind."""
    print("stopped by SIGTERM; the same command goes on", file=sys.stderr, flush=True)
    sys.exit(128 + signal.SIGTERM)


def _name(every: Sequence[Member], seeds: Sequence[int]) -> str:
    """A file name for these labels and seeds, and for no others."""
    labels = "+".join(dict.fromkeys(member.label for member in every))
    whole = "_".join([labels, *(["seeds" + "+".join(map(str, seeds))] if seeds else [])])
    return whole if len(whole) <= 120 else f"{whole[:100]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def run_all(waiting: Sequence[Member], shares: Sequence[dict[str, str]]) -> dict[str, int]:
    """Run members, as many at a time as there are shares of the machine; {name: exit status} of those that failed.

    Side by side each gets its share of the GPUs, or of the cores, and writes what it says to NAME.log.
    """
    queue, failed = list(waiting), dict[str, int]()
    running: dict[int, tuple[Member, subprocess.Popen[bytes], TextIO | None]] = {}
    try:
        while queue or running:
            for slot in range(len(shares)):
                if slot not in running and queue:
                    running[slot] = _start(queue.pop(0), shares[slot] if len(shares) > 1 else {})
            for slot, (member, process, log) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                if log is not None:
                    log.close()
                if process.returncode:
                    failed[member.config.name] = process.returncode
                state = f"failed, status {process.returncode}" if process.returncode else "done"
                if process.returncode and log is not None:
                    state += f": {_last_line(Path(log.name))}"
                print(f"{member.config.name}: {state}; {len(queue) + len(running)} to go", flush=True)
            time.sleep(0.2)
    except BaseException as stop:
        _end([process for _, process, _ in running.values()], told=isinstance(stop, KeyboardInterrupt))
        raise
    return failed


def _end(processes: Sequence[subprocess.Popen[bytes]], told: bool) -> None:
    """Let runs end; told: Ctrl-C went to them as well, so that they are ending already."""
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if told:
                process.wait(timeout=20)
        process.terminate()
    for process in processes:
        process.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")


def _start(member: Member, share: dict[str, str]) -> tuple[Member, subprocess.Popen[bytes], TextIO | None]:
    folder = member.config.folder
    log = None
    if share:
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(f"{folder.name}.log").open("a")
        print(f"{member.config.name}: started, says {log.name}", flush=True)
    else:
        print(f"{member.config.name}: started", flush=True)
    # Side by side, runs must not meet at one address.
    shared = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    environment = {key: value for key, value in os.environ.items() if not share or key not in shared}
    environment |= {key: value for key, value in share.items() if key != "cores"}
    process = subprocess.Popen(member.command, env=environment, stdout=log, stderr=log and subprocess.STDOUT)
    if share.get("cores"):
        with contextlib.suppress(ProcessLookupError):  # it may have ended already
            os.sched_setaffinity(process.pid, map(int, share["cores"].split(",")))
    return member, process, log


def machine_shares(count: int) -> list[dict[str, str]]:
    """The environment of each of `count` runs side by side: its GPUs, or its cores (key "cores").

    Raises SettingsError when there are not enough of them.
    """
    if count == 1:
        return [{}]
    gpus, cores = torch.cuda.device_count(), sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    units = list(range(gpus)) if gpus else cores or list(range(available_cpus()))
    if not 1 <= count <= len(units):
        kind = "GPUs" if gpus else "cores"
        raise SettingsError(f"--side-by-side {count}: expected 1 to the number of {kind}, {len(units)}")
    parts = [units[slot::count] for slot in range(count)]
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # counted up to the first that there is not
        names = visible.split(",")[:gpus] if visible else list(map(str, range(gpus)))
        return [{"CUDA_VISIBLE_DEVICES": ",".join(names[i] for i in part), "NPROC": str(len(part))} for part in parts]
    return [{"cores": ",".join(map(str, part)) if cores else "", "NPROC": "1"} for part in parts]


def figures(member: Member) -> dict[str, float]:
    """What is compared of a finished run: the accuracies asked for, and TAR@FAR=1e-4 of IJB folders."""
    results = json.loads((member.config.folder / "evaluation.json").read_text())
    found = {}
    for row in results["verification"]:
        if (row["set"], row["degrade"]) not in member.asked:
            continue
        side = f" {row['degrade']}×{row['degrade']}" if row["degrade"] else ""
        found[f"{row['set']}{side}"] = row["accuracy"]
    for name, result in results["ijb"].items():
        rates = result.get("1:1", {}).get("nearest", {})
        if name in member.config.evaluation.ijb and rates.get(TAR_AT) is not None:
            found[f"{Path(name).name} TAR@{TAR_AT}"] = rates[TAR_AT]
    return found


def summary(every: Sequence[Member], finished: Collection[str]) -> dict[str, Any]:
    """Mean and deviation over seeds of every figure of every label, and differences from the first label.

    finished: names of the members that have figures.
    """
    values: dict[str, dict[str, dict[str, float]]] = {}
    for member in every:
        of_label = values.setdefault(member.label, {})
        if member.config.name in finished:
            for figure, value in figures(member).items():
                of_label.setdefault(figure, {})[str(member.config.seed)] = value
    first = next(iter(values.values()))
    differences: dict[str, dict[str, dict[str, float | None]]] = {}
    for label, of_label in list(values.items())[1:]:
        for figure, by_seed in of_label.items():
            pairs = [value - first[figure][seed] for seed, value in by_seed.items() if seed in first.get(figure, {})]
            if pairs:
                error = float(np.std(pairs, ddof=1) / np.sqrt(len(pairs))) if len(pairs) > 1 else None
                mean = float(np.mean(pairs))
                differences.setdefault(label, {})[figure] = {"mean": mean, "error": error, "seeds": len(pairs)}
    averaged = {
        label: {figure: _average(by_seed) for figure, by_seed in of_label.items()} for label, of_label in values.items()
    }
    return {"figures": averaged, "differences": differences}


def _average(by_seed: dict[str, float]) -> dict[str, Any]:
    numbers = list(by_seed.values())
    deviation = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
    return {"mean": float(np.mean(numbers)), "deviation": deviation, "seeds": len(numbers), "values": by_seed}


def tables(result: dict[str, Any]) -> list[PrettyTable]:
    """The comparison for people: mean ± deviation over seeds; then the differences, where there are several labels."""
    averaged, differences = result["figures"], result["differences"]
    names = list(dict.fromkeys(figure for of_label in averaged.values() for figure in of_label))
    means = PrettyTable(["run", "seeds", *names], align="r", title="mean ± deviation over seeds")
    for label, of_label in averaged.items():
        cells = [_cell(of_label.get(name), "mean", "deviation", "") for name in names]
        means.add_row([label, _seeds(of_label), *cells])
    gains = PrettyTable(["run", "seeds", *names], align="r",
                        title=f"difference from {next(iter(averaged))}, seed by seed: mean ± standard error")
    for label, of_label in differences.items():
        gains.add_row([label, _seeds(of_label), *(_cell(of_label.get(name), "mean", "error", "+") for name in names)])
    for table in (means, gains):
        table.align["run"] = "l"
    return [means, gains] if differences else [means]


def _seeds(of_label: dict[str, Any]) -> str:
    """How many seeds the figures of a row are of: a number, or its range where they differ."""
    counts = {figure["seeds"] for figure in of_label.values()} or {0}
    return "–".join(map(str, sorted({min(counts), max(counts)})))


def _cell(figure: dict[str, Any] | None, mean: str, spread: str, sign: str) -> str:
    if figure is None:
        return "–"
    return f"{figure[mean]:{sign}.4f}" + ("" if figure[spread] is None else f" ± {figure[spread]:.4f}")
