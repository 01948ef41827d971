"""Where the pictures of a set come from: one file for each kind of source, and `open_source` that tells them apart.

A folder per identity; a zip or tar of such a folder; an LMDB; a list (.lst, CSV, Parquet) of pictures in a folder or in
any of these. Proven by tests/tools/records/test_sources.py.
"""

from pathlib import Path

from recognition.errors import DataError, SettingsError
from tools.records.sources.folder import open_folder
from tools.records.sources.lists import LIST_SUFFIXES, open_list
from tools.records.sources.lmdb_store import is_lmdb, lmdb_members, open_lmdb
from tools.records.sources.source import Members, Source, by_folder, stamp_of
from tools.records.sources.tar_archive import tar_members
from tools.records.sources.zip_archive import zip_members

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def open_source(path: Path, images: Path | None, spool: Path) -> Source:
    """Find out what a source is and list its pictures.

    Args:
        path: what the user gave.
        images: of a list, the folder or archive that its paths are in.
        spool: a folder that a compressed tar may be unpacked in.
    """
    if path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        root = images or path.parent
        if not root.exists():
            raise DataError(f"{root}: no such folder or archive; --images is where the paths of {path} begin")
        return open_list(path, root, _members(root, spool))
    if images is not None:
        raise SettingsError(f"--images {images} goes with a list ({', '.join(LIST_SUFFIXES)}) as the source, not with "
                            f"{path}")
    if is_lmdb(path):
        return open_lmdb(path)
    if path.is_dir():
        if any(path.glob("*.rec")):
            raise DataError(f"{path}: holds .rec files: a set already; `merge`, `split` and `shuffle` read sets")
        return open_folder(path)
    if not path.exists():
        raise DataError(f"{path}: no such folder or file; expected one folder per identity with its images, an archive "
                        "of such folders, an LMDB, or a list")
    members = _members(path, spool)
    if members is None:
        raise DataError(f"{path}: expected a folder, .zip, {', '.join(TAR_SUFFIXES)}, .lmdb, or a list "
                        f"({', '.join(LIST_SUFFIXES)})")
    return by_folder(path, "zip" if path.suffix.lower() == ".zip" else "tar", members, stamp_of(path))


def _members(path: Path, spool: Path) -> Members | None:
    """The pictures of an archive; None where the path is a folder of files."""
    if is_lmdb(path):
        return lmdb_members(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return zip_members(path)
    if path.is_file() and path.name.lower().endswith(TAR_SUFFIXES):
        return tar_members(path, spool)
    return None
