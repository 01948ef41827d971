"""Where the verbs write: under a temporary name beside the target, which gets its name when it is complete.

Nothing that stands there is replaced unless the user says so, and even then only what these verbs wrote: a folder with
a `provenance.json` and no file that is not of a set. A verb that is killed leaves `.NAME.writing`, which the next one
removes. Proven by tests/tools/records/test_copies.py.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recognition.errors import DataError, SettingsError

PROVENANCE = "provenance.json"  # what made a set, of what; its presence says that a folder is ours
_ENDINGS = (".rec", ".idx", ".lst", ".crc", ".map", ".tsv", ".json")
_NAMES = ("property",)


@contextmanager
def new_folder(out: Path, replace: bool, sources: Sequence[Path] = ()) -> Iterator[Path]:
    """Give a folder to write into that becomes `out` at the end, or vanishes when the block fails.

    Raises:
        SettingsError: `out` is not empty and `replace` is false, or it holds a source or lies in one.
        DataError: `out` holds something else than what was written here.
    """
    _check_folder(out, replace, sources)
    out.parent.mkdir(parents=True, exist_ok=True)
    writing, old = out.parent / f".{out.name}.writing", out.parent / f".{out.name}.old"
    writing.mkdir(exist_ok=True)
    lock = _lock(writing, out)
    try:
        _empty(writing)
        yield writing
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        writing.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    finally:
        os.close(lock)


@contextmanager
def new_file(path: Path, replace: bool) -> Iterator[Path]:
    """Give a file name to write that becomes `path` at the end, or vanishes when the block fails."""
    if path.exists() and not replace:
        raise SettingsError(f"{path}: exists; --replace writes it anew")
    if not path.parent.is_dir():
        raise DataError(f"{path}: could not be written: {path.parent} is no folder")
    writing = path.parent / f".{path.stem}.writing{path.suffix}"
    try:
        yield writing
        writing.replace(path)
    except OSError as error:
        raise DataError(f"{path}: could not be written: {error.strerror or error}") from error
    finally:
        writing.unlink(missing_ok=True)


def write_provenance(folder: Path, verb: str, facts: dict[str, Any]) -> None:
    """Say in `folder` what made it; nothing in it depends on when, where or by whom."""
    text = json.dumps({"verb": verb, **facts}, indent=1, ensure_ascii=False)
    (folder / PROVENANCE).write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def _lock(folder: Path, out: Path) -> int:
    """Hold a folder for this process; the descriptor lets it go when closed, or when the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise SettingsError(f"{out}: another process is writing it") from error
    return descriptor


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _check_folder(out: Path, replace: bool, sources: Sequence[Path]) -> None:
    target = out.resolve()
    for source in sources:
        folder = (source.parent if source.is_file() else source).resolve()
        if folder == target or folder.is_relative_to(target) or target.is_relative_to(folder):
            raise SettingsError(f"{out}: holds the source {source} or lies in it; give another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise SettingsError(f"{out}: is no folder")
    if not any(out.iterdir()):
        return
    if not replace:
        raise SettingsError(f"{out}: is not empty; --replace writes it anew")
    files = [path for path in sorted(out.rglob("*")) if not path.is_dir()]
    foreign = [path for path in files if path.suffix not in _ENDINGS and path.name not in _NAMES]
    if not (out / PROVENANCE).is_file() or foreign:
        found = f"{foreign[0].relative_to(out)}" if foreign else f"no {PROVENANCE}"
        raise DataError(f"{out}: was not written by this command ({found}); give another folder or remove it")
