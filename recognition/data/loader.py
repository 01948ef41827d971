"""Chooses the loader: DALI where it is installed, the fallback elsewhere; both follow the same plan, `stream` does not.

`Prefetched` hands on any loader's batches, and copies to the GPU on a stream of its own. It has not run on a GPU yet.

Proven by tests/recognition/data/test_loaders.py.
"""

import contextlib
from collections.abc import Iterator

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
    prefetch: bool = False,
) -> Loader:
    """A loader of the plan's batches. kind "auto" is "dali" where DALI can be imported, else "fallback".

    bad_share: the share of the images that may turn out bad and be replaced.  decode: where DALI decodes on a GPU.
    prefetch: on a GPU, batches come there beside the training stream.
    """
    if kind not in KINDS:
        raise SettingsError(f"loader {kind!r}; expected one of {', '.join(KINDS)}")
    if prefetch and device.type == "cuda":
        return Prefetched(make_loader(kind, dataset, plan, device, threads, bad_share, decode), device)
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


class Prefetched:
    """Another loader's batches; what it does on the GPU for one, it does while the step before it runs there.

    The host asks for a batch as soon as it has queued the step before. On the training stream the copy would wait for
    that step; on a stream of its own it does not.
    """

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self.loader, self.device = loader, device
        self.name, self.plan, self.bad = loader.name, loader.plan, loader.bad

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """The batches of the global steps [start_step, stop_step) in order, ready for the stream that asks."""
        side = torch.cuda.Stream(self.device)
        source = self.loader.batches(start_step, stop_step)
        with contextlib.closing(source):  # type: ignore[type-var]
            while True:
                with torch.cuda.stream(side):
                    batch = next(source, None)
                if batch is None:
                    return
                training = torch.cuda.current_stream(self.device)
                training.wait_stream(side)
                for tensor in (batch.image, batch.label):
                    tensor.record_stream(training)  # its memory is the side stream's, which must not reuse it earlier
                yield batch
