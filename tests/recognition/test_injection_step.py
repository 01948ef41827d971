"""Five whole steps with injection against an independent dense NumPy float64 implementation, on 1, 2 and 4 ranks.

The backbone is a linear map of four pixels, so that the reference can be written out; everything else is the
trainer's own: DDP, the sharded head with uneven shards, optimisers, momentum backbone, memory, micro-batches. Labels
repeat within a batch, rows go stale, and injection starts in the middle.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recognition import distributed
from recognition.assembly import Run
from recognition.batch_statistics import BatchStatistics
from recognition.config import Config, DataSettings
from recognition.data.batch import Batch
from recognition.distributed import Ranks, gather_uneven_rows
from recognition.guard import Guard
from recognition.heads.margins import ArcFace
from recognition.heads.passes import class_bytes
from recognition.heads.row_optimizers import RowSGD
from recognition.heads.sharded import HeadSettings, ShardedHead
from recognition.memory import VPL, Injection, QAFace
from recognition.momentum import MomentumBackbone
from recognition.optimizer import BackboneOptimizer, OptimizerSettings
from recognition.train import train_step

CLASSES, SIZE, BATCH, STEPS = 11, 6, 8, 5
S, M, LR, DECAY, MOMENTUM = 8.0, 0.3, 0.05, 5e-4, 0.9
LABELS = np.array([
    [0, 10, 4, 4, 7, 0, 9, 3],
    [1, 10, 4, 2, 7, 7, 7, 5],
    [0, 8, 4, 2, 6, 1, 8, 6],
    [0, 10, 1, 1, 7, 0, 2, 6],
    [5, 10, 4, 9, 7, 0, 8, 3],
])
START, MAX_AGE = 2, 2

QUALITY = QAFace(max_age=MAX_AGE, strength=0.7, tau=0.8, stat_momentum=0.6, momentum=0.8)
CASES: dict[str, Injection] = {
    "none": Injection(),
    "vpl": VPL(max_age=MAX_AGE, strength=0.15),
    "qaface": QUALITY,
    "hardest": dataclasses.replace(QUALITY, duplicates="hardest"),
    "zero": dataclasses.replace(QUALITY, unrecognizable="zero"),
    "online norm": dataclasses.replace(QUALITY, norm_source="online"),
    "online source": dataclasses.replace(QUALITY, source="online"),
}


class Linear(nn.Module):
    """Colours of a 2×2 grid, mapped linearly: no bias, nothing but one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(12, SIZE, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.map(image[:, :, ::56, ::56].flatten(1))


def _images(step: int) -> np.ndarray:
    generator = np.random.default_rng(step)
    coarse = generator.integers(0, 256, (BATCH, 2, 2, 3), dtype=np.uint8)
    return coarse.repeat(56, axis=1).repeat(56, axis=2)


def _head(ranks: Ranks, injection: Injection, rate: float) -> ShardedHead:
    settings = HeadSettings(ArcFace(s=S, m=M), rate, RowSGD(MOMENTUM, DECAY), inject=injection,
                            tile_bytes=3 * class_bytes(BATCH, SIZE))
    head = ShardedHead(settings, CLASSES, SIZE, ranks, seed=4, batch_size=BATCH, start_step=START)
    head.weight.mul_(40)
    return head


def _steps(ranks: Ranks, injection: Injection, rate: float, parts: int = 1) -> list[dict[str, np.ndarray]]:
    """The trainer's own steps; everything after each of them, gathered."""
    torch.manual_seed(0)
    backbone = Linear()
    head = _head(ranks, injection, rate)
    run: Any = Run(
        config=Config(name="x", micro_batches=parts, data=DataSettings("x")), ranks=ranks,
        dataset=None, plan=None, loader=None,  # type: ignore[arg-type]
        rates=np.full(STEPS, LR), product_dtype=torch.float32, backbone=backbone,
        replica=distributed.replicate(backbone, ranks, torch.zeros(1, 3, 112, 112)), head=head,
        statistics=BatchStatistics(backbone, ranks),
        optimizer=BackboneOptimizer(OptimizerSettings(lr=LR, clip_norm=None), backbone.named_parameters()),
        guard=Guard(ranks),
        momentum=MomentumBackbone(backbone, injection.momentum) if injection.needs_momentum else None,
    )
    share = BATCH // ranks.world_size
    own = slice(ranks.rank * share, (ranks.rank + 1) * share)
    results = []
    for step in range(STEPS):
        batch = Batch(torch.from_numpy(_images(step)[own]), torch.from_numpy(LABELS[step][own]), np.arange(share))
        loss = train_step(run, batch, LR).loss
        found = {"loss": loss, "backbone": backbone.map.weight.detach()}
        found |= {name: gather_uneven_rows(rows, ranks) for name, rows in head.state().items()}
        if run.momentum is not None:
            found["momentum backbone"] = run.momentum.module.map.weight
        if head.memory is not None:
            found["statistics"] = head.memory.statistics
        results.append({name: value.clone().numpy() for name, value in found.items()})
    return results


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _backward_unit(g: np.ndarray, x: np.ndarray) -> np.ndarray:
    n = np.linalg.norm(x, axis=-1, keepdims=True)
    return (g - (g * x / n).sum(-1, keepdims=True) * x / n) / n


class Reference:
    """The same steps, dense, in float64, written from the equations."""

    def __init__(self, injection: Injection) -> None:
        torch.manual_seed(0)
        self.injection = injection
        self.theta = Linear().map.weight.detach().double().numpy().copy()
        self.theta_velocity = np.zeros_like(self.theta)
        self.xi = self.theta.copy()
        self.w = _head(Ranks(), Injection(), 1.0).weight.double().numpy().copy()
        self.w_velocity = np.zeros_like(self.w)
        self.memory, self.stamp = np.zeros_like(self.w), np.full(CLASSES, -1)
        self.mu = self.sigma = None

    def step(self, t: int, used: np.ndarray) -> dict[str, Any]:
        inject = self.injection
        pooled = (_images(t)[:, ::56, ::56].astype(np.float64) - 127.5) / 127.5
        a = pooled.transpose(0, 3, 1, 2).reshape(BATCH, -1)
        x, u, y = a @ self.theta.T, a @ self.xi.T, LABELS[t]
        age = t - self.stamp
        fresh = (self.stamp >= 0) & (age >= 1) & (age <= inject.max_age) & (t >= START)
        lam = np.where(fresh, inject.strength, 0.0)[:, None]
        keep = 1 - lam if isinstance(inject, VPL) else np.ones_like(lam)
        mixed = keep * _unit(self.w) + lam * self.memory
        centers = _unit(mixed)
        cosine = _unit(x) @ centers.T
        rows = np.arange(BATCH)
        theta = np.arccos(cosine[rows, y])
        past = theta + M >= np.pi
        logit = S * cosine
        logit[rows, y] = S * np.where(past, cosine[rows, y] - M * np.sin(M), np.cos(theta + M))
        slope = np.full_like(cosine, S)
        slope[rows, y] = S * np.where(past, 1, np.sin(theta + M) / np.sin(theta))
        absent = np.ones(CLASSES, bool)
        absent[used] = False
        logit[:, absent] = -np.inf
        p = np.exp(logit - logit.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        loss = -np.log(p[rows, y]).mean()
        p[rows, y] -= 1
        c_gradient = p * slope / BATCH
        x_gradient = _backward_unit(c_gradient @ centers, x)
        w_gradient = _backward_unit(keep * _backward_unit(c_gradient.T @ _unit(x), mixed), self.w)
        velocity = MOMENTUM * self.w_velocity + w_gradient + DECAY * self.w
        self.w_velocity[used] = velocity[used]
        self.w[used] -= LR * velocity[used]
        self.theta_velocity = MOMENTUM * self.theta_velocity + x_gradient.T @ a + DECAY * self.theta
        self.theta = self.theta - LR * self.theta_velocity
        self.xi = inject.momentum * self.xi + (1 - inject.momentum) * self.theta
        self._write(t, x, u, y)
        return {"loss": loss}

    def _write(self, t: int, x: np.ndarray, u: np.ndarray, y: np.ndarray) -> None:
        inject = self.injection
        if type(inject) is Injection:
            return
        source = u if inject.source == "momentum" else x
        weight = np.ones(BATCH)
        if isinstance(inject, QAFace):
            norm = np.linalg.norm(u if inject.norm_source == "momentum" else x, axis=1)
            alpha = 0.0 if self.mu is None else inject.stat_momentum
            self.mu = alpha * (self.mu or 0) + (1 - alpha) * norm.mean()
            self.sigma = alpha * (self.sigma or 0) + (1 - alpha) * norm.std()
            z = (norm - self.mu) / self.sigma
            weight = np.where(z >= -inject.tau, np.exp(-z), 0.0)
        best: dict[int, int] = {}
        for i in range(BATCH):
            if weight[i] == 0 and not (isinstance(inject, QAFace) and inject.unrecognizable == "zero"):
                continue
            if inject.duplicates == "hardest" and y[i] in best and weight[best[y[i]]] > weight[i]:
                continue
            best[int(y[i])] = i
        for label, i in best.items():
            self.memory[label] = weight[i] * _unit(source[i])
            self.stamp[label] = t


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("rate", [1.0, 0.6])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parts", [1, 2])
def test_five_steps_equal_dense_float64(on_ranks, world, rate, case, parts):
    injection = CASES[case]
    results = on_ranks(world, _steps, injection, rate, parts)
    shards = [_head(Ranks(rank=rank, world_size=world), injection, rate) for rank in range(world)]
    reference = Reference(injection)
    for step in range(STEPS):
        used = []
        for shard in shards:
            index = shard.rows(torch.from_numpy(LABELS[step]), step).index
            used.append(shard.start + (np.arange(len(shard.weight)) if index is None else index.numpy()))
        expected = reference.step(step, np.concatenate(used))
        expected |= {"weight": reference.w, "velocity": reference.w_velocity, "backbone": reference.theta}
        if injection.is_on:
            expected |= {"memory": reference.memory, "stamp": reference.stamp}
        if injection.needs_momentum:
            expected["momentum backbone"] = reference.xi
        if isinstance(injection, QAFace):
            expected["statistics"] = np.array([reference.mu, reference.sigma, 1])
        for rank, result in enumerate(results):
            assert result[step].keys() - {"statistics"} == expected.keys() - {"statistics"}
            for name, value in expected.items():
                # Rounding of float32 (3e-7 was seen), relative to the largest element.
                np.testing.assert_allclose(result[step][name], value, rtol=0, atol=3e-6 * np.abs(value).max(),
                                           err_msg=f"step {step}, rank {rank}: {name}")


def test_the_five_steps_inject_and_go_stale():
    """The scenario is not vacuous: rows are injected, rows are stale, samples are ignored, duplicates occur."""
    reference = Reference(QUALITY)
    fresh_counts, stale, ignored = [], 0, 0
    for step in range(STEPS):
        age = step - reference.stamp
        fresh = (reference.stamp >= 0) & (age <= MAX_AGE) & (step >= START)
        stale += int(((reference.stamp >= 0) & (age > MAX_AGE)).sum())
        fresh_counts.append(int(fresh.sum()))
        before = reference.stamp.copy()
        reference.step(step, np.arange(CLASSES))
        ignored += len(set(LABELS[step].tolist()) - set(np.flatnonzero(reference.stamp != before).tolist()))
    assert fresh_counts[:2] == [0, 0]
    assert min(fresh_counts[2:]) > 0
    assert stale > 0
    assert ignored > 0


def _plain(ranks: Ranks, injection: Injection) -> list[dict[str, np.ndarray]]:
    return _steps(ranks, injection, 1.0)


@pytest.mark.parametrize("off", [VPL(strength=0.0, max_age=2), QAFace(max_age=0), QAFace(strength=0.0)], ids=str)
@pytest.mark.parametrize("world", [1, 2])
def test_without_effect_is_the_plain_margin_to_the_bit(on_ranks, world, off):
    plain, injected = on_ranks(world, _plain, Injection()), on_ranks(world, _plain, off)
    for one, other in zip(plain, injected, strict=True):
        for before, after in zip(one, other, strict=True):
            for name in before:
                np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def _figures(ranks: Ranks) -> dict[str, float]:
    """Figures of a state that is written out by hand: classes 0 and 4 fresh, 7 stale, one sample of each."""
    head = _head(ranks, QAFace(strength=0.5, max_age=3), 1.0)
    assert head.memory is not None
    unit_weight = head.weight / head.weight.norm(dim=1, keepdim=True)
    for label, stamp in ((0, 9), (4, 8), (7, 2)):
        row = label - head.start
        if 0 <= row < len(head.weight):
            orthogonal = torch.roll(unit_weight[row], 1)
            orthogonal -= (orthogonal @ unit_weight[row]) * unit_weight[row]
            head.memory.rows[row] = 2 * orthogonal / orthogonal.norm()
            head.memory.stamp[row] = stamp
    head.memory.start_step = 0
    head.memory.statistics.copy_(torch.tensor([10.0, 2.0, 1.0]))
    head.memory.injection = dataclasses.replace(head.memory.injection, stat_momentum=1.0)
    norm = torch.tensor([10.0, 12.0, 3.0, 0.0])
    embedding = torch.eye(SIZE)[:4] * norm[:, None]
    head.memory.write(embedding, norm, torch.tensor([0, 7, 4, 1]) - head.start, 10, torch.tensor(False))
    return head.injection_figures(10)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_figures_for_the_log(on_ranks, world):
    for figures in on_ranks(world, _figures):
        assert figures == pytest.approx({
            "norm_mean": 10, "norm_deviation": 2, "unrecognizable": 1 / 4, "unusable": 1 / 4,
            "mean_weight": (1 + np.exp(-1)) / 2, "fresh": 2 / CLASSES, "memory_ratio": 1.0, "center_angle": 45.0,
            "injected_positives": 2 / 4,
        }, rel=1e-5)


@pytest.mark.parametrize("injection", [VPL(start_epoch=0), QAFace(start_epoch=0)], ids=["vpl", "qaface"])
def test_a_sample_never_meets_its_own_embedding_in_the_same_step(injection):
    """Even were the memory written before it is read: a row of this step is not fresh until the next one."""
    generator = torch.Generator().manual_seed(3)
    embedding, label = torch.randn(BATCH, SIZE, generator=generator) * 5, torch.from_numpy(LABELS[0])
    losses = {}
    for written_first in (False, True):
        head = _head(Ranks(), injection, 1.0)
        assert head.memory is not None
        head.memory.start_step = 0
        if written_first:
            norm = torch.linalg.vector_norm(embedding, dim=1)
            head.memory.write(embedding, norm, label, 4, torch.tensor(True))
            assert (head.memory.stamp == 4).any()
        losses[written_first] = [head.step(embedding, label, step, lr=0.0).loss.item() for step in (4, 5)]
    assert losses[True][0] == pytest.approx(losses[False][0], rel=1e-6)
    assert abs(losses[True][1] - losses[False][1]) > 1e-2
