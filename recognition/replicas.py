"""Are the ranks' copies of the backbone still the same, to the bit?

A copy that a memory fault or a bug has changed trains on unnoticed: the gradients are summed over ranks, and the file
that is written is rank 0's. So every so many steps, and before each save, the ranks compare a number a tensor:

    Σ_k (2k + 1) · word_k  mod 2^64      over the tensor's 32-bit words (bytes, where its size is no multiple of four)

One changed word changes it, as an odd multiple of less than 2^32 is not 0 mod 2^64; so do two exchanged words.
The ranks exchange one MAX reduce of two numbers a tensor; only where they differ are the numbers gathered, and the rank
outside the majority named.
Proven by tests/recognition/test_replicas.py.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from recognition.distributed import Ranks, all_values, max_over_ranks
from recognition.errors import NumericsError

WORDS_AT_ONCE = 2**22  # 64 MB of products and places


@torch.no_grad()
def checksums(tensors: Mapping[str, Tensor]) -> Tensor:
    """The numbers of tensors of any dtype, int64 [n], in order of their names, on their device."""
    return torch.stack([_checksum(tensors[name]) for name in sorted(tensors)])


def _checksum(tensor: Tensor) -> Tensor:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    words = raw.view(torch.int32) if raw.numel() % 4 == 0 else raw
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for start in range(0, words.numel(), WORDS_AT_ONCE):
        part = words[start : start + WORDS_AT_ONCE]
        place = torch.arange(2 * start + 1, 2 * (start + part.numel()), 2, dtype=torch.int64, device=words.device)
        total += (part.to(torch.int64) * place).sum()
    return total


def require_equal(tensors: Mapping[str, Tensor], step: int, ranks: Ranks) -> None:
    """Raise NumericsError on all ranks when any tensor differs between two of them; it and the rank are named."""
    if ranks.world_size == 1:
        return
    own = checksums(tensors)
    # Minus the smallest number would overflow for −2^63; the complement never does and turns the order as well.
    highest, lowest = max_over_ranks(torch.stack([own, ~own]), ranks)
    if torch.equal(highest, ~lowest):
        return
    everywhere = all_values(own.tolist(), ranks)
    wrong: dict[int, list[str]] = {}
    for name, values in zip(sorted(tensors), zip(*everywhere, strict=True), strict=True):
        (usual, count), *others = Counter(values).most_common()
        for rank, value in enumerate(values):
            # Without a majority nobody is known to be right.
            if others and (value != usual or 2 * count <= len(values)):
                wrong.setdefault(rank, []).append(name)
    told = "; ".join(
        f"rank {rank}: {names[0]}" + f" and {len(names) - 1} more" * (len(names) > 1)
        for rank, names in sorted(wrong.items())
    )
    raise NumericsError(f"at step {step} the ranks' copies differ: {told} (memory fault, or a bug)")
