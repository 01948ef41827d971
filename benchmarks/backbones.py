"""What backbones weigh: parameters, multiply-accumulates, and the activations that a step's graph holds for a sample.

    python benchmarks/backbones.py [NAME …] [--json OUT]

Multiply-accumulates are those of convolutions, linear maps and attention's two products; norms, activations and sums do
not count. Held is what autograd keeps of a forward in training under bf16 autocast, weights left out: the difference
between two batch sizes, so that nothing counts that all samples share. Without a GPU it is the same but for what cuDNN
keeps of its own. No time is measured. docs/backbones.md has the table.
Proven by tests/benchmarks/test_backbone_figures.py.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from prettytable import PrettyTable
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recognition.backbones import BACKBONES, BackboneSettings, build
from recognition.backbones.work import multiply_accumulates
from recognition.errors import SettingsError, run_command


def held_bytes(module: nn.Module, count: int) -> int:
    """Bytes of the tensors that the graph of a forward of `count` images keeps, besides parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    held: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    image = torch.rand(count, 3, 112, 112).to(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        module(image)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in own)


def figures(name: str) -> dict[str, Any]:
    """The figures of one backbone: numbers, not printed forms."""
    with torch.device("meta"):
        bare = build(BackboneSettings(name))
    row: dict[str, Any] = {"backbone": name, "parameters": sum(p.numel() for p in bare.parameters())}
    row["multiply_accumulates"] = multiply_accumulates(BackboneSettings(name))
    for key, checkpointing in (("held", False), ("held_checkpointing", True)):
        module = build(BackboneSettings(name, drop_path=0.05 * name.startswith("vit"), checkpointing=checkpointing))
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        row[key] = held_bytes(module, 3) - held_bytes(module, 2)
    return row


def main(arguments: Sequence[str]) -> int:
    """Print the table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(prog="backbones.py", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BACKBONES)}; without any, all")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    options = parser.parse_args(list(arguments))
    if unknown := [name for name in options.names if name not in BACKBONES]:
        raise SettingsError(f"no backbone {', '.join(unknown)}; there are {', '.join(BACKBONES)}")
    rows = [figures(name) for name in options.names or BACKBONES]
    table = PrettyTable(["backbone", "parameters, M", "GMAC", "held, MB a sample", "with checkpointing", "ratio"])
    for row in rows:
        held, less = row["held"] / 1e6, row["held_checkpointing"] / 1e6
        table.add_row([row["backbone"], f"{row['parameters'] / 1e6:.2f}", f"{row['multiply_accumulates'] / 1e9:.3f}",
                       f"{held:.2f}", f"{less:.2f}", f"{less / held:.3f}"])
    print(table)
    if options.json:
        options.json.write_text(json.dumps({"backbones": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
