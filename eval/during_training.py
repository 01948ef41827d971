"""Verification while a run trains: the ranks share the images of each set.

Every rank holds and embeds only its share; the embeddings are gathered and the figures are the same on all ranks.
Proven by tests/recognition/test_train.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eval import metrics
from eval.verification import embed_with_mirror, load_bin, reduce_to, score, squared_distances
from recognition.data.batch import normalise
from recognition.distributed import Ranks, gather_uneven_rows, max_over_ranks

# With malloc as it comes, a CPU is faster with 8 (docs/evaluation.md, "Measured"): it gives large maps back to the
# system and fetches them anew. As the launcher sets it, 64 are as fast as 8, and with a small network faster.
IMAGES_AT_ONCE = 64


class Verifier:
    """Scores a backbone on verification sets, with images already in memory.

    curves: of the last scores, on rank 0: set (and side) → FAR and TAR, [P] each, of sets with pairs of both kinds.
    """

    def __init__(self, sets: Sequence[Path], degrade: Sequence[int], ranks: Ranks) -> None:
        self.ranks = ranks
        self.curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._width = 0
        self._shares: list[tuple[str, int | None, np.ndarray, np.ndarray]] = []
        for path in sets:
            pairs = load_bin(path)
            bounds = [len(pairs.images) * r // ranks.world_size for r in (ranks.rank, ranks.rank + 1)]
            share = pairs.images[slice(*bounds)].copy()
            self._shares.append((pairs.name, None, share, pairs.issame))
            self._shares += [(pairs.name, side, reduce_to(share, side), pairs.issame) for side in degrade]

    @torch.inference_mode()
    def score(
        self, backbone: nn.Module, product_dtype: torch.dtype, stopping: Callable[[], bool] = lambda: False
    ) -> list[dict[str, Any]] | None:
        """Figures of all sets (see `eval.verification.score`), the same on all ranks. Leaves the mode as it was.

        stopping: asked between parts of a set; once any rank's says yes the answer is None, on all ranks.
        """
        device = self.ranks.device

        def embed(images: np.ndarray) -> np.ndarray:
            if self._width and stopping():  # nobody will look at the rest
                return np.zeros((len(images), self._width), np.float32)
            parts = []
            for start in range(0, max(len(images), 1), IMAGES_AT_ONCE):  # once for an empty share: its width is known
                pixels = torch.from_numpy(images[start : start + IMAGES_AT_ONCE]).to(device)
                with torch.autocast(device.type, product_dtype, enabled=product_dtype != torch.float32):
                    parts.append(backbone(normalise(pixels)).float().cpu())
            self._width = parts[0].shape[1]
            return torch.cat(parts).numpy()[: len(images)]

        was_training = backbone.training
        backbone.eval()
        results: list[dict[str, Any]] = []
        self.curves = {}
        for name, side, images, issame in self._shares:
            sums, norms = embed_with_mirror(embed, images)
            if max_over_ranks(torch.tensor([stopping()], dtype=torch.int32, device=device), self.ranks).item():
                break
            whole = self._all(sums)
            results.append(score(whole, self._all(norms), issame, name, side))
            if self.ranks.is_first and issame.any() and not issame.all():
                self.curves[f"{name}_{side}" if side else name] = _curve(whole, issame)
        backbone.train(was_training)
        return results if len(results) == len(self._shares) else None

    def _all(self, share: np.ndarray) -> np.ndarray:
        rows: Tensor = gather_uneven_rows(torch.from_numpy(share).to(self.ranks.device), self.ranks)
        return rows.cpu().numpy()


def _curve(embedding_sum: np.ndarray, issame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FAR and TAR, [P] each, from none accepted falsely, which stands at the set's finest step, to all accepted."""
    roc = metrics.roc(-squared_distances(embedding_sum), issame)
    start = int(np.flatnonzero(roc.fpr == 0)[-1])
    return roc.fpr[start:].clip(min=1 / np.count_nonzero(~issame)), roc.tpr[start:]
