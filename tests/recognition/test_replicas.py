"""Every single changed bit of a copy is found, and the rank that has it named."""

import numpy as np
import pytest
import torch

from recognition.distributed import Ranks
from recognition.errors import NumericsError
from recognition.replicas import checksums, require_equal

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.uint8)


def _tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "layer.weight": torch.randn(7, 3, 3, generator=generator).mul(50).to(dtype),
        "layer.bias": torch.randn(5, generator=generator).mul(50).to(dtype),
        "counter": torch.tensor(3).to(dtype),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_flipped_bit_changes_the_number(dtype):
    tensors = _tensors(dtype)
    before = checksums(tensors)
    for place, name in enumerate(sorted(tensors)):
        raw = tensors[name].view(-1).view(torch.uint8)
        for byte in range(len(raw)):
            for bit in range(8):
                raw[byte] ^= 1 << bit
                changed = (checksums(tensors) != before).nonzero().flatten().tolist()
                raw[byte] ^= 1 << bit
                assert changed == [place], (name, byte, bit)
    assert torch.equal(checksums(tensors), before)


def test_exchanged_values_and_blocks_are_seen(monkeypatch):
    tensor = torch.arange(10_000, dtype=torch.float32)
    whole = checksums({"a": tensor})
    monkeypatch.setattr("recognition.replicas.WORDS_AT_ONCE", 999)
    assert torch.equal(checksums({"a": tensor}), whole)
    tensor[[10, 9_990]] = tensor[[9_990, 10]]
    assert not torch.equal(checksums({"a": tensor}), whole)


def test_layout_in_memory_does_not_matter():
    image = torch.randn(2, 3, 4, 5)
    assert torch.equal(checksums({"a": image}), checksums({"a": image.to(memory_format=torch.channels_last)}))


def _flip(ranks: Ranks, wrong: int | None) -> str:
    tensors = _tensors(torch.float32)
    if ranks.rank == wrong:
        tensors["layer.weight"].view(-1).view(torch.int32)[11] ^= 1 << 30
    try:
        require_equal(tensors, 70, ranks)
    except NumericsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("world", [1, 2, 4])
def test_equal_copies_pass(on_ranks, world):
    assert set(on_ranks(world, _flip, None)) == {""}


def test_the_rank_outside_the_majority_is_named(on_ranks):
    for told in on_ranks(4, _flip, 2):
        assert told.startswith("at step 70 the ranks' copies differ: rank 2: layer.weight (")
    for told in on_ranks(2, _flip, 1):  # of two, nobody knows which is right
        assert "rank 0: layer.weight; rank 1: layer.weight" in told


def test_smallest_number_does_not_overflow(on_ranks):
    assert np.iinfo(np.int64).min == ~np.iinfo(np.int64).max  # why the complement and not the negative is compared
