"""Training on one rank: puts the parts together and runs the loop.

One step: plan → loader → image → backbone → embedding → head (gather, rows, margin softmax, centres) → embedding
gradient → backbone's backward, summed over ranks → optimiser → running statistics averaged. With `micro_batches` the
backbone takes the batch in parts (recognition/micro_batches.py). Everything random is a pure function of (seed, step,
rank), so that a run goes on after a stop exactly as if it had not stopped.
Started by recognition.launch, one process a rank. Proven by tests/recognition/test_train.py.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eval.during_training import Verifier
from recognition import checkpoint, distributed
from recognition.backbones import build
from recognition.backbones.model_file import save_model
from recognition.batch_statistics import BatchStatistics
from recognition.config import Config, batch_mistakes, changes, decisive_settings, find_sets, load, settings_of
from recognition.cpus import available_cpus
from recognition.data.batch import Batch, normalise
from recognition.data.dataset import RecordDataset, open_dataset
from recognition.data.loader import Loader, make_loader
from recognition.data.plan import IMAGE_SIDE, Plan
from recognition.distributed import Ranks
from recognition.errors import CheckpointError, DistributedError, NumericsError, SettingsError, TrainerError, debugging
from recognition.heads.sharded import ShardedHead
from recognition.log import RunLog, logger, provenance
from recognition.micro_batches import MicroBatches
from recognition.momentum import MomentumBackbone
from recognition.optimizer import BackboneOptimizer
from recognition.schedule import learning_rates
from recognition.streams import torch_seed

BAD_STEPS_IN_A_ROW = 3
"""So many steps that are not finite, one after the other, end the run."""

SIGNS_OF_A_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")

_DROPOUT = 0x64726F706F7574  # keeps this use of the seed apart from others


@dataclass
class Run:
    """The parts of a run on one rank, assembled, and how far it is."""

    config: Config
    ranks: Ranks
    dataset: RecordDataset
    plan: Plan
    loader: Loader
    rates: np.ndarray
    product_dtype: torch.dtype
    backbone: nn.Module
    replica: nn.Module
    head: ShardedHead
    optimizer: BackboneOptimizer
    statistics: BatchStatistics
    momentum: MomentumBackbone | None
    bad_steps: Tensor
    step: int = 0
    best: float = -1.0
    scores: list[dict[str, Any]] = field(default_factory=list)

    @property
    def epoch(self) -> float:
        """Epochs done, with their fraction."""
        return self.step / self.plan.steps_per_epoch

    def is_due(self, every_epochs: float) -> bool:
        """Whether something that happens every so many epochs, and at the end, happens after this step; 0: never."""
        interval = every_epochs * self.plan.steps_per_epoch
        if interval <= 0:
            return False
        # 1e-9: 6 / (0.2 · 30) must not be 0.999…
        passed = int(self.step / interval + 1e-9) > int((self.step - 1) / interval + 1e-9)
        return passed or self.step == len(self.rates)


def main(arguments: Sequence[str]) -> int:
    """Train on this rank; the launcher's environment says which one it is."""
    parser = argparse.ArgumentParser(prog="python -m recognition.train", description=main.__doc__)
    parser.add_argument("config")
    parser.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="a.b=VALUE")
    options = parser.parse_args(list(arguments))
    config = load(options.config, options.overrides)
    ranks = distributed.start(config.timeout_seconds)
    train(config, ranks)
    distributed.stop(ranks)
    return 0


def train(config: Config, ranks: Ranks) -> Run:
    """Train to the end of the schedule, from the newest checkpoint if the run's folder has one."""
    with contextlib.closing(RunLog(config.folder, ranks)) as log:
        run = assemble(config, ranks)
        resume(run)
        total = len(run.rates)
        log.begin(run.step, total, config.log.tensorboard)
        begin(run)
        while_training = config.evaluation.every_epochs > 0
        verifier = Verifier(find_sets(config) if while_training else [], config.evaluation.degrade, ranks)
        with contextlib.closing(run.loader.batches(run.step, total)) as batches:  # type: ignore[type-var]
            for batch in batches:
                lr = float(run.rates[run.step])
                loss, gradient_norm = train_step(run, batch, lr)
                log.advance()
                if run.step % config.log.every_steps == 0 or run.step == total:
                    figures = {"loss": loss.item(), "lr": lr, "gradient_norm": gradient_norm.item()}
                    figures |= run.head.injection_figures(run.step)
                    log.steps(run.step, run.epoch, config.batch_size, figures)
                    stop_on_bad_steps(run)
                if run.is_due(config.evaluation.every_epochs):
                    run.scores = verifier.score(run.backbone, run.product_dtype)
                    log.scores(run.step, run.epoch, run.scores)
                    keep_best(run)
                    log.restart_clock(run.step)
                if run.is_due(config.checkpoint.every_epochs):
                    save(run)
                    log.restart_clock(run.step)
        if ranks.is_first:  # also where a stop came between the last checkpoint and this file
            save_backbone(run, "model_last.pt")
        logger.info("trained: step %d, epoch %.2f", run.step, run.epoch)
    return run


