"""eval/safe_pickle.py on made, mutated and cut files: only DataError escapes, nothing runs, memory stays flat.

An audit hook listens while a file is read: whatever would import, compile, start or open anything shows there. Files
that are accepted are read again by Python's own unpickler, with the same names allowed, and must say the same.
"""

import gc
import io
import pickle
import pickletools
import struct
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from eval.safe_pickle import _GLOBALS, _OPCODES, load_pairs
from recognition.errors import DataError

# A warning that becomes an error must not escape either.
pytestmark = pytest.mark.filterwarnings("error")
CI = settings(
    max_examples=1000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)  # fmt: skip
LONG = settings(CI, max_examples=5000)  # 10,000 in all

HEARD: list[str] = []
LISTENING: list[str] = []  # the file that may be opened, while one is read


def listen(event, arguments):
    if not LISTENING or event.split(".")[0] not in FORBIDDEN:
        return
    if event == "open" and str(arguments[0]) == LISTENING[0]:
        return
    if event == "import" and str(arguments[0]).startswith("encodings"):  # the first time that a codec is used
        return
    HEARD.append(f"{event} {arguments}")


FORBIDDEN = {
    "builtins", "compile", "ctypes", "exec", "glob", "import", "marshal", "open", "os", "pickle", "shutil", "socket",
    "subprocess", "sys", "tempfile", "urllib",
}  # fmt: skip
sys.addaudithook(listen)  # cannot be taken away again: it does nothing but while LISTENING


class SameNames(pickle.Unpickler):
    """Python's own, for files that ours has accepted. Without `arrays` NumPy's names are refused: a mutated state of a
    dtype, which ours never looks at, can crash the process."""

    arrays = False

    def find_class(self, module, name):
        assert (module, name) in _GLOBALS
        if module.startswith("numpy") and not self.arrays:
            raise pickle.UnpicklingError("not now")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def by_python(content, arrays=False):
    """What Python makes of it, or None where it is stricter, as with protocols that do not exist."""
    reader = SameNames(io.BytesIO(content), encoding="bytes")
    reader.arrays = arrays
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bins, truth = reader.load()
    except Exception:
        return None
    images = [image.tobytes() if isinstance(image, np.ndarray) else bytes(image) for image in bins]
    return images, [bool(t) for t in truth]


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Read a file's content under observation; whether it was accepted."""
    path = tmp_path_factory.mktemp("fuzz") / "set.bin"
    path.write_bytes(pickle.dumps(([b"a", b"b"], [True]), protocol=0))
    load_pairs(path)  # codecs are imported now

    def run(content):
        path.write_bytes(content)
        HEARD.clear()
        tracemalloc.start()
        LISTENING.append(str(path))
        try:
            images, truth = load_pairs(path)
            accepted = True
        except DataError as error:
            accepted = False
            message = str(error)
        finally:
            LISTENING.clear()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert not HEARD
        assert peak < 40 * len(content) + 2_000_000
        if not accepted:
            assert message.startswith(f"{path}: ")
            assert len(message) < len(str(path)) + 400
            assert "\n" not in message
            return False
        assert all(type(image) is bytes for image in images)
        assert truth.dtype == bool
        assert len(images) == 2 * len(truth) > 0
        expected = by_python(content)
        assert expected is None or expected == (images, truth.tolist())
        return True

    yield run
    gc.collect()


def python2(images, truth, protocol):
    """As Python 2 wrote bytes: as its str."""
    if protocol == 0:
        parts = [b"S" + repr(image)[1:].encode() + b"\n" for image in images]
    else:
        parts = [b"T" + struct.pack("<i", len(image)) + image for image in images]
    flags = [b"I01\n" if t else b"I00\n" for t in truth]
    return b"((l" + b"".join(part + b"a" for part in parts) + b"(l" + b"".join(flag + b"a" for flag in flags) + b"t."


