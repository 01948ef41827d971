"""What TensorBoard shows of a run, in RUN/tensorboard: scalars in groups, lengths as histograms, ROC curves, pictures.

    train/ head/ injection/ machine/    the figures of logged steps (recognition/watch.py), by their names there
    head/embedding_norm_all             lengths of embeddings, a histogram now and then (HISTOGRAM_EVERY); momentum_…
    verification/SET/accuracy …         of every evaluation, and verification/roc, the curves of all sets as a picture
    batch                               pictures of a batch as the network sees them: of the first logged step, and of
                                        the first one of each epoch

Pictures show people. They stand in a folder of their own, RUN/pictures, without file names, and nowhere with
`log.pictures=false`. Weights & Biases (recognition/wandb_sync.py) copies all that lies below RUN/tensorboard, never
these. Rank 0 alone has a board. Proven by tests/recognition/test_log.py.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from eval.roc_plot import roc_picture
from recognition import wandb_sync
from recognition.config import Config

HISTOGRAM_EVERY = 10
ROWS, COLUMNS = 4, 8


class Board:
    """TensorBoard's files of one run, from the first `open` to `close`."""

    def __init__(self, folder: Path, config: Config) -> None:
        """Make the writer of pictures and join Weights & Biases, as far as the settings ask for them."""
        from torch.utils.tensorboard import SummaryWriter  # seconds to import, so only where it is used

        self._make = SummaryWriter
        self._folder = folder / "tensorboard"
        # Before Weights & Biases begins to watch writers that are made.
        self._pictures: Any = SummaryWriter(str(folder / "pictures")) if config.log.pictures else None
        self._epoch_seen = 0
        self._logged = 0
        self._writer: Any = None
        self._config, self._run_folder = config, folder
        self._synced: Any = None
        self._joined = False

    def open(self, start_step: int) -> None:
        """Write from here on; what a run wrote behind this step is struck out by TensorBoard."""
        if self._config.log.wandb and not self._joined:
            self._joined = True
            self._synced = wandb_sync.join(self._config, self._run_folder, goes_on=start_step > 0)
        if self._writer is not None:
            self._writer.close()
        self._writer = self._make(str(self._folder), purge_step=start_step + 1)

    def step(
        self, step: int, epoch: float, groups: Mapping[str, Mapping[str, float]], norms: Mapping[str, np.ndarray],
        image: Tensor | None,
    ) -> None:
        """Show a logged step. image: uint8 [b, 112, 112, 3], a rank's rows of it, on whatever device."""
        for group, values in groups.items():
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
        if self._logged % HISTOGRAM_EVERY == 0:
            for name, lengths in norms.items():
                if len(lengths) and np.isfinite(lengths).all():
                    self._writer.add_histogram(f"head/{name}_norm_all", lengths, step)
        self._logged += 1
        if self._pictures is not None and image is not None and math.ceil(epoch) > self._epoch_seen:
            self._epoch_seen = math.ceil(epoch)
            self._pictures.add_image("batch", grid(image[: ROWS * COLUMNS].cpu().numpy()), step, dataformats="HWC")
            self._pictures.flush()

    def scores(
        self, step: int, scores: Sequence[Mapping[str, Any]], curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> None:
        """Show an evaluation. scores: see `eval.verification.score`.  curves: name → FAR and TAR, [P] each."""
        for score in scores:
            for figure in ("accuracy", "val", "eer", "mean_norm"):
                if score.get(figure) is not None:
                    self._writer.add_scalar(f"verification/{score_name(score)}/{figure}", score[figure], step)
        if curves:
            rates = {name: {"far": far, "tar": tar} for name, (far, tar) in curves.items()}
            drawn = roc_picture(rates, f"{next(iter(rates)) if len(rates) == 1 else 'all sets'}, step {step}")
            self._writer.add_image("verification/roc", drawn, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Finish the files, then what copies them."""
        for part in (self._writer, self._pictures):
            if part is not None:
                part.close()
        if self._synced is not None:
            wandb_sync.leave(self._synced)


def score_name(score: Mapping[str, Any]) -> str:
    """A set's name, with the side to which it was reduced."""
    return score["set"] + (f"_{score['degrade']}" if score["degrade"] else "")


def grid(images: np.ndarray) -> np.ndarray:
    """Images uint8 [n, h, w, 3] side by side, COLUMNS in a row, missing ones black: [rows·h, columns·w, 3]."""
    count, height, width, channels = images.shape
    columns = min(COLUMNS, max(count, 1))
    rows = -(-count // columns) if count else 1
    whole = np.zeros((rows * columns, height, width, channels), np.uint8)
    whole[:count] = images
    whole = whole.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return whole.reshape(rows * height, columns * width, channels)