def train_step(run: Run, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
    """One optimiser step on all ranks; loss of the global batch and the backbone's gradient norm, on the device."""
    seed_step(run)
    image, count = normalise(batch.image), run.config.micro_batches
    parts = MicroBatches(image, count, run.replica, run.product_dtype, partial(seed_step, run))
    statistics = run.statistics.remember()
    momentum_embedding = parts.through(run.momentum) if run.momentum else None
    embedding = parts.embed(run.statistics)
    result = run.head.step(embedding, batch.label, run.step, lr)
    parts.back_propagate(result.embedding_gradient * run.optimizer.scale)
    gradient_norm, taken = run.optimizer.step(lr, result.finite)
    run.statistics.settle(statistics, result.finite)
    if run.momentum:
        run.momentum.update(taken)
    run.head.remember(result, momentum_embedding, run.step, taken)
    # An overflow of the scaled backward is no fault: the scale is looking for its level.
    in_a_row = torch.where(result.finite if run.optimizer.scaled else taken, 0, run.bad_steps[0] + 1)
    run.bad_steps = torch.stack([in_a_row, torch.maximum(in_a_row, run.bad_steps[1])])
    run.step += 1
    return result.loss, gradient_norm


def assemble(config: Config, ranks: Ranks) -> Run:
    """Build every part from the settings. Raises SettingsError and DataError before anything is trained."""
    dataset = open_dataset(config.data.root)
    decisive = {"data": dataset.fingerprint(), **decisive_settings(config)}
    distributed.require_same("the settings or the data", decisive, ranks)
    if mistakes := batch_mistakes(config, ranks.world_size):
        raise SettingsError("; ".join(mistakes))
    plan = Plan(
        dataset.num_images, config.batch_size, ranks.rank, ranks.world_size, config.seed, config.data.augmentation
    )
    rates = learning_rates(config.schedule, config.optimizer.lr, config.epochs, plan.steps_per_epoch)
    if not len(rates):
        raise SettingsError(f"epochs: {config.epochs} of {plan.steps_per_epoch} steps are no step at all")
    threads = config.data.threads or max(1, available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    product_dtype = choose_precision(config.precision, ranks.device)
    inject, size = config.head.inject, config.backbone.embedding_size
    start_step = math.ceil(inject.start_epoch * plan.steps_per_epoch)
    torch.manual_seed(config.seed)
    backbone = build(config.backbone).to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Run(
        config,
        ranks,
        dataset,
        plan,
        make_loader(config.data.reader, dataset, plan, ranks.device, threads),
        rates,
        product_dtype,
        backbone,
        distributed.replicate(backbone, ranks, torch.zeros(2, 3, IMAGE_SIDE, IMAGE_SIDE, device=ranks.device)),
        ShardedHead(
            config.head, dataset.num_classes, size, ranks, config.seed, product_dtype, config.batch_size, start_step,
            plan.steps_per_epoch,
        ),
        BackboneOptimizer(config.optimizer, backbone.named_parameters(), scaled=product_dtype == torch.float16),
        BatchStatistics(backbone, ranks),
        MomentumBackbone(backbone, inject.momentum, inject.momentum_batch_norm) if inject.needs_momentum else None,
        bad_steps=torch.zeros(2, dtype=torch.int32, device=ranks.device),
    )


def choose_precision(setting: str, device: torch.device) -> torch.dtype:
    """The type of matrix products: what `precision` says, or the best that the device has."""
    named = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if setting in named:
        if setting == "fp32":  # cuDNN's convolutions would use TF32, which is not that
            torch.backends.cudnn.allow_tf32 = False
        return named[setting]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def seed_step(run: Run, *part: int) -> None:
    """Seed torch's default generator (dropout) for this step and rank: there is no random state to save.

    part: number of a micro-batch, where there are several.
    """
    torch.manual_seed(torch_seed(_DROPOUT, run.config.seed, run.step, run.ranks.rank, *part))


def begin(run: Run) -> None:
    """Say what is trained and leave config.json in the run's folder."""
    config, ranks, head = run.config, run.ranks, run.head
    if ranks.is_first and run.step < len(run.rates):
        record_start(run)
    logger.info("run %s: %d images of %d identities from %s", config.folder, run.dataset.num_images,
                run.dataset.num_classes, config.data.root)
    logger.info("%s, %.2f M parameters; %s; %d ranks on %s; %s; batch %d; classes a rank ≤ %d",
                config.backbone.name, sum(p.numel() for p in run.backbone.parameters()) / 1e6, config.head.margin,
                ranks.world_size, ranks.device.type, str(run.product_dtype).removeprefix("torch."), config.batch_size,
                head.stop - head.start)
    if head.memory is not None and not head.memory.injects(len(run.rates) - 1):
        logger.warning("nothing will be injected: head.inject starts after the last step, or has no age or strength")
    logger.info("%d steps (%s epochs), from step %d, by %s", len(run.rates), config.epochs, run.step,
                type(run.loader).__name__)


def record_start(run: Run) -> None:
    """Write config.json: settings, data, commit and versions of the start; of each going on, its step and commit."""
    path = run.config.folder / "config.json"
    if not run.step:  # figures of a run that was here before are not this one's
        (run.config.folder / "evaluation.json").unlink(missing_ok=True)
    record = {"settings": settings_of(run.config), "data": run.dataset.fingerprint(), **provenance()}
    if run.step and path.exists():
        first = json.loads(path.read_text())
        gone_on = [*first.get("gone_on", []), {"step": run.step, **provenance()}]
        record = first | {"settings": settings_of(run.config), "gone_on": gone_on}
    path.write_text(json.dumps(record, indent=1) + "\n")


def replicated_state(run: Run) -> dict[str, Tensor]:
    """The tensors that are the same on all ranks, by name; loading copies into them."""
    parts = {"backbone": run.backbone.state_dict(), "optimizer": run.optimizer.state()}
    if run.momentum:
        parts["momentum"] = run.momentum.module.state_dict()
    if run.head.memory:
        parts["memory"] = {"statistics": run.head.memory.statistics}
    parts["head"] = run.head.replicated()
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def save(run: Run) -> None:
    """Save the whole state, then the model file; drop the oldest saves."""
    config, folder = run.config, run.config.folder / "checkpoints"
    state = {
        "best": run.best,
        "scores": run.scores,
        "bad_steps": run.bad_steps.tolist(),
        "data": run.dataset.fingerprint(),
        "settings": settings_of(config),
    }
    checkpoint.save(folder, run.step, replicated_state(run), run.head.state(), run.head.start, state, run.ranks)
    if run.ranks.is_first:
        checkpoint.prune(folder, config.checkpoint.keep)
        save_backbone(run, "model_last.pt")


def save_backbone(run: Run, name: str) -> None:
    """Write the backbone alone, as a model file that evaluation and export read."""
    info = {"run": run.config.name, "step": run.step, "epoch": run.epoch, "scores": run.scores}
    save_model(run.config.folder / name, run.backbone, run.config.backbone, info)


def keep_best(run: Run) -> None:
    """Keep the model with the highest mean accuracy over the verification sets as model_best.pt."""
    accuracies = [score["accuracy"] for score in run.scores if not score["degrade"]]
    if accuracies and np.mean(accuracies) > run.best:
        run.best = float(np.mean(accuracies))
        if run.ranks.is_first:
            save_backbone(run, "model_best.pt")


def resume(run: Run) -> None:
    """Go on from the newest good checkpoint. SettingsError when it was made with other settings or data."""
    saved = checkpoint.latest(run.config.folder / "checkpoints", run.ranks)
    if saved is None:
        return
    different = changes(saved.state["settings"], settings_of(run.config))
    if saved.state["data"] != run.dataset.fingerprint():
        different.append(f"data: {saved.state['data']} → {run.dataset.fingerprint()}")
    if different:
        raise SettingsError(
            f"{run.config.folder} holds a run with other settings; give another --set name=…, or --fresh to put it "
            "aside:\n  " + "\n  ".join(different)
        )
    restore(replicated_state(run), saved.replicated(), saved.folder)
    restore(run.head.state(), saved.rows(run.head.start, run.head.stop), saved.folder)
    run.step, run.best, run.scores = saved.state["step"], saved.state["best"], saved.state["scores"]
    run.bad_steps.copy_(torch.tensor(saved.state["bad_steps"]))


@torch.no_grad()
def restore(tensors: dict[str, Tensor], stored: dict[str, Tensor], folder: Path) -> None:
    """Copy stored tensors into those of the same names. CheckpointError when names or shapes are others."""
    strange = sorted(
        name for name in tensors.keys() | stored.keys()
        if name not in stored or name not in tensors or stored[name].shape != tensors[name].shape
    )
    if strange:
        raise CheckpointError(f"{folder}: does not fit this run: {', '.join(strange[:3])} ({len(strange)} in all)")
    for name, tensor in tensors.items():
        tensor.copy_(stored[name])


def stop_on_bad_steps(run: Run) -> None:
    """End a run that no longer learns anything; the device counts, the host looks where it logs."""
    most = int(run.bad_steps[1])
    if most >= BAD_STEPS_IN_A_ROW:
        raise NumericsError(f"by step {run.step}, {most} steps in a row had a loss or a gradient that is not finite")


def report_failure(error: Exception) -> int:
    """Leave a failure's line and status where the launcher reads them, at once; return the status."""
    rank, expected = os.environ.get("RANK", "0"), isinstance(error, TrainerError)
    trace = "" if expected and not debugging() else "".join(traceback.format_exception(error))
    lost_peer = not expected and any(sign in str(error) for sign in SIGNS_OF_A_LOST_PEER)
    if not isinstance(error, TrainerError):
        error = DistributedError(f"rank {rank}: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
    folder = os.environ.get("RUN_FAILURES")
    if folder:
        note = {"status": error.status, "message": str(error), "traceback": trace, "lost_peer": lost_peer,
                "time": time.time()}
        Path(folder, f"rank-{rank}.json").write_text(json.dumps(note))
    else:
        print(f"{trace}error: {error}", file=sys.stderr)
    return error.status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as failure:
        sys.exit(report_failure(failure))
