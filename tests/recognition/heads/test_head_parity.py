"""The tiled, sharded head against the dense float64 head: every margin, sampled and not, with and without injection.

Each case runs three steps on 1, 2 or 4 processes with uneven shards; the reference takes the centres before each step
from the head and carries its own margin state on. With plain SGD of rate 1, −Δw is the centres' gradient.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recognition.distributed import ALONE, Ranks, gather_uneven_rows
from recognition.heads import shard
from recognition.heads.centers import shard_range
from recognition.heads.margins import MARGINS
from recognition.heads.passes import class_bytes
from recognition.heads.row_optimizers import RowSGD
from recognition.heads.sharded import HeadSettings, ShardedHead
from recognition.memory import INJECTIONS


def _reference() -> ModuleType:
    """dense_head.py, found by its file: test folders are no packages, and rank processes know no test modules."""
    if "dense_head" not in sys.modules:
        spec = importlib.util.spec_from_file_location("dense_head", Path(__file__).with_name("dense_head.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules["dense_head"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["dense_head"])
    return sys.modules["dense_head"]


dense = _reference()
Case = dict[str, Any]  # plain, since a class of this module could not be unpickled by a rank process

CLASSES, SIZE, BATCH = 37, 16, 8
STEPS = (3, 4, 5)
MAX_AGE = 3
INJECTED = {"none": None, "vpl": ("vpl", 0.15), "qaface": ("qaface", 1.0)}
TILE_ROWS = {1: CLASSES * 3, 2: 3, 4: 5}
# Cosines of the samples with their own centres, one row a step: easy and hard, past π − m, the median beside 45°.
COSINES = torch.tensor([
    [0.95, 0.7, 0.3, 0.85, -0.2, -0.95, 0.55, 0.1],
    [0.95, 0.9, 0.8, 0.85, 0.75, -0.97, 0.78, 0.1],
    [0.2, 0.5, -0.5, 0.1, 0.93, 0.4, -0.9, 0.99],
], dtype=torch.float64)
LABELS = torch.tensor([
    [0, 36, 10, 10, 18, 19, 9, 30],
    [5, 36, 10, 11, 36, 20, 9, 36],
    [0, 1, 2, 3, 4, 5, 6, 7],  # all on the first of 2 or 4 shards, more than it would sample
])
LENGTHS = torch.tensor([4.0, 12.0, 30.0, 60.0, 95.0, 130.0, 20.0, 11.0], dtype=torch.float64)[:, None]
VARIANTS = [
    ("sphereface", {"straight_through": False}), ("arcface", {"straight_through": True}), ("arcface", {"s": 100.0}),
    ("combined", {"m1": 1.1, "m2": 0.2, "m3": 0.1}), ("combined", {"m1": 1.4, "m2": 0.5, "m3": 0.0}),
    ("magface", {"easy": False}), ("adaface", {"straight_through": True}), ("mvsoftmax", {"easy": False, "s": 64.0}),
    ("curricularface", {"s": 20.0}), ("adacos", {"dynamic": False}), ("adacos", {"s": 6.0}),
    ("subcenter", {"centers_per_class": 2}),
    ("elasticface", {"kind": "cos"}), ("elasticface", {"plus": True}), ("elasticface", {"kind": "cos", "plus": True}),
    ("uniface", {"balance": 0.3}),
]


def _case(name: str, **changes: Any) -> Case:
    """A case's plain description. What `changes` may name is what stands here."""
    settings = {"queue": 12} if name == "broadface" else {}
    case = {"name": name, "settings": settings, "rate": 1.0, "inject": "none", "classes": CLASSES, "batch": BATCH,
            "steps": STEPS, "dtype": torch.float64, "product": None, "length": 40.0, "problem": "spread",
            "ignore_above": None}
    assert changes.keys() <= case.keys()
    return case | changes


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _weight(case: Case) -> Tensor:
    """The centres before the first step, float64 [C·K, d], every number of which float32 holds.

    Longer centres have smaller gradients: at length 40 three steps of rate 1 leave them about where they are.
    """
    per_class = (dense.DEFAULTS[case["name"]] | case["settings"]).get("centers_per_class", 1)
    weight = case["length"] * _unit(_random(7, case["classes"] * per_class, SIZE))
    if case["problem"] == "equal centers":
        weight[per_class : 2 * per_class] = weight[:per_class]
        weight[-per_class:] = weight[:per_class]
    return weight.float().double()


