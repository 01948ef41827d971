"""Chooses the loader: DALI where it is installed, the fallback elsewhere; both follow the same plan, `stream` does not.

Proven by tests/recognition/data/test_loaders.py.
"""

import torch

from recognition.data.bad_samples import BAD_SHARE
from recognition.data.batch import Batch, Loader, normalise
from recognition.data.dataset import RecordDataset
from recognition.data.fallback import FallbackLoader
from recognition.data.plan import Plan
from recognition.errors import SettingsError

__all__ = ["KINDS", "Batch", "Loader", "make_loader", "normalise"]

KINDS = ("auto", "dali", "fallback", "stream")


def make_loader(
    kind: str,
    dataset: RecordDataset,
    plan: Plan,
    device: torch.device,
    threads: int,
    bad_share: float = BAD_SHARE,
    decode: str = "auto",
) -> Loader:
    """A loader of the plan's batches. kind "auto" is "dali" where DALI can be imported, else "fallback".

    bad_share: the share of the images that may turn out bad and be replaced.  decode: where DALI decodes on a GPU.
    """
    if kind not in KINDS:
        raise SettingsError(f"loader {kind!r}; expected one of {', '.join(KINDS)}")
    if kind != "fallback":
        try:
            from recognition.data.dali import DaliLoader
        except ImportError as error:
            if kind != "auto":
                reason = f"NVIDIA DALI cannot be imported here ({error}); use 'auto' or 'fallback'"
                raise SettingsError(f"loader {kind!r}: {reason}") from error
        else:
            if kind == "stream":
                from recognition.data.stream import StreamLoader

                return StreamLoader(dataset, plan, device, threads, bad_share, decode)
            return DaliLoader(dataset, plan, device, threads, bad_share, decode)
    if decode not in ("auto", "cpu"):
        raise SettingsError(f"data.decode={decode} needs DALI and a GPU; the fallback decodes on the CPU")
    return FallbackLoader(dataset, plan, device, threads, bad_share)
