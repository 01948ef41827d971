"""A build that is killed goes on where it was and ends with the bytes of one that was not."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognition.data.dataset import open_dataset
from recognition.data.sample_map import MAP_NAME
from recognition.errors import DataError, SettingsError
from tools import rec_builder
from tools.records import build, building_folder
from tools.records.sources.folder import FolderReader

ROOT = Path(__file__).resolve().parents[3]
# A build that writes its state after every image (SIGKILL loses nothing that was written, synced or not).
ALWAYS = """
import os, sys
from recognition.errors import run_command
from tools import rec_builder
from tools.records import build, workers
build.SYNC_SECONDS, os.fsync, workers._IMAGES_FOR_A_PROCESS = 0, lambda file: None, 9
run_command(rec_builder.main)
"""


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """16 identities with 5 pictures; of two of them most cannot be read."""
    folder = tmp_path_factory.mktemp("resume") / "pictures"
    generator = np.random.default_rng(3)
    for label in range(16):
        (folder / f"n_{label}").mkdir(parents=True)
        for number in range(5):
            image = cv2.resize(generator.integers(0, 256, (4, 4, 3), np.uint8), (112, 112))
            path = folder / f"n_{label}" / f"{number}{'.png' if number == 3 else '.jpg'}"
            cv2.imwrite(str(path), image)
            if label in (5, 11) and number != 1:
                path.write_text("no picture")
    return folder


def files_of(folder):
    """What a build writes, less the map of its samples, which holds the files' times."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != MAP_NAME}


OPTIONS = {
    "one shard": (),
    "three shards": ("--shards", "3"),
    "shards of bytes": ("--shard-bytes", "64K", "--min-images", "3"),
}


@pytest.fixture(scope="module", params=OPTIONS, ids=lambda name: name.replace(" ", "_"))
def wanted(source, tmp_path_factory, request):
    out = tmp_path_factory.mktemp("whole") / "set"
    rec_builder.main(["build", str(source), str(out), *OPTIONS[request.param]])
    return OPTIONS[request.param], files_of(out)


class _StopError(Exception):
    pass


@pytest.mark.parametrize("images", [1, 7, 26, 40, 71, 79])
def test_going_on_after_any_image(source, wanted, tmp_path, monkeypatch, images):
    """Stop without a word after some images were written, with the last state some images older than the files."""
    options, files = wanted
    add, count = build.SetWriter.add, 0
    monkeypatch.setattr(build, "SYNC_SECONDS", 0)

    def stop(self, *arguments):
        nonlocal count
        count += 1
        add(self, *arguments)
        for file in (self._shard._records._file, self._shard._list, *self._texts.values()):
            file.flush()
        if count > images:
            monkeypatch.setattr(build, "write_progress", lambda *_: None)
        if count > images + 5:
            raise _StopError

    monkeypatch.setattr(build.SetWriter, "add", stop)
    command = ["build", str(source), str(tmp_path / "set"), *options]
    if images + 5 < 80:
        with pytest.raises(_StopError):
            rec_builder.main(command)
        assert images < 5 or [path.name for path in (tmp_path / "set").iterdir()] == [".building"]
        with pytest.raises(DataError):
            open_dataset(tmp_path / "set")
    monkeypatch.undo()
    assert rec_builder.main([*command, "--json", str(tmp_path / "report.json")]) == 0
    assert files_of(tmp_path / "set") == files
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["went_on_at"] <= images + 1
    if images in (7, 71):
        assert report["went_on_at"] > images - 8  # images of an identity may still be held back
    assert report["images"] == sum(shard["images"] for shard in report["shard_files"])


def test_going_on_after_kills(source, tmp_path):
    """SIGKILL at one moment after another until the build ends by itself."""
    rec_builder.main(["build", str(source), str(tmp_path / "whole"), "--shards", "2"])
    out = tmp_path / "set"
    command = [sys.executable, "-c", ALWAYS, "build", str(source), str(out), "--shards", "2", "--workers", "1"]
    positions = []
    for kill in range(12):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen = _position(out)
        while process.poll() is None and kill < 4 and _position(out) < seen + 12:
            time.sleep(0.001)
        if kill < 4:
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        positions.append(_position(out))
    assert positions == sorted(positions)
    assert positions[-1] >= 40
    assert files_of(out) == files_of(tmp_path / "whole")


def _position(out):
    try:
        return json.loads((out / ".building" / "progress.json").read_text()).get("state", {}).get("position", 80)
    except (OSError, ValueError):
        return 0


@pytest.mark.parametrize("moved", [0, 1, 3, 6, 8])
def test_going_on_in_the_middle_of_the_move(source, tmp_path, monkeypatch, moved):
    command = ["build", str(source), str(tmp_path / "set"), "--shards", "2"]
    rec_builder.main(command)
    files = files_of(tmp_path / "set")
    replace, count = Path.replace, 0

    def stop(self, target):
        nonlocal count
        if self.name != "progress.new":
            if count == moved:
                raise _StopError
            count += 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(_StopError):
        rec_builder.main(command)
    monkeypatch.undo()
    with pytest.raises(DataError):
        open_dataset(tmp_path / "set")
    monkeypatch.setattr(build, "_write_images", None)  # nothing is written again
    rec_builder.main(command)
    assert files_of(tmp_path / "set") == files