@st.composite
def valid_files(draw):
    """Small sets in every form that is in use."""
    pairs = draw(st.integers(1, 4))
    images = draw(st.lists(st.binary(max_size=40), min_size=2 * pairs, max_size=2 * pairs))
    truth = draw(st.lists(st.booleans(), min_size=pairs, max_size=pairs))
    protocol = draw(st.integers(0, 5))
    form = draw(st.sampled_from(["bytes", "arrays", "columns", "python 2"]))
    if form == "python 2":
        return python2(images, truth, protocol)
    made = images if form == "bytes" else [np.frombuffer(image, np.uint8) for image in images]
    made = [image.reshape(-1, 1) for image in made] if form == "columns" else made
    flags = {"list": truth, "array": np.array(truth), "scalars": list(np.array(truth)), "ints": [int(t) for t in truth]}
    return pickle.dumps((made, flags[draw(st.sampled_from(sorted(flags)))]), protocol=protocol)


@st.composite
def mutated_files(draw):
    """A valid file with bytes changed, parts cut out, doubled, moved, or taken from another file."""
    content = bytearray(draw(valid_files()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        to = min(len(content), at + draw(st.integers(0, 30)))
        kind = draw(st.sampled_from(["change", "cut", "double", "insert", "graft", "opcode", "large"]))
        if kind == "change" and at < len(content):
            content[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at:to]
        elif kind == "double":
            content[at:at] = content[at:to] * draw(st.integers(1, 20))
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=20))
        elif kind == "graft":
            other = draw(valid_files())
            content[at:to] = other[draw(st.integers(0, len(other))) :]
        elif kind == "opcode":
            content[at:at] = draw(opcodes())
        elif kind == "large":
            content[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80"]))
    return bytes(content)


HOSTILE_NAMES = [
    ("os", "system"), ("builtins", "eval"), ("__builtin__", "eval"), ("numpy", "load"), ("_codecs", "lookup"),
    ("numpy", "core.multiarray.scalar"), ("", ""), ("os\u2028", "system"),
]  # fmt: skip
NAMES = st.sampled_from([*_GLOBALS, *_GLOBALS, *HOSTILE_NAMES])
TEXTS = st.one_of(
    st.sampled_from(["latin1", "latin-1", "u1", "b1", "O8", "|", "zlib", "numpy", "dtype", "encode", "a\nb"]),
    st.text(max_size=12),
)
SIZES = st.one_of(st.integers(0, 12), st.sampled_from([2**8, 2**31 - 1, 2**31, 2**32 - 1]))
LINES = st.one_of(
    st.integers(-3, 300).map(str),
    st.sampled_from(["00", "01", "3L", "-0", "9" * 30, "9" * 5000, "0x3", "", "1e9", "nan"]),
)


@st.composite
def opcodes(draw, among=tuple(pickletools.opcodes)):
    """One opcode and an argument of its kind, often an honest one, sometimes with a size that lies."""
    opcode = draw(st.sampled_from(among))
    code = opcode.code.encode("latin1")
    if opcode.arg is None:
        return code
    kind = opcode.arg.name
    if opcode.name in ("GLOBAL", "INST"):
        module, name = draw(NAMES)
        return code + f"{module}\n{name}\n".encode()
    if kind in ("stringnl", "stringnl_noescape", "unicodestringnl"):
        text = repr(draw(TEXTS)) if kind == "stringnl" else draw(TEXTS).replace("\n", " ")
        return code + text.encode("raw_unicode_escape" if kind == "unicodestringnl" else "utf-8") + b"\n"
    if kind in ("decimalnl_short", "decimalnl_long", "floatnl"):
        return code + draw(LINES).encode() + b"\n"
    body = draw(st.one_of(TEXTS.map(str.encode), st.binary(max_size=30)))
    claimed = draw(st.one_of(st.just(len(body)), st.just(len(body)), SIZES))
    widths = {
        "string1": 1, "bytes1": 1, "unicodestring1": 1, "long1": 1, "string4": 4, "bytes4": 4, "unicodestring4": 4,
        "long4": 4, "bytes8": 8, "bytearray8": 8, "unicodestring8": 8,
    }  # fmt: skip
    if kind in widths:
        claimed = draw(st.sampled_from([claimed, 2**40, 2**63 - 1, 2**64 - 1])) if widths[kind] == 8 else claimed
        return code + (claimed % 256 ** widths[kind]).to_bytes(widths[kind], "little") + body
    width = {"uint1": 1, "uint2": 2, "int4": 4, "uint4": 4, "uint8": 8, "float8": 8}[kind]
    return code + (draw(SIZES) % 256**width).to_bytes(width, "little")


ALLOWED = tuple(opcode for opcode in pickletools.opcodes if opcode.name in _OPCODES and opcode.name != "STOP")


@st.composite
def streams(draw):
    """Opcodes in any order, mostly those that are evaluated, some of them many times."""
    part = st.one_of(opcodes(), *[opcodes(among=ALLOWED)] * 6)
    parts = [piece * draw(st.sampled_from([1, 1, 1, 1, 2, 3, 50])) for piece in draw(st.lists(part, max_size=25))]
    start = draw(st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"\x80\x05"]))
    return start + b"".join(parts) + draw(st.sampled_from([b".", b"t.", b"\x86.", b""]))


