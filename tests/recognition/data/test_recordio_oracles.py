"""RecordIO against the formats' own implementations: MXNet's (Python) and dmlc's (C++), where they are installed.

docs/formats.md says how to install them. MXNET_PYTHON names an interpreter in which `import mxnet` works.
"""

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recognition.data.dataset import open_dataset
from recognition.data.recordio import (
    MAGIC_BYTES,
    RecordReader,
    RecordWriter,
    pack_record,
    read_index,
    unpack_record,
    write_index,
)
from recognition.data.shard_writer import ShardWriter

MXNET = """
import json, sys
import mxnet, numpy
from mxnet import recordio
verb, folder = sys.argv[1:]
if verb == "write":
    task = json.load(open(folder + "/task.json"))
    writer = recordio.MXIndexedRecordIO(folder + "/theirs.idx", folder + "/theirs.rec", "w")
    for key, (labels, id, id2, image) in enumerate(task):
        labels = numpy.array(labels, numpy.float32) if isinstance(labels, list) else labels
        writer.write_idx(key, recordio.pack(recordio.IRHeader(0, labels, id, id2), bytes.fromhex(image)))
    writer.close()
else:
    reader = recordio.MXIndexedRecordIO(folder + "/train.idx", folder + "/train.rec", "r")
    found = []
    for key in reader.keys:
        header, image = recordio.unpack(reader.read_idx(key))
        found.append([key, header.flag, numpy.atleast_1d(header.label).tolist(), header.id, header.id2, image.hex()])
    print(json.dumps(found))
"""

DMLC = r"""
#include <dmlc/io.h>
#include <dmlc/recordio.h>
#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
int main(int, char** argument) {
  const std::string verb = argument[1];
  if (verb == "write") {  // length-prefixed payloads -> RecordIO
    std::unique_ptr<dmlc::Stream> out(dmlc::Stream::Create(argument[3], "w"));
    dmlc::RecordIOWriter writer(out.get());
    std::ifstream in(argument[2], std::ios::binary);
    uint32_t size;
    while (in.read(reinterpret_cast<char*>(&size), 4)) {
      std::string payload(size, 0);
      in.read(&payload[0], size);
      writer.WriteRecord(payload);
    }
  } else {  // RecordIO -> length-prefixed payloads
    std::unique_ptr<dmlc::Stream> in(dmlc::Stream::Create(argument[2], "r"));
    dmlc::RecordIOReader reader(in.get());
    std::ofstream out(argument[3], std::ios::binary);
    std::string payload;
    while (reader.NextRecord(&payload)) {
      uint32_t size = payload.size();
      out.write(reinterpret_cast<char*>(&size), 4);
      out.write(payload.data(), size);
    }
  }
}
"""


