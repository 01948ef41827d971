"""Saving the whole state of a run so that the same command goes on where it stopped, on any number of ranks.

    checkpoints/
      step-000012000/
        replicated.safetensors            what is the same on all ranks: both backbones, the optimiser, the margin's
                                          state, the statistics of the norms
        rows-00000000-00102995.safetensors   classes [start, stop) of every row tensor: centres, their optimiser's rows,
                                             memory and stamps
        rows-00102995-00205990.safetensors   … one file a rank
        labels.txt                        the name of each class, one a line; only of a set that has names
        state.json                        plain values: step, score, settings …
        manifest.json                     size and SHA-256 of all of these; written last
      .step-000013000.unfinished/         being written, or left by a crash; never read, removed by the next save

A save becomes one by the rename of a folder whose files are on disk and were read back; a folder without a valid
manifest is none. Loading verifies every byte first, takes the newest good save and says which ones it passed over.
The folder must be on a file system that all nodes of a run see.

No file holds a pickle, so a hostile one has nothing to execute; what it claims (sizes, shapes, numbers, names) is held
against limits before memory is taken. torch.distributed.checkpoint would serve as well but for its pickled metadata
and its DTensors, which ranks own evenly.

    layout.py        names of files and folders; JSON and files from outside, within limits
    tensor_file.py   safetensors, hashed in the pass that writes them
    saved.py         reading: what is wrong with a save, the newest good one, rows for any number of ranks
    writing.py       one save on disk, phase by phase
    snapshot.py      what is saved, and its copy in host memory
    saver.py         the saves of a run, beside training or in its way
    keep.py          which saves stay

Proven by tests/recognition/checkpoint/.
"""

from recognition.checkpoint.keep import Keep, score_of
from recognition.checkpoint.layout import REPLICATED
from recognition.checkpoint.saved import Saved, latest, open_save, problems, read, saves, saves_in
from recognition.checkpoint.saver import Saver, save
from recognition.checkpoint.writing import POINTS, Published

__all__ = [
    "POINTS", "REPLICATED", "Keep", "Published", "Saved", "Saver", "latest", "open_save", "problems", "read",
    "save", "saves", "saves_in", "score_of",
]
