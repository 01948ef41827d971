"""Margins that depend on nothing but their own cosine: no state, plain negatives. Only the owner's shard is needed (L).

Proven by tests/recognition/heads/test_margins.py.
"""

from dataclasses import dataclass

from torch import Tensor

from recognition.heads.margins.margin import Batch, Margin, angle, bounded, falling_cosine, turned_and_continued


@dataclass(frozen=True)
class NormFace(Margin):
    """s·c: a normalised softmax without a margin. Needs L.

    Wang et al., "NormFace: L2 Hypersphere Embedding for Face Verification", 2017.
    """


@dataclass(frozen=True)
class SphereFace(Margin):
    """s·[(−1)^k cos(mθ) − 2k], k = ⌊mθ/π⌋: the angle times m. Needs L.

    Liu et al., "SphereFace", 2017, eq. 7, on unit embeddings with a scale as in Liu et al., "SphereFace Revived",
    2022; m = 1.7 and the gradient passed through the margin unchanged are those of its authors' code. s is ours, the
    same as the other margins'.
    """

    m: float = 1.7
    straight_through: bool = True

    def target(self, c: Tensor, norm: Tensor, batch: Batch) -> Tensor:
        """[B] as the class says."""
        return self.s * falling_cosine(self.m * angle(c))


@dataclass(frozen=True)
class CosFace(Margin):
    """s·(c − m). Needs L.

    Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", 2018, eq. 4 (there m = 0.35); m = 0.4
    as the usual recipes for large sets.
    """

    m: float = 0.4

    def target(self, c: Tensor, norm: Tensor, batch: Batch) -> Tensor:
        """[B] as the class says."""
        return self.s * (c - self.m)


@dataclass(frozen=True)
class ArcFace(Margin):
    """s·cos(θ + m), m in radians; past θ = π − m, where that turns back, s·(c − m·sin m). Needs L.

    Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", 2019, eq. 3; defaults the paper's.
    """

    m: float = 0.5

    def target(self, c: Tensor, norm: Tensor, batch: Batch) -> Tensor:
        """[B] as the class says."""
        return self.s * turned_and_continued(c, self.m)


@dataclass(frozen=True)
class Combined(Margin):
    """s·(cos(m1·θ + m2) − m3): all three margins at once. Needs L.

    Deng et al., "ArcFace", 2019, eq. 4; defaults those of its CM2, (1, 0.3, 0.2). Past m1·θ + m2 = π it keeps falling:
    with m1 = 1 by ArcFace's continuation c − m2·sin m2, else by SphereFace's (−1)^k cos φ − 2k, φ = m1·θ + m2.
    """

    m1: float = bounded(1.0, 0, 8)
    m2: float = bounded(0.3, 0, 3)
    m3: float = bounded(0.2, 0, 2)

    def target(self, c: Tensor, norm: Tensor, batch: Batch) -> Tensor:
        """[B] as the class says."""
        if self.m1 == 1.0:
            return self.s * (turned_and_continued(c, self.m2) - self.m3)
        return self.s * (falling_cosine(self.m1 * angle(c) + self.m2) - self.m3)


@dataclass(frozen=True)
class SubCenter(ArcFace):
    """ArcFace on the nearest of K centres of a class. Needs L: the K rows of a class live on one rank.

    Deng et al., "Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces", 2020; K = 3 the
    paper's. The maximum over the K cosines is the head's work: `c` is already that.
    drop_degrees: from `drop_epoch` on, samples farther than this from the centre that most samples of their class are
    nearest to do not count (the paper: 75); none drops nothing.
    """

    centers_per_class: int = bounded(3, 1, 64)
    drop_degrees: float | None = bounded(None, 0, 180)
    drop_epoch: float = bounded(4.0, 0, 1e6)

    def mistakes(self) -> list[str]:
        """As for every margin; and dropping from the start on, when all samples are far from all centres."""
        early = self.drop_degrees is not None and not self.drop_epoch > 0
        return super().mistakes() + ["drop_epoch: expected above 0; fresh centres are far from everybody"] * early


@dataclass(frozen=True)
class BroadFace(ArcFace):
    """ArcFace; the centres learn from a queue of past embeddings as well.

    Kim et al., "BroadFace: Looking at Tens of Thousands of People at Once for Face Recognition", 2020; queue of 32k as
    there. queue: past embeddings kept, over all ranks. The queue and its compensation are the head's work; every
    shard sees the whole queue.
    """

    queue: int = bounded(32_768, 1, 1 << 24)
