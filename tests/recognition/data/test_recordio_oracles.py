"""RecordIO against the formats' own implementations: MXNet's (Python), DALI's reader and dmlc's (C++).

DALI is among the trainer's requirements. MXNet gets an environment of its own, build/mxnet, by the first slow test that
asks for it, or is where MXNET_PYTHON says (an interpreter in which `import mxnet` works). docs/formats.md says how to
install dmlc's.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import cv2
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
from tools import rec_builder

ROOT = Path(__file__).resolve().parents[3]

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


def mxnet_python() -> str:
    """An interpreter that has MXNet: MXNET_PYTHON's, or build/mxnet, which is made when it is not there."""
    if python := os.environ.get("MXNET_PYTHON"):
        return python
    folder = ROOT / "build" / "mxnet"
    python = str(folder / "bin" / "python")
    works = [python, "-c", "import mxnet"]
    if not Path(python).exists() or subprocess.run(works, capture_output=True, check=False).returncode:
        if sys.version_info >= (3, 12):
            pytest.skip("MXNet 1.9.1 needs NumPy 1.23, which has no wheels for this Python: set MXNET_PYTHON")
        wanted = ["mxnet==1.9.1", "numpy==1.23.5"]
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install, works):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no MXNet: {' '.join(command)}: {done.stderr.strip()[-300:]}")
    return python


@pytest.fixture(scope="module")
def mxnet(tmp_path_factory):
    """A function that runs the MXNet script in an interpreter that has MXNet."""
    python = mxnet_python()
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_sets_that_mxnet_wrote_open_here(tmp_path, mxnet):
    """Images under the keys and labels that MXNet gave them, records in parts and several labels among them."""
    images = payloads(200)
    labels = [[float(at % 7), 0.5] if at % 3 else at % 7 for at in range(200)]
    task = [(label, at, 0, image.hex()) for at, (label, image) in enumerate(zip(labels, images, strict=True))]
    (tmp_path / "task.json").write_text(json.dumps(task))
    mxnet("write", tmp_path)
    dataset = open_dataset(tmp_path / "theirs.rec")
    assert dataset.labels.tolist() == [at % 7 for at in range(200)]
    assert [bytes(dataset.encoded(sample)) for sample in range(200)] == images
    assert rec_builder.main(["index", str(tmp_path / "theirs.rec"), "--only", "idx", "--replace"]) == 0
    assert [bytes(open_dataset(tmp_path / "theirs.rec").encoded(sample)) for sample in range(200)] == images


@pytest.fixture
def pictures(tmp_path):
    """A folder of 12 people with 112×112 JPEGs, by name, in the order in which a set has them."""
    generator = np.random.default_rng(2)
    found = {}
    for person in range(12):
        for number in range(person % 3 + 1):
            path = tmp_path / "pictures" / f"person {person:02d}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(0, 256, (7, 7, 3), np.uint8)
            cv2.imwrite(str(path), cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC))
            found[f"person {person:02d}/{number}.jpg"] = (person, path.read_bytes())
    return found


def built(tmp_path, *verb):
    """A set in one of three forms, made by the command."""
    assert rec_builder.main(["build", str(tmp_path / "pictures"), str(tmp_path / "built")]) == 0
    if verb:
        arguments = [str(tmp_path / "built"), str(tmp_path / "made")]
        assert rec_builder.main([verb[0], *(arguments[::-1] if verb[0] == "merge" else arguments), *verb[1:]]) == 0
    return tmp_path / ("made" if verb else "built")


def listed(folder):
    """Key, label and name of each image, as the list files say."""
    lines = (folder / "train.lst").read_text().splitlines()
    return [(int(key), int(label), name) for key, label, name in (line.split("\t") for line in lines)]


VERBS = pytest.mark.parametrize("verb", [(), ("shuffle",), ("merge",)], ids=["build", "shuffle", "merge"])


@pytest.mark.slow
@VERBS
def test_mxnet_reads_what_the_command_writes(tmp_path, mxnet, pictures, verb):
    folder = built(tmp_path, *verb)
    found = {key: (label[0], bytes.fromhex(image)) for key, _, label, _, _, image in json.loads(mxnet("read", folder))}
    images = {key: content for key, content in found.items() if content[1]}
    assert images == {key: pictures[name] for key, _, name in listed(folder)}
    assert len(images) == len(pictures)


def read_by_dali(rec: Path, index: Path) -> list[tuple[int, bytes]]:
    """Label and encoded image of every record of the index, in the order of the file, by fn.readers.mxnet."""
    dali = pytest.importorskip("nvidia.dali")

    @dali.pipeline_def(batch_size=8, num_threads=1, device_id=None)
    def pipeline():
        images, labels = dali.fn.readers.mxnet(path=[str(rec)], index_path=[str(index)], name="reader")
        return images, labels

    pipe = pipeline()
    pipe.build()
    total = pipe.reader_meta("reader")["epoch_size"]
    found = []
    while len(found) < total:
        images, labels = pipe.run()
        found += [(int(labels.at(row)[0]), images.at(row).tobytes()) for row in range(len(images))]
    return found[:total]


@VERBS
def test_dali_reads_what_the_command_writes(tmp_path, pictures, verb):
    """Of the face layout, through an index of the images: DALI takes header and identity records for images."""
    folder = built(tmp_path, *verb)
    keys = [key for key, _, _ in listed(folder)]
    offsets = dict(zip(*(part.tolist() for part in read_index(folder / "train.idx")), strict=True))
    write_index(tmp_path / "images.idx", keys, [offsets[key] for key in keys])
    names = [name for _, _, name in listed(folder)]
    assert read_by_dali(folder / "train.rec", tmp_path / "images.idx") == [pictures[name] for name in names]
    if verb == ("shuffle",):  # has no other records
        assert read_by_dali(folder / "train.rec", folder / "train.idx") == [pictures[name] for name in names]


def test_dali_reads_records_in_parts_and_two_labels(tmp_path):
    images = payloads(100)
    labels = [[float(at % 7), 3.0] if at % 2 else at % 7 for at in range(100)]
    with RecordWriter(tmp_path / "ours.rec") as writer:
        offsets = [writer.write(pack_record(label, at, image))
                   for at, (label, image) in enumerate(zip(labels, images, strict=True))]
    write_index(tmp_path / "ours.idx", range(100), offsets)
    found = read_by_dali(tmp_path / "ours.rec", tmp_path / "ours.idx")
    assert found == [(at % 7, image) for at, image in enumerate(images)]


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
