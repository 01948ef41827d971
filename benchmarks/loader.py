"""Images per second and CPU time an image of the loaders, all in one run: `python benchmarks/loader.py`.

`plain DALI` is DALI reading and decoding the same records with its own RecordIO reader in its own order: what the
loaders are measured against. `DataLoader` is what trainers usually have (benchmarks/baseline/loader.py): float32 images
from worker processes. Rounds alternate between the contestants, so that a busy machine slows all of them; the medians
and their ratios to `plain DALI` (to the first one where DALI is missing) are printed and written as JSON.
Proven by tests/benchmarks/test_loader_benchmark.py.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from prettytable import PrettyTable

from benchmarks.baseline.loader import batches as usual_batches
from recognition.data.augmentation import IMAGE_SIDE, Augmentation
from recognition.data.dataset import RecordDataset, open_dataset
from recognition.data.loader import make_loader
from recognition.data.plan import Plan
from recognition.data.recordio import RecordWriter, pack_record, write_index
from recognition.errors import SettingsError, run_command

PAPER = Augmentation(crop=0.2, downsample=0.2)
JPEG_QUALITY = 90  # about 5 kB an image, as in the usual sets of aligned faces


@dataclass
class Contestant:
    """Endless batches, and the processes beside this one that make them."""

    batches: Iterator[Any]
    processes: Sequence[int] = ()


def main(arguments: Sequence[str]) -> None:
    """Measure and report."""
    options = parse(arguments)
    with nullcontext(options.set) if options.set else tempfile.TemporaryDirectory() as folder:
        if not options.set:
            write_pictures(Path(folder), options.images)
        dataset = open_dataset(folder)
        if dataset.num_images < options.batch * 4:
            raise SettingsError(f"{dataset.num_images} images; expected at least 4 batches of {options.batch}")
        contestants = make_contestants(dataset, options)
        result = measure(contestants, options)
    result["images"], result["batch"], result["threads"] = dataset.num_images, options.batch, options.threads
    report(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Rates of the data loaders on this machine.")
    parser.add_argument("--set", type=Path, help="a RecordIO set of 112×112 images; without it one is generated")
    parser.add_argument("--images", type=int, default=2048, help="images of the generated set (default 2048)")
    parser.add_argument("--batch", type=int, default=128, help="images a batch (default 128)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each loader (default 2)")
    parser.add_argument("--steps", type=int, default=16, help="batches a round (default 16)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts (default 5)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--decode", default="auto", help="where DALI decodes: auto, cpu, mixed, shared (default auto)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="measure these loaders alone")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args(arguments)


def write_pictures(folder: Path, count: int, labels: Sequence[int] = range(100)) -> None:
    """A set of `count` JPEGs of smooth shapes with texture; labels: of the pictures, in turns."""
    rng = np.random.default_rng(0)
    side = (IMAGE_SIDE, IMAGE_SIDE)
    with RecordWriter(folder / "train.rec") as writer:
        offsets = []
        for number in range(count):
            image = cv2.resize(rng.integers(0, 256, (12, 12, 3), np.uint8), side, interpolation=cv2.INTER_CUBIC)
            texture = rng.integers(0, 16, (IMAGE_SIDE, IMAGE_SIDE, 1), np.uint8)
            image = cv2.add(image, np.repeat(texture, 3, axis=2))
            encoded = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1].tobytes()
            offsets.append(writer.write(pack_record(float(labels[number % len(labels)]), number, encoded)))
    write_index(folder / "train.idx", np.arange(count), np.array(offsets))


def make_contestants(dataset: RecordDataset, options: argparse.Namespace) -> dict[str, Contestant]:
    """Contestants by name: those that --only names, or all."""
    has_dali = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    makers: dict[str, Callable[[], Contestant]] = {}
    if has_dali:
        makers["plain DALI"] = partial(plain_dali, dataset, options)
    kinds = {"index": "dali", "stream": "stream", "fallback": "fallback"} if has_dali else {"fallback": "fallback"}
    for name, kind in kinds.items():
        makers[name] = partial(own, kind, dataset, Augmentation(), options)
        if kind != "stream":
            makers[f"{name}, crop and down-sampling"] = partial(own, kind, dataset, PAPER, options)
    if len(dataset.paths) == 1 and dataset.place(0)[1] == 0:  # the usual loader reads one file that is all images
        for decoder in ("opencv", "pillow") if importlib.util.find_spec("PIL") else ("opencv",):
            makers[f"DataLoader, {decoder}"] = partial(usual, decoder, dataset, options)
    if strange := [name for name in options.only if name not in makers]:
        raise SettingsError(f"--only {', '.join(strange)}; expected some of {', '.join(makers)}")
    return {name: make() for name, make in makers.items() if name in (options.only or [name])}


def own(kind: str, dataset: RecordDataset, augmentation: Augmentation, options: argparse.Namespace) -> Contestant:
    """This project's loaders."""
    plan = Plan(dataset.num_images, options.batch, 0, 1, 0, augmentation)
    made = make_loader(kind, dataset, plan, torch.device(options.device), options.threads, decode=options.decode)
    return Contestant(made.batches(0, 1 << 40))