def _batch(case: Case, step: int) -> tuple[Tensor, Tensor]:
    """The global batch of a step: embeddings [B, d] float64 that float32 holds, labels [B]."""
    number = case["steps"].index(step)
    weight = _weight(case)
    label = LABELS[number, : case["batch"]] % case["classes"]
    own = weight[label * (len(weight) // case["classes"])]
    if case["problem"] == "cosines of one":  # to the bit: along or against the own centre, and two of other classes
        sign = torch.tensor([4.0, -2.0, 0.5, -4.0, 1.0, -1.0, 2.0, 2.0], dtype=torch.float64)[: len(label), None]
        own[-2:] = weight[(label[-2:] + 1) % case["classes"] * (len(weight) // case["classes"])]
        return sign * own, label
    other = _random(step, len(label), SIZE)
    across = _unit(other - (other * _unit(own)).sum(dim=1, keepdim=True) * _unit(own))
    c = COSINES[number, : len(label), None]
    return (LENGTHS[: len(label)] * (c * _unit(own) + (1 - c * c).sqrt() * across)).float().double(), label


def _memory(case: Case) -> tuple[Tensor, Tensor]:
    """Memory rows float64 [C, d], and stamps [C]: never written, just, some steps ago, too long ago."""
    rows = _unit(_random(9, case["classes"], SIZE))
    if case["inject"] == "qaface":
        rows *= 0.3 + 2.7 * torch.arange(case["classes"])[:, None] / case["classes"]
    return rows.float().double(), torch.arange(case["classes"]) % 5 - 1


def _head(ranks: Ranks, case: Case) -> ShardedHead:
    kind = INJECTED[case["inject"]]
    injection = INJECTIONS[case["inject"]]() if kind is None else INJECTIONS[kind[0]](strength=kind[1], max_age=MAX_AGE)
    settings = HeadSettings(
        MARGINS[case["name"]](**case["settings"]), case["rate"], inject=injection, ignore_above=case["ignore_above"],
        optimizer=RowSGD(momentum=0.0, weight_decay=0.0),
        tile_bytes=class_bytes(BATCH, SIZE, itemsize=case["dtype"].itemsize) * TILE_ROWS[ranks.world_size],
    )
    head = ShardedHead(settings, case["classes"], SIZE, ranks, seed=1, product_dtype=case["product"] or case["dtype"],
                       batch_size=case["batch"], start_step=0, dtype=case["dtype"])
    weight = _weight(case)
    per_class = len(weight) // case["classes"]
    assert head.weight.dtype == case["dtype"]
    assert head.weight.shape == ((head.stop - head.start) * per_class, SIZE)
    head.weight.copy_(weight[head.start * per_class : head.stop * per_class])
    if kind is not None:
        assert head.memory is not None
        rows, stamp = _memory(case)
        head.memory.rows.copy_(rows[head.start : head.stop])
        head.memory.stamp.copy_(stamp[head.start : head.stop])
    return head


def _state(head: ShardedHead) -> dict[str, float]:
    return {name: float(value) for name, value in head.margin_state.items() if value.dim() == 0}


def _steps(ranks: Ranks, case: Case) -> list[dict[str, Any]]:
    """The head's steps; what it held before each, and what came of it, the shards gathered."""
    head = _head(ranks, case)
    share = case["batch"] // ranks.world_size
    own = slice(ranks.rank * share, (ranks.rank + 1) * share)
    found = []
    for step in case["steps"]:
        embedding, label = _batch(case, step)
        before, state = head.weight.clone(), _state(head)
        index = head.rows(label, step).index
        used = head.start + (torch.arange(head.stop - head.start) if index is None else index.clone())
        draws = head.draws(step, len(label)) if head.settings.margin.draws else None
        result = head.step(embedding[own].to(case["dtype"]), label[own], step=step, lr=1.0)
        found.append({
            "loss": result.loss.item(), "finite": bool(result.finite), "state": state, "after": _state(head),
            "embedding_gradient": result.embedding_gradient.numpy().copy(),
            "weight": gather_uneven_rows(before, ranks).numpy().copy(),
            "weight_gradient": gather_uneven_rows(before - head.weight, ranks).numpy().copy(),
            "used": np.sort(gather_uneven_rows(used, ranks).numpy()),
            "draws": None if draws is None else draws.numpy().copy(),
        })
    return found


def _dense(case: Case, step: int, world: int, found: dict[str, Any], state: dict[str, Any],
           dtype: torch.dtype = torch.float64, product: torch.dtype | None = None) -> dict[str, Any]:
    """The reference's step from the centres that the head had."""
    embedding, label = _batch(case, step)
    injection: dict[str, Any] = {}
    if case["inject"] != "none":
        rows, stamp = _memory(case)
        fresh = (stamp >= 0) & (step - stamp >= 1) & (step - stamp <= MAX_AGE)
        injection = {"injection": INJECTED[case["inject"]], "memory": rows.to(dtype), "fresh": fresh}
    return dense.dense_step(
        torch.from_numpy(found["weight"]).to(dtype), embedding.to(dtype), label, case["name"], case["settings"], state,
        rows=found["used"], shards=[shard_range(case["classes"], rank, world) for rank in range(world)],
        draws=None if found["draws"] is None else torch.from_numpy(found["draws"]).to(dtype), product_dtype=product,
        filter_above=case["ignore_above"], **injection,
    )


def _check_rows(case: Case, step: int, world: int, used: np.ndarray) -> None:
    """All classes without sampling; else the batch's and others, as many as the rate says or a batch can hold."""
    present = np.unique(_batch(case, step)[1].numpy())
    assert (np.diff(used) > 0).all(), f"a class is used twice: {used}"
    assert set(present) <= set(used.tolist()), f"classes {present} of the batch are not all among those used, {used}"
    for rank in range(world):
        start, stop = shard_range(case["classes"], rank, world)
        count = ((used >= start) & (used < stop)).sum()
        own = ((present >= start) & (present < stop)).sum()
        least, most = (max(n, int(case["rate"] * (stop - start))) for n in (own, min(case["batch"], stop - start)))
        assert least <= count <= most, f"shard {rank} of {world} uses {count} classes, not {least} to {most}"


def _check(case: Case, world: int, results: list[list[dict[str, Any]]], tolerance: float = 1e-10) -> None:
    """Each step of every rank against the reference, whose margin state goes its own way from the start."""
    state: dict[str, Any] = dense.initial_state(case["name"], case["classes"], case["settings"])
    for number, step in enumerate(case["steps"]):
        found = [result[number] for result in results]
        first = found[0]
        at = f"{case['name']} {case['settings']}, {world} ranks, rate {case['rate']}, {case['inject']}, step {step} "
        _check_rows(case, step, world, first["used"])
        scalars = {key: float(value) for key, value in state.items() if key != "queue"}
        assert first["state"] == pytest.approx(scalars, rel=10 * tolerance, abs=tolerance), at + "state before"
        wanted = _dense(case, step, world, first, state)
        state = wanted["state"]
        assert all(one["finite"] for one in found), at + "said to be not finite"
        assert all(one["loss"] == first["loss"] for one in found), at + "the ranks differ in their loss"
        assert first["loss"] == pytest.approx(wanted["loss"], rel=tolerance, abs=tolerance), at + "loss"
        mine = np.concatenate([one["embedding_gradient"] for one in found])
        for what, got in (("embedding_gradient", mine), ("weight_gradient", first["weight_gradient"])):
            largest = np.abs(wanted[what]).max()
            np.testing.assert_allclose(got, wanted[what], rtol=10 * tolerance, atol=tolerance * (largest + 1e-3),
                                       err_msg=at + what)
        scalars = {key: float(value) for key, value in state.items() if key != "queue"}
        for one in found:
            assert one["after"] == pytest.approx(scalars, rel=10 * tolerance, abs=tolerance), at + "state after"


def _can(name: str, rate: float = 1.0, inject: str = "none") -> bool:
    """BroadFace's queue needs every class, and no one can say which of a class's sub-centres is injected."""
    return not (name == "broadface" and rate < 1) and not (name == "subcenter" and inject != "none")


SAMPLED = [(name, rate) for name in MARGINS for rate in (1.0, 0.5) if _can(name, rate)]
ALL = [(name, rate, inject) for name, rate in SAMPLED for inject in INJECTED if _can(name, rate, inject)]


def test_the_steps_meet_every_branch():
    """The problems are not vacuous: each regime of each formula occurs in them."""
    case = _case("arcface", inject="qaface")
    cosine, target, length, age = [], [], [], []
    for step in STEPS:
        embedding, label = _batch(case, step)
        cosine.append(_unit(embedding) @ _unit(_weight(case)).T)
        target.append(cosine[-1].gather(1, label[:, None]))
        cosine[-1] = cosine[-1].scatter(1, label[:, None], -1.0)
        length.append(torch.linalg.vector_norm(embedding, dim=1))
        age.append(step - _memory(case)[1][label])
    c, theta = torch.cat(target), torch.acos(torch.cat(target))
    assert theta.min() < 0.5 < torch.pi - 0.5 < theta.max()  # both sides of arcface's π − m, adaface's and magface's
    assert {int(k) for k in torch.floor(1.7 * theta / torch.pi).unique()} == {0, 1}
    assert 0 < (torch.cat(cosine) > torch.cos(theta + 0.5)).double().mean() < 1  # curricularface's hard negatives
    assert 0 < (torch.cat(cosine) > c - 0.35).double().mean() < 1  # mvsoftmax's
    assert (c < 0).any()
    assert (torch.cat(cosine) < -0.25).any()  # circle leaves them out
    assert 0 < (torch.cat(cosine) > 0.3).double().mean() < 1
    assert torch.acos(target[1]).median() < torch.pi / 4 < torch.acos(target[0]).median()
    assert (length[0] < 10).any()
    assert ((length[0] > 10) & (length[0] < 100)).any()
    assert (length[0] > 110).any()
    assert len(set(LABELS[0].tolist())) < BATCH
    for old in age:
        assert {bool(fresh) for fresh in (old >= 1) & (old <= MAX_AGE)} == {False, True}
    assert shard_range(CLASSES, 0, 4)[1] > int(LABELS[2].max()) > int(0.5 * shard_range(CLASSES, 0, 4)[1])


def test_the_reference_knows_every_margin():
    assert set(dense.DEFAULTS) == set(MARGINS)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(("name", "rate", "inject"), ALL)
def test_equals_dense_float64(on_ranks, world, name, rate, inject):
    case = _case(name, rate=rate, inject=inject)
    _check(case, world, on_ranks(world, _steps, case))


@pytest.mark.parametrize("inject", ["vpl", "qaface"])
@pytest.mark.parametrize("name", ["arcface", "curricularface", "sphereface2"])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_fresh_rows_mixed_by_themselves(monkeypatch, name, rate, inject):
    """As on a CPU where they are few: here, however many there are."""
    monkeypatch.setattr(shard, "FEW", 0)
    case = _case(name, rate=rate, inject=inject)
    assert _head(ALONE, case).shard.read(slice(None), STEPS[0], form=False).mixed is not None
    _check(case, 1, [_steps(ALONE, case)])


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_settings_equal_dense_float64(on_ranks, world, name, settings):
    case = _case(name, settings=settings, rate=0.7 if world == 2 else 1.0)
    _check(case, world, on_ranks(world, _steps, case))


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("world", [1, 2])
def test_ignored_negatives(on_ranks, world, name):
    """Negatives above a cosine are left out of every sum and get no gradient."""
    case = _case(name, ignore_above=0.3, rate=0.7 if world == 2 and name != "broadface" else 1.0)
    _check(case, world, on_ranks(world, _steps, case))


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("problem", ["cosines of one", "equal centers"])
def test_degenerate_directions(on_ranks, name, problem):
    """An angle of 0 or π is known to 1e-8 only, the root of rounding: so is what follows from it."""
    case = _case(name, problem=problem)
    _check(case, 1, on_ranks(1, _steps, case), 1e-10 if problem == "equal centers" else 1e-7)


@pytest.mark.parametrize("name", MARGINS)
def test_one_sample(on_ranks, name):
    case = _case(name, batch=1)
    _check(case, 1, on_ranks(1, _steps, case))


@pytest.mark.parametrize(("name", "rate"), SAMPLED)
def test_fewer_classes_than_ranks(on_ranks, name, rate):
    case = _case(name, classes=3, rate=rate)
    _check(case, 4, on_ranks(4, _steps, case))


def _error(got: Any, exact: np.ndarray | float) -> float:
    return float(np.linalg.norm(np.asarray(got, dtype=np.float64) - exact))


@pytest.mark.parametrize(("product", "slack"), [
    (torch.float32, 2e-6), (torch.bfloat16, 2e-3), (torch.float16, 5e-4),
], ids=["float32", "bf16", "fp16"])
@pytest.mark.parametrize(("name", "world", "inject"), [
    *((name, 1, "none") for name in MARGINS), *((name, 2, "qaface") for name in MARGINS if _can(name, inject="qaface")),
])
def test_low_precision_errs_no_more_than_plain_code(on_ranks, world, inject, product, slack, name):
    """Against float64: at most twice the error of dense autograd in the same precision, and a little of the size."""
    case = _case(name, inject=inject, dtype=torch.float32, product=product, length=1.0, steps=STEPS[:1])
    results = on_ranks(world, _steps, case)
    found = [result[0] for result in results]
    state = dense.initial_state(name, CLASSES, case["settings"])
    exact = _dense(case, STEPS[0], world, found[0], state)
    plain = _dense(case, STEPS[0], world, found[0], state, torch.float32, product)
    got = {"loss": found[0]["loss"], "weight_gradient": found[0]["weight_gradient"],
           "embedding_gradient": np.concatenate([one["embedding_gradient"] for one in found])}
    got |= found[0]["after"]
    for part in (exact, plain):
        part |= {key: float(value) for key, value in part["state"].items() if key != "queue"}
    for what, mine in got.items():
        limit = 2 * _error(plain[what], exact[what]) + slack * float(np.linalg.norm(exact[what]))
        error = _error(mine, exact[what])
        assert error <= limit, f"{name}, {what}: error {error:.3g}, allowed {limit:.3g}, size {exact[what]}"


def _draws(ranks: Ranks, batch: int) -> np.ndarray:
    head = _head(ranks, _case("elasticface", batch=batch))
    return np.stack([head.draws(step, batch).numpy() for step in (3, 4)])


def test_draws_are_normal_and_the_same_on_any_number_of_ranks(on_ranks):
    alone = _draws(Ranks(), 4096)
    assert alone.shape == (2, 4096)
    assert np.abs(alone.mean(axis=1)).max() < 5 / 64
    assert np.abs(alone.std(axis=1) - 1).max() < 5 / np.sqrt(2 * 4096)
    assert abs(np.corrcoef(alone)[0, 1]) < 5 / 64
    for rank in on_ranks(2, _draws, 4096):
        np.testing.assert_array_equal(rank, alone)
