"""The parts of a run on one rank, built from its settings. Proven by tests/recognition/test_train.py."""

import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from recognition import distributed
from recognition.backbones import build
from recognition.bad_steps import BadSteps
from recognition.batch_statistics import BatchStatistics
from recognition.config import Config, agreed_settings
from recognition.cpus import available_cpus
from recognition.data.dataset import RecordDataset, open_dataset
from recognition.data.loader import Loader, make_loader
from recognition.data.plan import IMAGE_SIDE, Plan
from recognition.distributed import Ranks
from recognition.errors import SettingsError
from recognition.guard import Guard
from recognition.heads.sharded import ShardedHead
from recognition.limits import batch_mistakes
from recognition.log import logger
from recognition.momentum import MomentumBackbone
from recognition.optimizer import BackboneOptimizer
from recognition.phases import Phases
from recognition.schedule import learning_rates


@dataclass
class Run:
    """The parts of a run on one rank, assembled, and how far it is.

    scored: the step of the last evaluation.  saved: the step of the last save begun, −1: none.
    """

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
    guard: Guard
    bad_steps: BadSteps = field(default_factory=BadSteps)
    phases: Phases = field(default_factory=Phases)
    step: int = 0
    best: float = -1.0
    scores: list[dict[str, Any]] = field(default_factory=list)
    scored: int = 0
    saved: int = -1

    @property
    def epoch(self) -> float:
        """Epochs done, with their fraction."""
        return self.step / self.plan.steps_per_epoch

    @property
    def is_over(self) -> bool:
        """Whether the schedule's last step was taken."""
        return self.step == len(self.rates)

    def is_due(self, every_epochs: float) -> bool:
        """Whether something that happens every so many epochs, and at the end, happens after this step; 0: never."""
        interval = every_epochs * self.plan.steps_per_epoch
        if interval <= 0 or not self.step:
            return False
        # 1e-9: 6 / (0.2 · 30) must not be 0.999…
        passed = int(self.step / interval + 1e-9) > int((self.step - 1) / interval + 1e-9)
        return passed or self.is_over


def assemble(config: Config, ranks: Ranks, dataset: RecordDataset | None = None) -> Run:
    """Build every part from the settings. Raises SettingsError and DataError before anything is trained.

    dataset: where it is open already; else it is opened here, and a file of its samples left beside it.
    """
    notes: list[str] = []
    dataset = dataset or open_dataset(config.data.root, config.data.weights, sidecar="write", notes=notes)
    if ranks.is_first:
        for note in notes:
            logger.warning(note)
    agreed = {"data": dataset.fingerprint(), **agreed_settings(config)}
    distributed.require_same("the settings or the data", agreed, ranks)
    if mistakes := batch_mistakes(config, ranks.world_size):
        raise SettingsError("; ".join(mistakes))
    plan = Plan(
        dataset.num_images, config.batch_size, ranks.rank, ranks.world_size, config.seed, config.data.augmentation,
        dataset.parts,
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
        make_loader(
            config.data.reader, dataset, plan, ranks.device, threads, config.data.bad_share, config.data.decode
        ),
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
        MomentumBackbone(backbone, inject.momentum, inject.momentum_batch_norm, ranks)
        if inject.needs_momentum else None,
        Guard(ranks),
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
