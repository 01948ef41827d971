"""A save by an enemy, with a manifest that fits it: refused with one line, nothing executed, little memory taken."""

import hashlib
import json
import os
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recognition import checkpoint
from recognition.checkpoint.layout import MAX_JSON_BYTES, json_bytes, parse_json
from recognition.distributed import Ranks
from recognition.errors import CheckpointError

ROWS = "rows-00000000-00000004.safetensors"
REPLICATED = "replicated.safetensors"


@pytest.fixture
def save(tmp_path):
    rows = {"weight": torch.ones(4, 3), "stamp": torch.arange(4)}
    checkpoint.save(tmp_path, 1, {"x": torch.ones(2)}, rows, 0, {}, Ranks())
    return tmp_path / "step-000000001"


def _seal(save: Path, **added: object) -> None:
    """A manifest that fits what the files are now."""
    facts = {}
    for path in save.iterdir():
        if path.name != "manifest.json" and path.is_file():
            content = path.read_bytes()
            facts[path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (save / "manifest.json").write_text(json.dumps({"format": 1, "files": facts | added}))


def _refused(save: Path, *words: str) -> None:
    """Refused by all that reads a save, within 150 MB more than this process has."""
    (problem,) = checkpoint.problems(save)
    assert all(word in problem for word in words), problem
    assert len(problem) < 400

    def all_readers() -> None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 150_000_000, taken + 150_000_000))
        for read in (checkpoint.read, lambda path: checkpoint.open_save(path, Ranks())):
            with pytest.raises(CheckpointError):
                read(save)

    child = os.fork()
    if not child:
        try:
            all_readers()
        except BaseException as error:
            print(repr(error)[:500])
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


class _Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", [REPLICATED, ROWS])
@pytest.mark.parametrize("how", [pickle.dumps, lambda bomb: b"\x80\x04" + bytes(5) + pickle.dumps(bomb)[2:]])
def test_a_pickle_is_not_loaded(save, tmp_path, name, how):
    (save / name).write_bytes(how(_Bomb(tmp_path / "executed")))
    _seal(save)
    _refused(save, name, "not a safetensors file")
    torch.save(_Bomb(tmp_path / "executed"), save / name)
    _seal(save)
    _refused(save, name)
    assert not (tmp_path / "executed").exists()