def one_by_one(strategy, limits, least=0.0):
    """A test that gives every drawn file to `check`; a share of at least `least` is accepted, but not most."""

    def test(check):
        accepted = []

        @limits
        @given(strategy)
        def every(content):
            accepted.append(check(content))

        every()
        assert least <= np.mean(accepted) < 0.7

    return test


test_mutated_files = one_by_one(mutated_files(), CI, least=0.02)
test_streams_of_opcodes = one_by_one(streams(), CI)
test_bytes = one_by_one(st.binary(max_size=300), settings(CI, max_examples=300))
test_mutated_files_at_length = pytest.mark.slow(one_by_one(mutated_files(), LONG, least=0.02))
test_streams_of_opcodes_at_length = pytest.mark.slow(one_by_one(streams(), LONG))


def test_valid_files_are_accepted_and_their_heads_are_not(check, tmp_path_factory):
    path = tmp_path_factory.mktemp("valid") / "set.bin"

    @settings(CI, max_examples=200)
    @given(valid_files(), st.data())
    def every(content, data):
        assert check(content)
        images, truth = by_python(content, arrays=True)
        path.write_bytes(content)
        assert (images, truth) == (load_pairs(path)[0], load_pairs(path)[1].tolist())
        assert not check(content[: data.draw(st.integers(0, len(content) - 1))])

    every()


def test_claims_of_size_take_no_memory(check):
    @settings(CI, max_examples=300)
    @given(st.sampled_from([o for o in pickletools.opcodes if o.arg and o.arg.n < 0]), st.data())
    def every(opcode, data):
        claim = data.draw(st.sampled_from([2**20, 2**27, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]))
        width = 8 if "8" in opcode.arg.name else 4 if "4" in opcode.arg.name else 1
        body = data.draw(st.binary(max_size=50))
        content = opcode.code.encode("latin1") + (claim % 256**width).to_bytes(width, "little") + body
        before = data.draw(st.sampled_from([b"\x80\x04]", b"\x80\x05](", b""]))
        assume(not content.endswith(b"."))
        check(before + content + b".")

    every()


def test_the_hook_hears(tmp_path):
    """That nothing was heard means something only if it would have been."""
    LISTENING.append("elsewhere")
    try:
        HEARD.clear()
        pickle.loads(b"cbuiltins\neval\n(V1\ntR.")
        (tmp_path / "file").write_text("")
    finally:
        LISTENING.clear()
    assert {event.split()[0] for event in HEARD} >= {"pickle.find_class", "exec", "open"}
