"""What a verification set is worth to no network at all: cosine of raw pixels and of principal components.

    python benchmarks/pixel_baseline.py TRAINING_SET PAIRS.bin [--json OUT]

Both go through the very protocol that networks go through (mirrored picture added, unit length, ten folds). Pixels are
centred by 127.5; PCA-128 is fitted on up to 5,000 training pictures at 56×56, plain and whitened.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from prettytable import PrettyTable

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.verification import Embed, evaluate, load_bin
from recognition.data.dataset import open_dataset
from recognition.data.fallback import decode
from recognition.errors import run_command

COMPONENTS, PICTURES, SIDE = 128, 5000, 56


def small(images: np.ndarray) -> np.ndarray:
    """Images at 56×56 as centred rows, float32 [n, 9408]."""
    reduced = [cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(reduced).reshape(len(images), -1).astype(np.float32) - 127.5


def principal_components(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [p], the first components [p, 128] and their standard deviations [128], from rows [n, p] with n < p."""
    mean = rows.mean(axis=0)
    centred = rows - mean
    # The eigenvectors of the n × n Gram matrix give those of the p × p covariance, which is larger.
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = values[::-1][:COMPONENTS], vectors[:, ::-1][:, :COMPONENTS]
    components = centred.T @ (vectors / np.sqrt(values))
    return mean, components.astype(np.float32), np.sqrt(values / (len(rows) - 1)).astype(np.float32)


def baselines(training_set: str) -> dict[str, Embed]:
    """Embedding functions by name."""
    dataset = open_dataset(training_set)
    picked = np.random.default_rng(0).permutation(dataset.num_images)[:PICTURES]
    rows = np.concatenate([small(decode(dataset, int(sample))[None]) for sample in picked])
    mean, components, deviation = principal_components(rows)
    return {
        "raw pixels": lambda images: images.reshape(len(images), -1).astype(np.float32) - 127.5,
        "PCA-128": lambda images: (small(images) - mean) @ components,
        "PCA-128, whitened": lambda images: (small(images) - mean) @ components / deviation,
    }


def main(arguments: Sequence[str]) -> int | None:
    """Score pixels and principal components on a verification set."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("training_set")
    parser.add_argument("pairs")
    parser.add_argument("--json")
    options = parser.parse_args(list(arguments))
    pairs = load_bin(options.pairs)
    table = PrettyTable(["cosine of", "accuracy"], align="l")
    results = {}
    for name, embed in baselines(options.training_set).items():
        result = evaluate(embed, pairs)
        results[name] = {"accuracy": result["accuracy"], "accuracy_std": result["accuracy_std"]}
        table.add_row([name, f"{result['accuracy']:.4f} ± {result['accuracy_std']:.4f}"])
    print(table)
    if options.json:
        Path(options.json).write_text(json.dumps({"set": options.pairs, "baselines": results}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    run_command(main)
