"""Hostile and honest `.bin` files against eval/safe_pickle.py."""

import io
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from eval.safe_pickle import load_pairs
from recognition.errors import DataError

IMAGES = [bytes(range(256)) * 3, b"\xff\xd8 one \n'quoted'", b"", b"\x00\x80\xff" * 300]
TRUTH = [True, False]


def write(tmp_path, content):
    path = tmp_path / "set.bin"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("form", ["bytes", "arrays", "columns"])
@pytest.mark.parametrize("truth", ["list", "array", "numpy_bools", "ints"])
def test_every_form_that_is_in_use_comes_back(tmp_path, protocol, form, truth):
    images = IMAGES
    if form == "arrays":
        images = [np.frombuffer(image, np.uint8) for image in IMAGES]
    if form == "columns":  # older OpenCV's imencode gave [n, 1]
        images = [np.frombuffer(image, np.uint8).reshape(-1, 1) for image in IMAGES]
    issame = {
        "list": TRUTH,
        "array": np.array(TRUTH),
        "numpy_bools": list(np.array(TRUTH)),
        "ints": [1, 0],
    }[truth]
    got, got_truth = load_pairs(write(tmp_path, pickle.dumps((images, issame), protocol=protocol)))
    assert got == IMAGES
    assert got_truth.dtype == bool
    assert got_truth.tolist() == TRUTH


def python2_string(content):
    short = len(content) < 256
    return (b"U" + struct.pack("<B", len(content)) if short else b"T" + struct.pack("<i", len(content))) + content


def test_python_2_file(tmp_path):
    # What Python 2's cPickle writes in protocol 2: str is BINSTRING, every object is put in the memo.
    content = b"\x80\x02]q\x01("
    for number, image in enumerate(IMAGES):
        content += python2_string(image) + b"r" + struct.pack("<I", 2 + number)
    content += b"e]q\x99(\x88\x89e\x86q\x9a."
    assert pickle.loads(content, encoding="bytes") == (IMAGES, TRUTH)
    got, truth = load_pairs(write(tmp_path, content))
    assert got == IMAGES
    assert truth.tolist() == TRUTH


def python2_repr(content):
    """What Python 2's repr writes of a str."""
    plain = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x5C: "\\\\"}
    quote = '"' if b"'" in content and b'"' not in content else "'"
    text = [plain.get(c) or (chr(c) if 32 <= c < 127 else f"\\x{c:02x}") for c in content]
    return (quote + "".join("\\'" if c == quote else c for c in text) + quote).encode()


def test_python_2_file_of_protocol_0(tmp_path):
    content = b"((lp0\n"
    for number, image in enumerate([*IMAGES[:3], b"'\"\\\r\n\t\x80"]):
        content += b"S" + python2_repr(image) + f"\np{1 + number}\na".encode()
    content += b"(lp9\nI01\naI00\natp10\n."
    expected = [*IMAGES[:3], b"'\"\\\r\n\t\x80"]
    assert pickle.loads(content, encoding="bytes") == (expected, TRUTH)
    got, truth = load_pairs(write(tmp_path, content))
    assert got == expected
    assert truth.tolist() == TRUTH


def test_python_2_arrays_of_protocol_0(tmp_path):
    content = b"((lp0\n"
    for image in IMAGES:  # sizes as longs, as 64-bit Windows has them
        content += b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n"
        content += b"(L%dL\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n" % len(image)
        content += b"S" + python2_repr(image) + b"\ntba"
    content += b"(lI01\naI00\nat."
    got, truth = load_pairs(write(tmp_path, content))
    assert got == IMAGES
    assert truth.tolist() == TRUTH


def test_python_2_arrays(tmp_path):
    # numpy 1 under Python 2, protocol 2, as its cPickle writes an array of uint8.
    content = b"\x80\x02]("
    for image in IMAGES:
        content += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K"
        content = content[:-1] + b"J" + struct.pack("<i", len(image)) + b"\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        content += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + python2_string(image) + b"tb"
    content += b"e](I01\nI00\ne\x86."
    got, truth = load_pairs(write(tmp_path, content))
    assert got == IMAGES
    assert truth.tolist() == TRUTH