def usual(decoder: str, dataset: RecordDataset, options: argparse.Namespace) -> Contestant:
    """A torch DataLoader with as many workers as the others have threads."""
    return Contestant(*usual_batches(dataset.paths[0], options.batch, options.threads, decoder))


def plain_dali(dataset: RecordDataset, options: argparse.Namespace) -> Contestant:
    """DALI's own RecordIO reader, decoding and a flip; header and identity records would end it: not in its index."""
    from nvidia import dali as typed_dali

    dali: Any = typed_dali
    record = dataset.root / "train.rec" if dataset.root.is_dir() else dataset.root
    on_gpu = options.device != "cpu"
    index = Path(tempfile.mkdtemp(prefix="plain-index-"), "images.idx")  # as long as the pipeline lives
    write_index(index, np.arange(dataset.num_images), dataset.offsets_in_all_files())

    @dali.pipeline_def(batch_size=options.batch, num_threads=options.threads, device_id=0 if on_gpu else None)
    def define() -> Any:
        files = {"path": [str(record)], "index_path": [str(index)]}
        encoded, label = dali.fn.readers.mxnet(**files, random_shuffle=True, initial_fill=1024)
        image = dali.fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu")
        return dali.fn.flip(image, horizontal=dali.fn.random.coin_flip()), label

    pipeline = define()
    pipeline.build()
    return Contestant(iter(pipeline.run, None))


def measure(contestants: dict[str, Contestant], options: argparse.Namespace) -> dict[str, Any]:
    """Images per second and CPU microseconds an image of each, medians over alternating rounds."""
    images = options.steps * options.batch
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    costs: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, contestant in contestants.items():
            for _ in range(2 * options.threads + 2):  # what was prefetched while others were measured
                next(contestant.batches)
            wall, cpu = time.perf_counter(), cpu_seconds(contestant.processes)
            for _ in range(options.steps):
                next(contestant.batches)
            rates[name].append(images / (time.perf_counter() - wall))
            costs[name].append((cpu_seconds(contestant.processes) - cpu) / images * 1e6)
    first = next(iter(rates))
    return {
        "loaders": {
            name: {
                "images_per_second": statistics.median(rates[name]),
                "slowest_round": min(rates[name]),
                "fastest_round": max(rates[name]),
                "cpu_microseconds_per_image": statistics.median(costs[name]),
                "ratio": statistics.median(rates[name]) / statistics.median(rates[first]),
                "cpu_ratio": statistics.median(costs[first]) / max(statistics.median(costs[name]), 1e-9),
            }
            for name in contestants
        }
    }


def cpu_seconds(processes: Sequence[int]) -> float:
    """CPU time of this process and of others, which only Linux tells."""
    seconds = time.process_time()
    for pid in processes:
        path = Path(f"/proc/{pid}/stat")
        if path.exists():
            user, system = path.read_text().rpartition(")")[2].split()[11:13]
            seconds += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return seconds


def report(result: dict[str, Any]) -> None:
    """Print the table."""
    titles = ["loader", "images/s", "rounds from … to", "CPU µs an image", "ratio", "ratio by CPU"]
    table = PrettyTable(titles, align="r")
    table.align["loader"] = "l"
    for name, row in result["loaders"].items():
        spread = f"{row['slowest_round']:.0f} … {row['fastest_round']:.0f}"
        cost = f"{row['cpu_microseconds_per_image']:.0f}"
        ratios = f"{row['ratio']:.2f}", f"{row['cpu_ratio']:.2f}"
        table.add_row([name, f"{row['images_per_second']:.0f}", spread, cost, *ratios])
    print(table)


if __name__ == "__main__":
    run_command(main)
