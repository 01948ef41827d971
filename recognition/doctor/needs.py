"""Bytes that a run takes, from its settings: on disk, and of a rank's memory. Nothing is allocated for it.

Disk: what recognition/checkpoint writes, times the saves that are there at once, and the model files. Memory: tensors
that stay through a step (weights, gradients, optimiser, centres, memory), the head's tiles, and the activations that
the backbone keeps for its backward, counted by `activation_bytes` in one small forward. What passes through and the
loader's own batches come on top. Proven by tests/recognition/test_doctor_needs.py, against the files of a run.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recognition.backbones import build
from recognition.config import Config
from recognition.data.augmentation import IMAGE_SIDE
from recognition.folding import pairs
from recognition.heads.sharded import TILE_BYTES
from recognition.speed import folds

META = torch.device("meta")
_COUNTED = (2, 4)  # images of the two forwards whose difference is what an image takes


class Needs(NamedTuple):
    """Bytes. parameters: a number.  save: one checkpoint.  on_disk: parts by name, of a run's files at their fullest.

    in_memory: parts of one rank's memory by name, without activations; on a GPU, of the GPU's.
    """

    parameters: int
    save: int
    on_disk: dict[str, int]
    in_memory: dict[str, int]


def needs_of(config: Config, num_classes: int, steps_per_epoch: int, ranks: int, on_gpu: bool) -> Needs:
    """What a run takes. num_classes: 0 where the data is not there: the backbone alone.  ranks: over all machines."""
    with META:
        backbone = build(config.backbone)
    weights = sum(p.numel() * p.element_size() for p in backbone.parameters())
    buffers = sum(b.numel() * b.element_size() for b in backbone.buffers())
    state = weights * (2 if config.optimizer.kind == "adamw" else 1)
    momentum = weights + buffers if config.head.inject.needs_momentum else 0
    rows = row_bytes(config, num_classes)
    queue = getattr(config.head.margin, "queue", 0) * (8 * config.backbone.embedding_size + 8)
    save = weights + buffers + state + momentum + sum(rows.values()) + queue
    saves = saves_at_once(config, steps_per_epoch)
    model = weights + buffers
    on_disk = {
        f"{saves} saves": saves * save,
        "models": model * (2 + bool(config.evaluation.sets and config.evaluation.every_epochs > 0)),  # last, ONNX, best
    }
    share = -(-num_classes // ranks) / max(num_classes, 1)
    tiles = config.head.tile_bytes or TILE_BYTES["cuda" if on_gpu else "cpu"]
    batch = config.batch_size // ranks * 3 * IMAGE_SIDE * IMAGE_SIDE
    in_memory = {
        "backbone": weights + buffers,
        "gradients": weights,
        "optimiser": state,
        "momentum backbone": momentum,
        "its folded copy": folded_bytes(config, backbone, on_gpu),
        **{name: round(size * share) for name, size in rows.items()},
        "past embeddings": queue,
        "head's tiles": 2 * tiles,
        "images": batch * 5,  # as bytes and as floats
    }
    return Needs(sum(p.numel() for p in backbone.parameters()), save, on_disk,
                 {name: size for name, size in in_memory.items() if size})


def folded_bytes(config: Config, backbone: nn.Module, on_gpu: bool) -> int:
    """Of the weights and shifts that the momentum backbone runs with where its norms are folded into them, else 0.

    backbone: of the run, on the meta device.
    """
    inject, device = config.head.inject, torch.device("cuda" if on_gpu else "cpu")
    if not (inject.needs_momentum and inject.momentum_batch_norm == "average" and folds(config.speed, device)):
        return 0
    found = pairs(backbone, torch.empty(2, 3, IMAGE_SIDE, IMAGE_SIDE, device=META))
    parts: dict[str, Any] = dict(backbone.named_modules())
    return sum(_bytes(parts[read].weight) + _bytes(parts[norm].bias) for read, norm in found)


def row_bytes(config: Config, num_classes: int) -> dict[str, int]:
    """What all classes take, by part: what a checkpoint stores of them, and a rank holds its share of."""
    head, size = config.head, config.backbone.embedding_size
    stored = torch.bfloat16 if head.storage == "bf16" else torch.float32
    count = num_classes * head.margin.centers_per_class
    weight = torch.empty(count, size, dtype=stored, device=META)
    states = head.optimizer.states(count, size, stored, META)
    found = {"centres": _bytes(weight), "centres' optimiser": sum(map(_bytes, states.values()))}
    if head.inject.is_on:
        found["memory"] = _bytes(weight) + 8 * count
    extra = 8 * num_classes * head.catch_up_decay
    if getattr(head.margin, "drop_degrees", None) is not None:
        extra += 4 * count
    return found | ({"counts": extra} if extra else {})


def saves_at_once(config: Config, steps_per_epoch: int) -> int:
    """The most saves that are in the run's folder at once: those kept, the best, and the one being written."""
    settings = config.checkpoint
    steps = max(1, round(config.epochs * steps_per_epoch))
    made = 1 + (int(config.epochs / settings.every_epochs) if settings.every_epochs else 0)
    made += steps // settings.every_steps if settings.every_steps else 0
    kept = min(made, settings.keep) if settings.keep else made
    kept += settings.keep_best + (steps // settings.keep_every_steps if settings.keep_every_steps else 0)
    return min(kept, made) + 1


def activation_bytes(config: Config, dtype: torch.dtype, device: torch.device) -> float:
    """What the backbone keeps of one image for its backward: the difference of two small forwards in training mode."""
    backbone = build(config.backbone).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept = [_kept(backbone, count, dtype, device) for count in _COUNTED]
    return (kept[1] - kept[0]) / (_COUNTED[1] - _COUNTED[0])


def _kept(backbone: nn.Module, count: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of all tensors that autograd saves in a forward of `count` images; a storage counts once."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        return tensor

    image = torch.randn(count, 3, IMAGE_SIDE, IMAGE_SIDE, device=device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            embedding = backbone(image)
    del embedding
    return sum(storages.values())


def part_of_a_rank(config: Config, ranks: int) -> int:
    """Images of a rank that go through the backbone at once."""
    return max(1, math.ceil(config.batch_size / ranks / config.micro_batches))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