@pytest.fixture(scope="module")
def mxnet(tmp_path_factory):
    """A function that runs the MXNet script in an interpreter that has MXNet."""
    python = os.environ.get("MXNET_PYTHON") or (sys.executable if importlib.util.find_spec("mxnet") else None)
    if python is None:
        pytest.skip("no MXNet: set MXNET_PYTHON (docs/formats.md says how to install it)")
    script = tmp_path_factory.mktemp("mxnet") / "oracle.py"
    script.write_text(MXNET)

    def run(verb: str, folder: Path) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [python, script, verb, folder]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def dmlc(tmp_path_factory):
    """A compiled program on dmlc's RecordIO: `write PAYLOADS REC`, `read REC PAYLOADS`."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("dmlc")
    (folder / "oracle.cc").write_text(DMLC)
    command = ["g++", "-std=c++17", "-o", folder / "oracle", folder / "oracle.cc", "-ldmlc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        if "dmlc" in done.stderr and ("No such file" in done.stderr or "-ldmlc" in done.stderr):
            pytest.skip("no dmlc/recordio.h or libdmlc: install libdmlc-dev (docs/formats.md)")
        raise AssertionError(done.stderr)
    return lambda *arguments: subprocess.run([folder / "oracle", *arguments], check=True)


def payloads(count: int) -> list[bytes]:
    """Payloads of pieces in which the magic stands at all alignments; none is empty, as an image cannot be."""
    generator = np.random.default_rng(11)
    pieces = [MAGIC_BYTES, MAGIC_BYTES[:2], b"\0", b"ab", b"cde", b"fghi", bytes(range(11))]
    return [b"".join(pieces[piece] for piece in generator.integers(0, len(pieces), size=generator.integers(1, 12)))
            for _ in range(count)]


def prefixed(items: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def test_mxnet_writes_the_same_bytes(tmp_path, mxnet):
    labels = [0, 3.0, [5.0], [1.0, 2.0], [3.0, 1.0, 4.0, 1.0], 16777215.0]
    task = [(labels[at % len(labels)], at, at * 7, payload.hex()) for at, payload in enumerate(payloads(300))]
    (tmp_path / "task.json").write_text(json.dumps(task))
    mxnet("write", tmp_path)
    with RecordWriter(tmp_path / "ours.rec") as writer:
        offsets = [writer.write(pack_record(label, id, bytes.fromhex(image), id2)) for label, id, id2, image in task]
    write_index(tmp_path / "ours.idx", range(len(offsets)), offsets)
    assert (tmp_path / "ours.rec").read_bytes() == (tmp_path / "theirs.rec").read_bytes()
    assert (tmp_path / "ours.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()
    reader = RecordReader(tmp_path / "theirs.rec")
    for (label, id, id2, image), offset in zip(task, read_index(tmp_path / "theirs.idx")[1], strict=True):
        header, found = unpack_record(reader.read(int(offset)))
        expected = (np.atleast_1d(label).tolist(), id, id2, bytes.fromhex(image))
        assert (header.labels.tolist(), header.id, header.id2, bytes(found)) == expected


def test_mxnet_reads_our_shards(tmp_path, mxnet):
    images = [(label, payload) for label in range(20) for payload in payloads(label % 3 + 1)]
    with ShardWriter(tmp_path / "train.rec") as writer:
        for label, image in images:
            writer.add(label, image, "name")
    found = json.loads(mxnet("read", tmp_path))
    first = len(images) + 1
    assert found[0] == [0, 2, [first, first + 20], 0, 0, ""]
    assert [(entry[2][0], bytes.fromhex(entry[5])) for entry in found[1:first]] == images
    assert [entry[0] for entry in found] == [entry[3] for entry in found] == list(range(first + 20))
    start = 1
    for label, (_, flag, bounds, *_, image) in enumerate(found[first:]):
        assert (flag, bounds, image) == (2, [start, start + label % 3 + 1], "")
        start += label % 3 + 1
    dataset = open_dataset(tmp_path)
    assert [(dataset.labels[sample], bytes(dataset.encoded(sample))) for sample in range(len(images))] == images


def test_dmlc_writes_the_same_bytes(tmp_path, dmlc):
    items = [b"", *payloads(2000), b""]
    (tmp_path / "payloads").write_bytes(prefixed(items))
    dmlc("write", tmp_path / "payloads", tmp_path / "theirs.rec")
    with RecordWriter(tmp_path / "ours.rec") as writer:
        for item in items:
            writer.write(item)
    assert (tmp_path / "ours.rec").read_bytes() == (tmp_path / "theirs.rec").read_bytes()
    assert [bytes(payload) for _, payload in RecordReader(tmp_path / "theirs.rec").scan()] == items


def test_dmlc_reads_what_we_write(tmp_path, dmlc):
    items = [*payloads(2000), b""]
    with RecordWriter(tmp_path / "ours.rec") as writer:
        for item in items:
            writer.write(item)
    dmlc("read", tmp_path / "ours.rec", tmp_path / "payloads")
    assert (tmp_path / "payloads").read_bytes() == prefixed(items)
