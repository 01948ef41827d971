"""The parts of a run on one rank, built from its settings. Proven by tests/recognition/test_train.py."""

import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recognition import distributed
from recognition.backbones import build
from recognition.backbones.work import multiply_accumulates
from recognition.bad_steps import BadSteps
from recognition.batch_statistics import BatchStatistics
from recognition.config import Config, agreed_settings
from recognition.cpus import available_cpus
from recognition.data.dataset import RecordDataset, open_dataset
from recognition.data.loader import Loader, make_loader
from recognition.data.plan import IMAGE_SIDE, Plan
from recognition.distributed import Ranks
from recognition.errors import SettingsError
from recognition.graphs import CapturedForward, capture_training, products_in
from recognition.guard import Guard
from recognition.heads.sharded import ShardedHead
from recognition.limits import batch_mistakes
from recognition.log import logger
from recognition.micro_batches import MicroBatches
from recognition.momentum import MomentumBackbone
from recognition.optimizer import BackboneOptimizer
from recognition.phases import Phases
from recognition.schedule import learning_rates
from recognition.speed import Compile, as_written, folds, pays_on_cpu, try_compiled, way_to_compile


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
    size, start_step = config.backbone.embedding_size, math.ceil(config.head.inject.start_epoch * plan.steps_per_epoch)
    backbone, momentum, replica = make_networks(config, ranks, product_dtype, len(rates))
    return Run(
        config,
        ranks,
        dataset,
        plan,
        make_loader(
            config.data.reader, dataset, plan, ranks.device, threads, config.data.bad_share, config.data.decode,
            config.speed.prefetch,
        ),
        rates,
        product_dtype,
        backbone,
        replica,
        ShardedHead(
            config.head, dataset.num_classes, size, ranks, config.seed, product_dtype, config.batch_size, start_step,
            plan.steps_per_epoch,
        ),
        BackboneOptimizer(config.optimizer, backbone.named_parameters(), scaled=product_dtype == torch.float16),
        BatchStatistics(backbone, ranks),
        momentum,
        Guard(ranks),
    )


def make_networks(
    config: Config, ranks: Ranks, dtype: torch.dtype, steps: int
) -> tuple[nn.Module, MomentumBackbone | None, nn.Module]:
    """The backbone, its momentum copy where injection asks for one, and what trains it over ranks; made fast.

    dtype: of matrix products.  steps: of the whole schedule.
    """
    speed, inject, parts = config.speed, config.head.inject, config.micro_batches
    torch.backends.cudnn.benchmark = speed.tune
    torch.manual_seed(config.seed)
    backbone = build(config.backbone).to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    momentum = None
    if inject.needs_momentum:
        shape = torch.empty(2, 3, IMAGE_SIDE, IMAGE_SIDE, device="meta") if folds(speed, ranks.device) else None
        momentum = MomentumBackbone(backbone, inject.momentum, inject.momentum_batch_norm, ranks, shape)
    example = torch.zeros(2, 3, IMAGE_SIDE, IMAGE_SIDE, device=ranks.device)
    way = how_compiled(config, backbone, ranks, steps)
    if speed.graphs or way != "off":
        rows = config.batch_size // ranks.world_size // parts
        image = example[:1].to(dtype).repeat(rows, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        make_fast(config, way, backbone, momentum, image, ranks)
        example = image if speed.graphs else example  # a graph knows one size
    with as_written(backbone):
        replica = distributed.replicate(backbone, ranks, example, speed.compress == "bf16", whole=parts == 1)
    return backbone, momentum, replica


def how_compiled(config: Config, backbone: nn.Module, ranks: Ranks, steps: int) -> Compile:
    """How a run of so many steps compiles its backbones.

    Counted are a forward, a backward of two forwards' work, and with injection the momentum backbone's forward.
    """
    if config.speed.compile != "auto" or ranks.device.type != "cpu":  # nothing has to be counted
        return way_to_compile(config.speed, ranks.device, pays=False)
    forwards = 4 if config.head.inject.needs_momentum else 3
    images = steps * config.batch_size / ranks.world_size
    pays = pays_on_cpu(backbone, 2.0 * forwards * multiply_accumulates(config.backbone) * images)
    return way_to_compile(config.speed, ranks.device, pays)


def make_fast(
    config: Config, way: Compile, backbone: nn.Module, momentum: MomentumBackbone | None, image: Tensor, ranks: Ranks
) -> None:
    """Compile and capture the backbones in place. Each runs on `image`, one part of a batch, without effect.

    Raises SettingsError where what was asked for cannot be had.
    """
    speed, parts = config.speed, min(config.micro_batches, 2)
    if speed.graphs and ranks.device.type != "cuda":
        raise SettingsError("speed.graphs: CUDA graphs need a GPU")
    networks: list[Any] = [backbone, *([momentum.network] if momentum else [])]
    statistics = [BatchStatistics(network, ranks) for network in networks]
    before = [one.remember() for one in statistics]

    def passes() -> None:
        """The forwards and the backward of a step, as they will run: what is compiled depends on it."""
        if speed.graphs:
            with products_in(image.dtype):
                embedding = backbone(image)
                if momentum:
                    with torch.no_grad():
                        momentum.network(image)
            embedding.backward(torch.zeros_like(embedding))
            return
        step = MicroBatches(torch.cat([image] * parts), parts, backbone, image.dtype, lambda number: None)
        if momentum:
            with torch.no_grad():
                step.through(momentum.network)
        step.back_propagate(torch.zeros_like(step.embed(statistics[0])))

    try_compiled(way, networks, passes, ranks, asked=speed.compile != "auto")
    backbone.zero_grad()
    if speed.graphs:
        try:
            capture_training(backbone, image, image.dtype)
            if momentum:
                momentum.network = CapturedForward(momentum.network, image, image.dtype)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what cannot be captured
            raise SettingsError(f"speed.graphs=true fails here ({error}); choose false") from error
    for one, values in zip(statistics, before, strict=True):
        one.restore(values)


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
