"""The memory's parts: mix and gradient, freshness, who is written, what is counted."""

import math

import numpy as np
import pytest
import torch

from recognition.memory import (
    VPL,
    Memory,
    QAFace,
    effective_centers,
    effective_gradient,
    last_of_each,
    quality_weight,
)
from recognition.vectors import unit

YES = torch.tensor(True)


def _memory(injection, rows: int = 5, size: int = 3, start_step: int = 0) -> Memory:
    return Memory(injection, rows, size, torch.device("cpu"), batch_size=4, start_step=start_step)


@pytest.mark.parametrize("injection", [VPL(), QAFace(), QAFace(strength=0.3)], ids=str)
def test_gradient_through_the_mix_is_autograds(injection):
    torch.manual_seed(0)
    weight = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    fresh = torch.tensor([True, True, False, True, False, True])
    torch.autograd.gradcheck(lambda w: effective_centers(w, memory.detach(), fresh, injection), weight)
    gradient = torch.randn(6, 4, dtype=torch.float64)
    effective_centers(weight, memory.detach(), fresh, injection).backward(gradient)
    got = effective_gradient(gradient, weight.detach(), memory.detach(), fresh, injection)
    torch.testing.assert_close(got, weight.grad)
    assert memory.grad is None


def test_rows_that_are_not_fresh_are_the_plain_centres_to_the_bit():
    weight, memory = torch.randn(50, 8), torch.randn(50, 8)
    fresh = torch.arange(50) % 2 == 0
    mixed = effective_centers(weight, memory, fresh, QAFace())
    assert torch.equal(mixed[~fresh], unit(weight)[~fresh])
    assert not torch.isclose(mixed[fresh], unit(weight)[fresh]).all(dim=1).any()


def test_vpl_and_qaface_mix_as_defined():
    weight, memory, fresh = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([True])
    vpl = effective_centers(weight, memory, fresh, VPL(strength=0.25))
    torch.testing.assert_close(vpl, unit(torch.tensor([[0.75, 0.25]])))
    torch.testing.assert_close(effective_centers(weight, 3 * memory, fresh, QAFace()), unit(torch.tensor([[1.0, 3.0]])))


@pytest.mark.parametrize(("age", "expected"), [(0, False), (1, True), (3, True), (4, False)])
def test_fresh_from_one_to_max_age(age, expected):
    memory = _memory(QAFace(max_age=3))
    memory.stamp[2] = 10
    assert memory.fresh(slice(None), 10 + age).tolist() == [False, False, expected, False, False]


def test_nothing_is_fresh_before_the_start_and_age_may_be_in_samples():
    memory = _memory(QAFace(max_age=100), start_step=8)
    memory.stamp[0] = 5
    assert not memory.fresh(slice(None), 7).any()
    assert memory.fresh(slice(None), 8)[0]
    assert _memory(QAFace(max_age_samples=43)).max_age == 10


def test_weight_is_the_papers_function():
    statistics = torch.tensor([20.0, 4.0, 1.0])
    norm = torch.tensor([12.0, 11.999, 20.0, 24.0, 16.0])
    expected = [math.exp(2), 0.0, 1.0, math.exp(-1), math.exp(1)]
    np.testing.assert_allclose(quality_weight(norm, statistics, tau=2.0), expected, rtol=1e-5)


def _statistics(alpha: float) -> list[float]:
    memory = _memory(QAFace(stat_momentum=alpha))
    label = torch.full((4,), -1)
    for norms in ([1.0, 3.0, 1.0, 3.0], [5.0, 5.0, 9.0, 9.0]):
        embedding = torch.tensor(norms)[:, None] * torch.tensor([[1.0, 0.0, 0.0]])
        memory.write(embedding, torch.tensor(norms), label, 0, YES)
    return memory.statistics[:2].tolist()


def test_stat_momentum_weighs_the_history_and_turned_round_the_batch():
    assert _statistics(0.99) == pytest.approx([0.99 * 2 + 0.01 * 7, 0.99 * 1 + 0.01 * 2])
    assert _statistics(0.01) == pytest.approx([0.01 * 2 + 0.99 * 7, 0.01 * 1 + 0.99 * 2])


def _write(injection, norms, labels) -> Memory:
    memory = _memory(injection)
    memory.statistics.copy_(torch.tensor([10.0, 2.0, 1.0]))
    direction = torch.eye(3)[torch.arange(len(norms)) % 3]
    norm = torch.tensor(norms)
    memory.write(direction * norm[:, None], norm, torch.tensor(labels), 7, YES)
    return memory