def test_other_settings_or_another_source_begin_anew(source, tmp_path, monkeypatch, capsys):
    out = tmp_path / "set"
    monkeypatch.setattr(build, "SYNC_SECONDS", 0)
    share = ["build", str(source), str(out), "--max-unreadable", "0.01"]
    with pytest.raises(DataError, match="more than the 0 allowed"):
        rec_builder.main(share)
    assert _position(out) > 20
    assert rec_builder.main(["build", str(source), str(out), "--json"]) == 0  # a larger share goes on
    assert json.loads(capsys.readouterr().out)["went_on_at"] > 20
    with pytest.raises(DataError):
        rec_builder.main(share)
    assert rec_builder.main(["build", str(source), str(out), "--quality", "70", "--json"]) == 0
    shown = capsys.readouterr()
    assert "beginning anew" in shown.err
    assert json.loads(shown.out)["went_on_at"] == 0


@pytest.mark.parametrize("listed", [False, True])
def test_changed_pictures_under_the_same_names_begin_anew(source, tmp_path, monkeypatch, capsys, listed):
    """A build stopped by unreadable pictures, which then were mended, or by anything while pictures were exchanged."""
    pictures, out = tmp_path / "pictures", tmp_path / "set"
    shutil.copytree(source, pictures)
    what, images = pictures, []
    if listed:
        what, images = tmp_path / "list.csv", ["--images", str(pictures)]
        rows = [f"{path.relative_to(pictures)},{path.parent.name}\n" for path in sorted(pictures.glob("*/*"))]
        what.write_text("path,label\n" + "".join(rows))
    monkeypatch.setattr(build, "SYNC_SECONDS", 0)
    with pytest.raises(DataError, match="more than the 0 allowed"):
        rec_builder.main(["build", str(what), str(out), *images, "--max-unreadable", "0"])
    assert _position(out) > 20
    for path in pictures.glob("n_5/*"):
        shutil.copyfile(pictures / "n_6" / "1.jpg", path)
    shutil.copyfile(pictures / "n_0" / "1.jpg", pictures / "n_0" / "0.jpg")
    assert rec_builder.main(["build", str(what), str(out), *images, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["went_on_at"] == 0
    rec_builder.main(["build", str(what), str(tmp_path / "fresh"), *images])
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_a_disk_that_fails_is_no_unreadable_picture(source, tmp_path, monkeypatch, capsys):
    read, failing = FolderReader.read, True

    def fails(self, name, place):
        if failing and name == "n_9/2.jpg":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self, name, place)

    monkeypatch.setattr(FolderReader, "read", fails)
    monkeypatch.setattr(build, "SYNC_SECONDS", 0)
    command = ["build", str(source), str(tmp_path / "set"), "--workers", "1"]
    with pytest.raises(DataError, match=r"n_9/2\.jpg: Input/output error: reading failed.*the same command goes on"):
        rec_builder.main(command)
    failing = False
    assert rec_builder.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["went_on_at"] > 20
    rec_builder.main(["build", str(source), str(tmp_path / "whole")])
    assert files_of(tmp_path / "set") == files_of(tmp_path / "whole")


def test_one_build_at_a_time_and_a_damaged_state(source, tmp_path, monkeypatch):
    out = tmp_path / "set"
    with building_folder.alone(out, out / ".building"), pytest.raises(SettingsError, match="another build is writing"):
        rec_builder.main(["build", str(source), str(out)])
    monkeypatch.setattr(build, "SYNC_SECONDS", 0)
    with pytest.raises(DataError, match="more than the 0 allowed"):
        rec_builder.main(["build", str(source), str(out), "--max-unreadable", "0.01"])
    os.truncate(out / ".building" / "train.rec", 100)
    with pytest.raises(DataError, match=r"shorter than the .* bytes that an interrupted build wrote; delete the"):
        rec_builder.main(["build", str(source), str(out)])
    (out / ".building" / "progress.json").write_text("{")
    assert rec_builder.main(["build", str(source), str(out)]) == 0


def _group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_leaves_no_process_and_goes_on(source, tmp_path):
    command = [sys.executable, "-c", ALWAYS, "build", str(source), str(tmp_path / "set"), "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True, text=True)
    while _position(tmp_path / "set") < 20:
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    if process.returncode:  # it may have been too quick
        assert process.returncode == 130
        assert "the same command goes on" in errors
        assert "Traceback" not in errors
    deadline = time.monotonic() + 20
    while _group_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _group_lives(process.pid)
    assert rec_builder.main(["build", str(source), str(tmp_path / "set")]) == 0
    rec_builder.main(["build", str(source), str(tmp_path / "whole")])
    assert files_of(tmp_path / "set") == files_of(tmp_path / "whole")
