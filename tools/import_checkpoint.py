"""What InsightFace's arcface_torch saves with `save_all_states`, made into a checkpoint that `start.checkpoint` takes.

There each rank leaves a file: checkpoint_gpu_0.pt, checkpoint_gpu_1.pt, … = {"epoch", "global_step",
"state_dict_backbone", "state_dict_softmax_fc": {"weight": [C_r, d]}, "state_optimizer", "state_lr_scheduler"}; rank r
has the classes that follow those of rank r − 1, the first C mod R ranks one more, as here. Taken over are rank 0's
backbone, whose BatchNorm statistics its model.pt has too, and all centres; optimiser and schedule are not, for a run
that starts from a checkpoint begins them afresh. The files are read by recognition.backbones.model_file: nothing in
them is executed, and no centre is copied before it is written.
Proven by tests/tools/test_import_checkpoint.py.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recognition.backbones import BackboneSettings
from recognition.backbones.model_file import is_state_dict, module_with, read_checked
from recognition.checkpoint import Keep
from recognition.checkpoint.layout import is_count, step_folder
from recognition.checkpoint.snapshot import Content
from recognition.checkpoint.tensor_file import Blocks
from recognition.checkpoint.writing import Writing
from recognition.distributed import Ranks
from recognition.errors import CheckpointError
from recognition.heads.centers import shard_range

NETWORKS = {
    "r18": "iresnet18", "r34": "iresnet34", "r50": "iresnet50", "r100": "iresnet100", "r200": "iresnet200",
    "mbf": "mobilefacenet", "mbf_large": "mobilefacenet_large",
    "vit_t": "vit_t", "vit_s": "vit_s", "vit_b": "vit_b", "vit_l": "vit_l",
}
"""Its `config.network` and the backbone's name here; what its vit_t_dp005_mask0 and the like add has no weights."""

ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Part:
    """One rank's file. weights: of the backbone.  centers: [C_r, d], a view of the mapped file."""

    path: Path
    step: int
    weights: dict[str, Tensor]
    centers: Tensor


def backbone_name(network: str) -> str:
    """The backbone's name here, from that or from its name there."""
    stem = "_".join(network.split("_")[:2]) if network.startswith("vit_") else network
    return NETWORKS.get(stem, network)


def import_checkpoint(folder: Path, out: Path, network: str) -> Path:
    """Write the checkpoint of all ranks' files in `folder` into the folder `out`; the new save's folder.

    network: the backbone, by its name here or there.  CheckpointError when a file is missing, damaged or hostile, of
    another step, not of this backbone, or holds other classes than its rank's; nothing is left in `out` then. That the
    last ranks' files are missing cannot be seen where the others have equal shares: compare the number of classes.
    """
    parts = [_read(path) for path in _files(folder)]
    sizes = [len(part.centers) for part in parts]
    for rank, part in enumerate(parts):
        start, stop = shard_range(sum(sizes), rank, len(parts))
        if part.step != parts[0].step:
            raise CheckpointError(f"{part.path}: of step {part.step}; {parts[0].path.name} is of {parts[0].step}")
        if part.centers.shape[1] != parts[0].centers.shape[1] or sizes[rank] != stop - start:
            raise CheckpointError(
                f"{part.path}: centres {list(part.centers.shape)}, where {len(parts)} ranks with {sum(sizes)} classes "
                f"have {[stop - start, parts[0].centers.shape[1]]}: a rank's file is missing, or of another run"
            )
    first, size = parts[0], parts[0].centers.shape[1]
    settings = BackboneSettings(backbone_name(network), embedding_size=size)
    module = module_with(first.path, first.weights, settings)
    if step_folder(out, first.step).exists():
        raise CheckpointError(f"{step_folder(out, first.step)}: is there already; give another folder")
    of_backbone = {f"backbone.{key}": value for key, value in dataclasses.asdict(settings).items()}
    settings_there = {"name": folder.resolve().name} | of_backbone
    state: dict[str, Any] = {"step": first.step, "score": None, "scores": [], "settings": settings_there}
    row_files = [_row_file(part, *shard_range(sum(sizes), rank, len(parts))) for rank, part in enumerate(parts)]
    replicated = {f"backbone.{name}": tensor for name, tensor in module.state_dict().items()}
    return Writing(out, Content(first.step, state, replicated, row_files), Ranks(), Keep(last=0)).run()


def _files(folder: Path) -> list[Path]:
    """The ranks' files in order; CheckpointError when there is none, or when one between them is missing."""
    found = {path.name for path in folder.glob("checkpoint_gpu_*.pt")}
    names = [f"checkpoint_gpu_{rank}.pt" for rank in range(len(found))]
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint_gpu_0.pt here; a run leaves them with save_all_states=True")
    if strange := sorted(found.symmetric_difference(names)):
        raise CheckpointError(f"{folder}: {len(found)} files checkpoint_gpu_N.pt, but {strange[0]} is "
                              f"{'no number of theirs' if strange[0] in found else 'missing'}")
    return [folder / name for name in names]


def _read(path: Path) -> Part:
    """One rank's file, its types and sizes checked."""
    content = read_checked(path)
    weights, head = (_state_dict(path, content, name) for name in ("state_dict_backbone", "state_dict_softmax_fc"))
    step, centers = content.get("global_step"), head.get("weight")
    if not isinstance(step, int) or not is_count(step):
        raise CheckpointError(f"{path}: global_step: expected a count of steps, got {str(step)[:40]!r}")
    if centers is None or centers.ndim != 2 or not centers.is_floating_point():
        raise CheckpointError(f"{path}: state_dict_softmax_fc: expected weight [classes, d], got {sorted(head)[:3]}")
    if centers.nbytes > path.stat().st_size:
        raise CheckpointError(f"{path}: its centres claim more bytes than the file has")
    return Part(path, step, weights, centers)


def _state_dict(path: Path, content: dict[str, Any], name: str) -> dict[str, Tensor]:
    state = content.get(name)
    if not isinstance(state, dict) or not is_state_dict(state):
        raise CheckpointError(f"{path}: {name}: expected a dict of tensors; a backbone alone is for start.backbone")
    return state


def _row_file(part: Part, start: int, stop: int) -> tuple[int, int, dict[str, Blocks]]:
    """The file of a rank's classes, in float32; CheckpointError, when it is written, for what is not finite."""

    def blocks() -> Iterator[Tensor]:
        for low in range(0, stop - start, ROWS_AT_ONCE):
            rows = part.centers[low : low + ROWS_AT_ONCE].to(torch.float32)
            if not torch.isfinite(rows).all():
                raise CheckpointError(f"{part.path}: centres that are not finite")
            yield rows

    return start, stop, {"weight": Blocks(torch.float32, (stop - start, part.centers.shape[1]), blocks())}