def test_real_set(real_data):
    path = real_data / "lfw" / "lfw_folds_8_9_10.bin"
    images, truth = load_pairs(path)
    with path.open("rb") as file:  # our own file: trusted here, to have a reference
        expected_images, expected_truth = pickle.load(file)
    assert images == expected_images
    assert truth.tolist() == expected_truth
    assert len(truth) == 1800


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def billion_laughs():
    value = ("lol",)
    for _ in range(60):
        value = (value, value)
    return value


def tuples(depth):
    return b"\x80\x02)" + b"\x85" * depth + b"."


def lists(depth):
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def array_state(shape, raw=b"abc", code=b"u1"):
    start = b"\x80\x02]cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    return start + shape + b"cnumpy\ndtype\n" + python2_string(code) + b"\x85R\x89" + python2_string(raw) + b"tba."


HOSTILE = {
    "os.system": pickle.dumps(([Call(os.system, "touch SPRUNG")], [True])),
    "os.system, protocol 0": b"cos\nsystem\n(S'touch SPRUNG'\ntR.",
    "STRING without quotes": b"((lSabc\naS'b'\na(lI01\nat.",
    "STRING of one quote": b"((lS'\naS'b'\na(lI01\nat.",
    "STRING of two kinds of quotes": b"((lS'a\"\naS'b'\na(lI01\nat.",
    "STRING with half an escape": b"((lS'\\x4'\naS'b'\na(lI01\nat.",
    "STRING with an escape that nobody writes": b"((lS'\\q'\naS'b'\na(lI01\nat.",
    "STRING without an end": b"((lS'a'",
    "a name of one line": b"c_codecs\n",
    "UNICODE with half an escape": b"((lV\\u12\naS'b'\na(lI01\nat.",
    "float in a line": b"F1.0\n.",
    "a name of several lines": b"\x80\x04\x8c\x06a\nb\nc\n\x8c\x01d\x93.",
    "a name that is a large number": b"\x80\x04\x8a\xff" + b"\x7f" * 255 + b"\x8c\x01d\x93.",
    "os.system, protocol 2": pickle.dumps(([Call(os.system, "touch SPRUNG")], [True]), protocol=2),
    "eval": pickle.dumps(Call(eval, "open('SPRUNG', 'w')")),
    "INST": b"(S'touch SPRUNG'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nU\x0ctouch SPRUNGo.",
    "NEWOBJ": b"\x80\x02cos\nsystem\nU\x0ctouch SPRUNG\x85\x81.",
    "a name by STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch SPRUNG\x85R.",
    "a name that is a tuple": b"\x80\x04))\x93.",
    "dotted name": b"\x80\x04\x8c\x07_codecs\x8c\x0fencode.__self__\x93.",
    "extension registry": b"\x80\x02\x82\x01.",
    "persistent id": b"\x80\x02U\x01xQ.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "another codec": pickle.dumps(Call(__import__("_codecs").encode, "x" * 99, "zlib"), protocol=2),
    "two names called with each other": b"\x80\x02c_codecs\nencode\nc_codecs\nencode\nR.",
    "billion laughs": pickle.dumps(billion_laughs(), protocol=4),
    "deep tuples": tuples(300_000),
    "deep tuples in a small file": tuples(3000),
    "deep lists": lists(300_000),
    "deep lists in a small file": lists(1500),
    "list in itself": b"\x80\x02]q\x00h\x00a.",
    "bytearray of 1 TB": b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R.",
    "bytes of 1 TB": b"\x80\x02cbuiltins\nbytes\n\x8a\x06\0\0\0\0\0\x01\x85R.",
    "BYTEARRAY8 of 1 TB": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "BINBYTES8 of 8 EB": b"\x80\x05\x8e" + struct.pack("<Q", 2**63 - 1) + b"x.",
    "BINUNICODE8 of 18 EB": b"\x80\x05\x8d" + struct.pack("<Q", 2**64 - 1) + b"x.",
    "FRAME of 18 EB": b"\x80\x05\x95" + struct.pack("<Q", 2**64 - 1) + b"N.",
    "memo at 4 billion": b"\x80\x02]r\xff\xff\xff\xff.",
    "ndarray by its name": b"\x80\x02cnumpy\nndarray\n\x8a\x05\0\0\0\0\x10\x85\x85R.",
    "array of 64 GiB": array_state(b"\x8a\x05\0\0\0\0\x10\x85"),
    "array of 64 GiB by product": array_state(b"J\0\0\0\x10J\0\0\0\x10\x86"),
    "array of a negative size": array_state(b"J\xff\xff\xff\xffJ\xfd\xff\xff\xff\x86"),
    "array of objects": array_state(b"K\x03\x85", code=b"O8"),
    "array of floats": array_state(b"K\x03\x85", code=b"f8"),
    "reconstruct of 64 GiB": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x8a\x05\0\0\0\0\x10\x85U\x01b\x87R."
    ),
    "one text encoded again and again": (
        b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x01X\x06\0\0\0latin1q\x02"
        b"h\x01h\x02\x86q\x03](" + b"h\x00h\x03R" * 20_000 + b"e."
    ),
    "nothing but opcodes": b"\x80\x02" + b"N" * 20_000_000 + b".",
    "decimal of a million digits": b"\x80\x02L" + b"9" * 10**6 + b"L\n.",
    "integer of a million bytes": b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".",
    "empty file": b"",
    "zeros": bytes(1000),
    "text": b"this is not a pickle\n",
    "no STOP": pickle.dumps((IMAGES, TRUTH))[:-1],
    "no tuple": pickle.dumps(IMAGES),
    "three parts": pickle.dumps((IMAGES, TRUTH, None)),
    "an image too few": pickle.dumps((IMAGES[:3], TRUTH)),
    "no pairs": pickle.dumps(([], [])),
    "text for images": pickle.dumps((["a", "b"], [True])),
    "booleans that are 2": pickle.dumps((IMAGES, [1, 2])),
    "booleans that are floats": pickle.dumps((IMAGES, [1.0, 0.0])),
    "dict": pickle.dumps({"bins": IMAGES}),
    "stack underflow": b"\x80\x02R.",
    "mark for a value": b"\x80\x02(\x85.",
    "a million times the same image": b"\x80\x02](U\x01xq\x00" + b"h\x00" * 400_000 + b"e.",
    "code as a tuple of tuples": b"\x80\x02cnumpy\ndtype\n()q\x00" + b"h\x00" * 900 + b"t\x85R.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, HOSTILE[name])
    tracemalloc.start()  # the peak is what it asks for; measured below with room for Python's own objects
    try:
        with pytest.raises(DataError) as error:
            load_pairs(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert not (tmp_path / "SPRUNG").exists()
    assert peak < 14 * len(HOSTILE[name]) + 2_000_000


def test_every_truncation_is_refused(tmp_path):
    for protocol in (0, 2, 4):
        content = pickle.dumps((IMAGES[:2], TRUTH[:1]), protocol=protocol)
        load_pairs(write(tmp_path, content))
        for length in range(len(content)):
            with pytest.raises(DataError):
                load_pairs(write(tmp_path, content[:length]))


def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    generator = np.random.default_rng(0)
    arrays = [np.frombuffer(image, np.uint8) for image in IMAGES]
    contents = [pickle.dumps((images, TRUTH), protocol=p) for images in (IMAGES, arrays) for p in (2, 4, 5)]
    refused = 0
    for trial in range(3000):
        content = bytearray(contents[trial % len(contents)])
        for position in generator.integers(0, len(content), size=generator.integers(1, 4)):
            content[position] = generator.integers(0, 256)
        try:
            load_pairs(write(tmp_path, bytes(content)))
        except DataError:
            refused += 1
    assert refused > 300  # most of a file is the images themselves, where any byte will do


def test_size_limit_and_missing_file(tmp_path):
    path = write(tmp_path, pickle.dumps((IMAGES, TRUTH)))
    with pytest.raises(DataError, match="more than the limit of 100"):
        load_pairs(path, max_bytes=100)
    with pytest.raises(DataError, match="No such file"):
        load_pairs(tmp_path / "nowhere.bin")


def test_agrees_with_pickle_on_what_both_read(tmp_path):
    generator = np.random.default_rng(1)
    for protocol in (0, 1, 2, 3, 4, 5):
        images = [generator.bytes(int(n)) for n in generator.integers(1, 3000, size=40)]
        images[7] = images[3]  # one object twice: the memo
        truth = [bool(t) for t in generator.integers(0, 2, size=20)]
        content = pickle.dumps((images, truth), protocol=protocol)
        got, got_truth = load_pairs(write(tmp_path, content))
        assert (got, got_truth.tolist()) == pickle.load(io.BytesIO(content))
