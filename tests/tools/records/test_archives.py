"""Zip and tar files that lie, lead out, or are damaged: only DataErrors, and nothing outside is touched."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recognition.errors import DataError
from tools.records.sources import open_source, tar_archive
from tools.records.sources import source as source_module
from tools.records.sources.zip_archive import zip_members

JPEG = cv2.imencode(".jpg", np.zeros((112, 112, 3), np.uint8))[1].tobytes()


def opened(path, tmp_path):
    return open_source(path, None, tmp_path / "spool")


def zip_of(path, name, data=JPEG, mode=0, **fields):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        member.compress_type = fields.get("method", zipfile.ZIP_DEFLATED)
        archive.writestr(member, data)
    return path


def tar_of(path, name, kind=tarfile.REGTYPE, data=JPEG):
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        member.size = len(data) if kind == tarfile.REGTYPE else 0
        archive.addfile(member, io.BytesIO(data))
    return path


ESCAPES = ["../x/a.jpg", "x/../../a.jpg", "/x/a.jpg", "C:/x/a.jpg", "..\\x\\a.jpg", "\\x\\a.jpg"]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="leads out of the archive"):
        opened(zip_of(tmp_path / "a.zip", name), tmp_path)
    with pytest.raises(DataError, match="leads out of the archive"):
        opened(tar_of(tmp_path / "a.tar", name), tmp_path)


@pytest.mark.parametrize("compress", [False, True])
def test_a_tar_whose_rest_tarfile_passes_over_is_refused(tmp_path, compress):
    """tarfile ends its list in silence at a damaged header, a cut one and a file that ends between two members."""
    with tarfile.open(tmp_path / "whole.tar", "w") as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"x/{number}.jpg")
            member.size = len(JPEG)
            archive.addfile(member, io.BytesIO(JPEG))
    with tarfile.open(tmp_path / "whole.tar") as archive:
        second, end = archive.getmembers()[1].offset, archive.getmembers()[2].offset_data + -(-len(JPEG) // 512) * 512
    whole = (tmp_path / "whole.tar").read_bytes()
    flipped = bytearray(whole)
    flipped[second + 150] ^= 1
    cases = [(bytes(flipped), second), (whole[:second], second), (whole[: second + 200], second), (whole[:end], end)]
    path = tmp_path / ("a.tar.gz" if compress else "a.tar")
    for data, offset in cases:
        path.write_bytes(gzip.compress(data) if compress else data)
        with pytest.raises(DataError, match=rf"{path.name}: damaged or cut at offset {offset}:"):
            opened(path, tmp_path)
    path.write_bytes(gzip.compress(whole[: end + 512]) if compress else whole[: end + 512])
    assert len(opened(path, tmp_path).names) == 3


def test_a_member_that_stands_there_twice_is_refused_in_lists_too(tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / "a.tar", "a") as archive:
            member = tarfile.TarInfo("x/a.jpg")
            member.size = len(JPEG) - number
            archive.addfile(member, io.BytesIO(JPEG))
    (tmp_path / "a.csv").write_text("path,label\nx/a.jpg,0\n")
    for path, images in ((tmp_path / "a.tar", None), (tmp_path / "a.csv", tmp_path / "a.tar")):
        with pytest.raises(DataError, match=r"a\.tar: member 'x/a\.jpg' stands there twice"):
            open_source(path, images, tmp_path / "spool")


def test_backslashes_of_windows_are_slashes(tmp_path):
    assert list(opened(zip_of(tmp_path / "a.zip", "x\\a.jpg"), tmp_path).names) == ["x/a.jpg"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    with pytest.raises(DataError, match=r"member 'x/a\.jpg' is a link, a device or sparse"):
        opened(tar_of(tmp_path / "a.tar", "x/a.jpg", kind), tmp_path)
    mode = stat.S_IFLNK if kind == tarfile.SYMTYPE else stat.S_IFCHR
    with pytest.raises(DataError, match=r"member 'x/a\.jpg' is a link or a device"):
        opened(zip_of(tmp_path / "a.zip", "x/a.jpg", mode=mode), tmp_path)


def test_encrypted_and_unknown_methods_are_refused(tmp_path):
    data = bytearray(zip_of(tmp_path / "a.zip", "x/a.jpg").read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match="is encrypted"):
        opened(tmp_path / "a.zip", tmp_path)
    with pytest.raises(DataError, match=r"compression method 14; expected none \(0\) or deflate \(8\)"):
        opened(zip_of(tmp_path / "b.zip", "x/a.jpg", method=zipfile.ZIP_LZMA), tmp_path)


def test_a_bomb_is_bounded_by_what_it_declares(tmp_path, monkeypatch):
    """A member that declares 100 bytes and inflates to 50 MB stops at 101; one that declares too much is not read."""
    data = bytearray(zip_of(tmp_path / "a.zip", "x/a.jpg", bytes(50_000_000)).read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", 100)
    (tmp_path / "a.zip").write_bytes(data)
    found = opened(tmp_path / "a.zip", tmp_path)
    with pytest.raises(ValueError, match="not the 100 bytes with the CRC"):
        found.reader.read(found.names[0], tuple(found.places[0].tolist()))
    data[at + 24 : at + 28] = struct.pack("<I", source_module.MAX_FILE + 1)
    (tmp_path / "a.zip").write_bytes(data)
    found = opened(tmp_path / "a.zip", tmp_path)
    with pytest.raises(ValueError, match="a picture has at most"):
        found.reader.read(found.names[0], tuple(found.places[0].tolist()))
    # a compressed tar of zeros: the free allowance, then 64 times the archive
    monkeypatch.setattr(tar_archive, "_FREE_BYTES", 1 << 16)
    tar_of(tmp_path / "b.tar", "x/a.jpg", data=bytes(20_000_000))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress((tmp_path / "b.tar").read_bytes()))
    with pytest.raises(DataError, match=r"unpacks to more than .* 64 times its size"):
        opened(tmp_path / "b.tar.gz", tmp_path)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_flipped_bit_is_found_by_the_crc(tmp_path):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = bytearray(zip_of(tmp_path / "a.zip", "x/a.jpg", method=method).read_bytes())
        data[len(data) // 4] ^= 1
        (tmp_path / "a.zip").write_bytes(data)
        found = opened(tmp_path / "a.zip", tmp_path)
        with pytest.raises(ValueError, match="the archive is damaged"):
            found.reader.read(found.names[0], tuple(found.places[0].tolist()))


def test_cut_archives(tmp_path):
    data = zip_of(tmp_path / "a.zip", "x/a.jpg").read_bytes()
    for size in range(0, len(data), 37):
        (tmp_path / "a.zip").write_bytes(data[:size])
        with pytest.raises(DataError, match="not a zip file, or cut"):
            opened(tmp_path / "a.zip", tmp_path)
    data = tar_of(tmp_path / "a.tar", "x/a.jpg").read_bytes()
    for size in (0, 100, 600, 512 + len(JPEG) - 1):
        (tmp_path / "a.tar").write_bytes(data[:size])
        with pytest.raises(DataError, match=r"not a tar file, or damaged|cut inside|no pictures|unexpected end"):
            opened(tmp_path / "a.tar", tmp_path)
    packed = gzip.compress(data)
    for size in range(2, len(packed) - 1, 29):
        (tmp_path / "a.tgz").write_bytes(packed[:size])
        with pytest.raises(DataError, match="not a tar file, or damaged"):
            opened(tmp_path / "a.tgz", tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["zip", "tar", "tar.gz"]), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)),
                                                           max_size=8), st.integers(0, 10**6))
def test_any_damage_is_a_data_error(tmp_path_factory, kind, flips, cut):
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / f"a.{kind}"
    plain = zip_of(path, "x/a.jpg") if kind == "zip" else tar_of(path, "x/a.jpg")
    data = bytearray(plain.read_bytes() if kind != "tar.gz" else gzip.compress(plain.read_bytes()))
    for at, value in flips:
        data[at % len(data)] = value
    if cut % 3 == 0:
        data = data[: cut % len(data)]
    path.write_bytes(data)
    try:
        found = open_source(path, None, folder / "spool")
    except DataError:
        return
    for row in range(len(found)):
        try:
            found.reader.read(found.names[row], tuple(found.places[row].tolist()))
        except (OSError, ValueError):
            continue


def test_hidden_files_and_others_are_left_aside(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("x/a.jpg", "x/._a.jpg", "x/readme.txt", "x/deep/er.jpg"):
            archive.writestr(name, JPEG)
    found = opened(tmp_path / "a.zip", tmp_path)
    assert list(found.names) == ["x/a.jpg"]
    assert found.ignored == ["x/._a.jpg", "x/readme.txt", "x/deep/er.jpg"]
    assert len(zip_members(tmp_path / "a.zip").names) == 2