def test_the_last_of_a_class_wins_or_the_hardest():
    norms, labels = [8.0, 12.0, 10.0], [1, 1, 3]
    last = _write(QAFace(stat_momentum=1.0), norms, labels)
    hardest = _write(QAFace(stat_momentum=1.0, duplicates="hardest"), norms, labels)
    torch.testing.assert_close(last.rows[1], torch.tensor([0.0, math.exp(-1), 0.0]))
    torch.testing.assert_close(hardest.rows[1], torch.tensor([math.exp(1), 0.0, 0.0]))
    assert last.stamp.tolist() == [-1, 7, -1, 7, -1]


def test_unrecognisable_samples_are_skipped_or_overwrite_with_zero():
    norms, labels = [8.0, 5.0, 10.0], [1, 1, 3]  # the second has z = −2.5
    skipped = _write(QAFace(stat_momentum=1.0), norms, labels)
    zeroed = _write(QAFace(stat_momentum=1.0, unrecognizable="zero"), norms, labels)
    torch.testing.assert_close(skipped.rows[1], torch.tensor([math.exp(1), 0.0, 0.0]))
    assert (zeroed.rows[1] == 0).all()
    assert zeroed.stamp[1] == 7
    assert skipped.seen[:3].tolist() == [3, 1, 0]


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("injection", [QAFace(stat_momentum=1.0), VPL()], ids=["qaface", "vpl"])
def test_unusable_embeddings_write_nothing_and_are_counted(injection, bad):
    memory = _write(injection, [bad, 10.0, 10.0], [1, 2, 2])
    assert memory.stamp.tolist() == [-1, -1, 7, -1, -1]
    assert torch.isfinite(memory.rows).all()
    assert memory.seen[2] == 1


def test_statistics_and_weights_are_float32_from_half_precision():
    memory = _memory(QAFace())
    embedding = torch.randn(4, 3).to(torch.bfloat16)
    norm = torch.linalg.vector_norm(embedding.float(), dim=1)
    memory.write(embedding, norm, torch.tensor([0, 1, 2, 3]), 0, YES)
    assert memory.statistics.dtype == memory.rows.dtype == torch.float32
    assert memory.statistics[0].item() == pytest.approx(norm.mean().item(), rel=1e-6)


def test_a_step_that_was_not_taken_changes_nothing():
    memory = _memory(QAFace())
    before = [t.clone() for t in (memory.rows, memory.stamp, memory.statistics)]
    memory.write(torch.randn(4, 3), torch.ones(4), torch.tensor([0, 1, 2, 3]), 0, torch.tensor(False))
    for tensor, old in zip((memory.rows, memory.stamp, memory.statistics), before, strict=True):
        assert torch.equal(tensor, old)


def test_last_of_each_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        label = torch.randint(0, 6, (20,), generator=generator)
        candidate = torch.rand(20, generator=generator) < 0.6
        order = torch.randint(0, 3, (20,), generator=generator).float()
        last, hardest = {}, {}
        for i in candidate.nonzero().squeeze(1).tolist():
            y = int(label[i])
            last[y] = i
            if y not in hardest or order[i] >= order[hardest[y]]:
                hardest[y] = i
        assert last_of_each(label, candidate).nonzero().squeeze(1).tolist() == sorted(last.values())
        assert last_of_each(label, candidate, order).nonzero().squeeze(1).tolist() == sorted(hardest.values())


def test_a_batch_without_a_winner_writes_nothing():
    memory = _write(QAFace(stat_momentum=1.0), [10.0], [2])
    before = [memory.rows.clone(), memory.stamp.clone()]
    memory.write(torch.ones(3, 3), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0, 2, 4]), 8, YES)  # z far below −τ
    memory.write(torch.ones(2, 3), torch.tensor([10.0, 10.0]), torch.tensor([-3, 99]), 9, YES)  # classes of other ranks
    assert torch.equal(memory.rows, before[0])
    assert torch.equal(memory.stamp, before[1])


def test_nothing_is_read_on_the_host():
    """Tensors without values would raise wherever one is asked for: on a GPU that would be a wait for the device."""
    memory = Memory(QAFace(), 5, 3, torch.device("meta"), 1, 0)
    embedding, label = torch.empty(4, 3, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    memory.write(embedding, torch.empty(4, device="meta"), label, 0, torch.empty((), dtype=torch.bool, device="meta"))