def _file(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS = {
    "empty file": b"",
    "short": b"\1\0\0",
    "length past the end": _file({}, length=1 << 63),
    "length of a gigabyte": _file({}, length=1 << 30),
    "header too long": _file(b" " * (MAX_JSON_BYTES + 1)),
    "no JSON": _file(b"{'x': 1}"),
    "not UTF-8": _file(b'{"\xff": 1}'),
    "a list": _file([]),
    "nested": _file(b"[" * 100_000 + b"]" * 100_000),
    "nested objects": _file(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "many empty lists": _file(b'{"x": [' + b"[]," * 300_000 + b"[]]}"),
    "endless number": _file(b'{"x": ' + b"9" * 1_000_000 + b"}"),
    "NaN": _file(b'{"x": NaN}'),
    "infinite by size": _file(b'{"x": 1e999}'),
    "no claim": _file({"x": 3}),
    "no offsets": _file({"x": {"dtype": "F32", "shape": [2]}}),
    "one offset": _file({"x": _entry(offsets=[0])}),
    "text as offset": _file({"x": _entry(offsets=["0", "8"])}),
    "negative": _file({"x": _entry(shape=[-2], offsets=[0, -8])}),
    "a truth as side": _file({"x": _entry(shape=[True, 2])}),
    "fraction": _file({"x": _entry(shape=[2.0])}),
    "unknown type": _file({"x": _entry(dtype="F8_E4M3")}),
    "type is a list": _file({"x": _entry(dtype=["F32"])}),
    "more than the file": _file({"x": _entry(shape=[1 << 40], offsets=[0, 1 << 42])}),
    "more than it says": _file({"x": _entry(shape=[1 << 40])}),
    "overflow": _file({"x": _entry(shape=[1 << 32, 1 << 32], offsets=[0, 0])}),
    "nothing of much": _file({"x": _entry(shape=[0, 1 << 62, 1 << 62], offsets=[0, 0])}, b""),
    "many sides": _file({"x": _entry(shape=[1] * 7000 + [2])}),
    "gap": _file({"x": _entry(shape=[1], offsets=[4, 8])}),
    "overlap": _file({"x": _entry(), "y": _entry(shape=[1], offsets=[4, 8])}),
    "data left over": _file({"x": _entry(shape=[1], offsets=[0, 4])}),
    "a name as long as a page": _file({"x" * 100_000: 1}),
}


@pytest.mark.parametrize("name", [REPLICATED, ROWS])
@pytest.mark.parametrize("kind", HEADERS)
def test_headers(save, name, kind):
    (save / name).write_bytes(HEADERS[kind])
    _seal(save)
    _refused(save, name)


@pytest.mark.parametrize("shape", [[5, 2], [], [3]])
def test_rows_of_another_number(save, shape):
    count = torch.Size(shape).numel()
    (save / ROWS).write_bytes(_file({"weight": _entry(shape, [0, 4 * count])}, bytes(4 * count)))
    _seal(save)
    _refused(save, ROWS, "weight has the shape")


def test_rows_that_differ_from_file_to_file(save):
    rows = {"weight": torch.ones(4, 7), "stamp": torch.arange(4)}
    checkpoint.save(save.parent, 2, {}, rows, 0, {}, Ranks())
    (save.parent / "step-000000002" / ROWS).rename(save / "rows-00000004-00000008.safetensors")
    _seal(save)
    saved = checkpoint.read(save)
    with pytest.raises(CheckpointError, match="weight differs between the row files"):
        saved.rows(0, 8)


FACTS = {"bytes": 3, "sha256": "0" * 64}
MANIFESTS = {
    "a way up": (json.dumps({"format": 1, "files": {"../../secret": FACTS}}), "lacks"),
    "no JSON": ("{", "manifest.json"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "a list": ("[]", "expected an object"),
    "another format": (json.dumps({"format": 2}), "format 2, expected 1"),
    "a format of its own": (json.dumps({"format": {"x": "y" * 9999}}), "expected 1"),
    "NaN": ('{"format": NaN}', "NaN"),
    "files are a list": (json.dumps({"format": 1, "files": []}), "lacks"),
    "too large": (" " * (MAX_JSON_BYTES + 1), "more than"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests(save, kind):
    content, words = MANIFESTS[kind]
    (save / "manifest.json").write_text(content)
    _refused(save, "manifest.json", words)


@pytest.mark.parametrize(("name", "facts"), [
    ("../../secret", FACTS), ("/etc/passwd", FACTS), ("rows-0-4.safetensors", FACTS), ("sub/" + ROWS, FACTS),
    (ROWS, {**FACTS, "bytes": -1}), (ROWS, {**FACTS, "bytes": 2.5}), (ROWS, {**FACTS, "bytes": 1 << 70}), (ROWS, [3]),
    (ROWS, {"bytes": 3}), ("rows-" + "9" * 5000 + "-00000004.safetensors", FACTS),
])
def test_what_a_manifest_says_of_a_file(save, name, facts):
    _seal(save, **{name: facts})
    _refused(save, "manifest.json")


def _link(save: Path) -> None:
    (save / ROWS).rename(save.parent / "elsewhere")
    (save / ROWS).symlink_to(save.parent / "elsewhere")


def _pipe(save: Path) -> None:
    (save / ROWS).unlink()
    os.mkfifo(save / ROWS)


def _folder(save: Path) -> None:
    (save / ROWS).unlink()
    (save / ROWS).mkdir()


def _device(save: Path) -> None:
    (save / ROWS).unlink()
    (save / ROWS).symlink_to("/dev/zero")


def _manifest_link(save: Path) -> None:
    (save / "manifest.json").rename(save.parent / "elsewhere")
    (save / "manifest.json").symlink_to(save.parent / "elsewhere")


@pytest.mark.parametrize("change", [_link, _pipe, _folder, _device, _manifest_link])
def test_only_regular_files_of_the_save_itself(save, change: Callable[[Path], None]):
    change(save)
    _refused(save)


STATES = {
    "NaN": '{"step": 1, "score": null, "loss": NaN}',
    "infinite": '{"step": 1, "score": 1e400}',
    "no step": '{"score": null}',
    "a negative step": '{"step": -1, "score": null}',
    "a step that is true": '{"step": true, "score": null}',
    "half a step": '{"step": 1.5, "score": null}',
    "endless": '{"step": ' + "9" * 5000 + "}",
    "score in words": '{"step": 1, "score": "best"}',
    "nested": '{"step": 1, "score": null, "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a list": "[1]",
    "too large": '{"step": 1, "score": null, "x": "' + "y" * MAX_JSON_BYTES + '"}',
}


@pytest.mark.parametrize("kind", STATES)
def test_states(save, kind):
    (save / "state.json").write_text(STATES[kind])
    _seal(save)
    _refused(save, "state.json")


def test_names_that_are_not_one_a_class(save):
    (save / "labels.txt").write_bytes(b"a\nb\n\xff\n")
    _seal(save)
    saved = checkpoint.read(save)
    with pytest.raises(CheckpointError, match="3 names of 4 classes"):
        saved.labels()


def test_whatever_stands_in_a_file_it_is_a_checkpoint_error_or_is_read(save):
    """Bytes changed, cut and put in at random, each time with a manifest that fits."""
    generator, refused = np.random.default_rng(0), 0
    files = {path: path.read_bytes() for path in save.iterdir() if path.name != "manifest.json"}
    for trial in range(400):
        path = list(files)[trial % len(files)]
        content = bytearray(files[path])
        for _ in range(generator.integers(1, 4)):
            at = int(generator.integers(min(len(content), 200)))
            new = bytes(generator.choice(list(b'0129-.e[]{}:,"\\ \x00\xffNn'), size=generator.integers(0, 3)).tolist())
            content[at : at + int(generator.integers(0, 3))] = new
        path.write_bytes(content)
        _seal(save)
        try:
            saved = checkpoint.read(save)
            saved.replicated()
            saved.labels()
            saved.rows(0, saved.num_classes)
        except CheckpointError:
            refused += 1
        path.write_bytes(files[path])
    assert 100 < refused < 400


def test_what_is_written_can_be_read():
    value = {"step": 3, "nested": [{"a": [1.5, None, True, "ü"]}], "large": 1 << 62}
    assert parse_json(json_bytes(value)) == value
