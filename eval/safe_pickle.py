"""Read a verification set (`lfw.bin` and the like) without running what a pickle can ask for.

Owns the reader of `(bins, issame)` pickles: written by Python 2 or 3 in protocols 0 to 5, images as bytes or as uint8
NumPy arrays. There is no unpickler here. The readers of `pickletools` cut the file into opcodes, a table of some
forty of them is evaluated, and the only names that a file may call are the handful in `_GLOBALS`, each of which is a
function of this file that checks its arguments. So a file can make bytes, booleans, small numbers, arrays of bytes, and
lists and tuples of them, and can have no more of them than it brings. Everything else is a DataError that names the
offset.

Convention: whatever a file makes is bounded by its size; see the limits below. Proven by
tests/eval/test_safe_pickle.py and, with made and mutated files by the thousand, tests/eval/test_safe_pickle_fuzz.py.
"""

import codecs
import io
import math
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recognition.errors import DataError

MAX_BYTES = 2**30  # the largest set in use, cfp_ff.bin, has 0.1 GiB
MAX_OPCODES = 600_000  # half a second; the 14,000 images of CFP-FP need 30 each at worst
BYTES_PER_OPCODE = 8  # an image takes hundreds of bytes for its few opcodes: a file of bare opcodes is no set
FREE_OPCODES = 4096
MAX_DEPTH = 6  # a set needs 2, an array's pickle 3
MAX_IMAGES = 100_000  # references to one image are free in a pickle, but each becomes 37 kB when decoded


class _RefusedError(Exception):
    """Why a pickle is not a verification set."""


class _Mark:
    """Where a list or tuple begins on the stack."""


class _Tuple(tuple):
    """A tuple that knows how deep it is, so that depth is never found by walking shared references."""

    depth: int


class _List(list):
    """A list of leaves; that makes cycles and deep nesting impossible."""


class _Name:
    """A name out of `_GLOBALS`, that is: something a file may call or mention."""

    def __init__(self, call: Callable[["_Machine", tuple], Any]) -> None:
        self.call = call


class _Dtype:
    """numpy.dtype of one byte: `u1` for images, `b1` for truth."""

    def __init__(self, code: str) -> None:
        self.code = code


class _Array:
    """A one-byte array being rebuilt: raw bytes that the file brought, and the type to read them as."""

    def __init__(self) -> None:
        self.raw: bytes | None = None
        self.code = ""


def load_pairs(path: str | Path, max_bytes: int = MAX_BYTES) -> tuple[list[bytes], np.ndarray]:
    """Read a `.bin` verification set.

    Args:
        path: the file, a pickle of (2N encoded images, N booleans).
        max_bytes: refuse a larger file.

    Returns:
        2N encoded images; bool [N], true where images 2i and 2i+1 show one person.

    Raises:
        DataError: anything but such a pickle. Nothing in the file is executed, whatever it is.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(f"{path}: {size} bytes, more than the limit of {max_bytes}")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    machine = _Machine(len(data))
    try:
        return _as_pairs(machine.run(data))
    except _RefusedError as error:
        raise DataError(f"{path}: offset {machine.offset}: not a verification set: {error}") from None
    except (ValueError, OverflowError, MemoryError, RecursionError) as error:  # pickletools on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{path}: offset {machine.offset}: damaged pickle: {reason}") from None


class _Machine:
    """The stack and memo of one file, and what it may still allocate."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.offset = 0
        self.budget = size  # bytes that constructors may make in all: the file brings each image once
        self.max_opcodes = min(MAX_OPCODES, FREE_OPCODES + size // BYTES_PER_OPCODE)

    def run(self, data: bytes) -> Any:
        stream = io.BytesIO(data)
        for _ in range(self.max_opcodes):
            self.offset = stream.tell()
            code = stream.read(1)
            opcode = _CODES.get(code.decode("latin1"))
            if opcode is None:
                raise _RefusedError(f"opcode {code.hex()} does not exist" if code else "the file ends before its STOP")
            step = _OPCODES.get(opcode.name)
            if step is None:
                raise _RefusedError(f"opcode {opcode.name} is not allowed")
            reader = _READERS.get(opcode.name) or (opcode.arg.reader if opcode.arg else None)
            step(self, reader(stream) if reader else None)
            if opcode.name == "STOP":
                return self.pop()
        raise _RefusedError(f"more than {self.max_opcodes} opcodes in {len(data)} bytes")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise _RefusedError("nothing on the stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self.stack:
            value = self.stack.pop()
            if isinstance(value, _Mark):
                return items[::-1]
            items.append(value)
        raise _RefusedError("no mark on the stack")

    def put(self, index: int) -> None:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise _RefusedError("nothing to remember")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise _RefusedError(f"memo {index} was never stored")
        self.stack.append(self.memo[index])

    def push_tuple(self, items: list[Any]) -> None:
        value = _Tuple(items)
        value.depth = 1 + max((item.depth if isinstance(item, _Tuple) else 1 for item in items), default=0)
        if value.depth > MAX_DEPTH:
            raise _RefusedError(f"nested deeper than {MAX_DEPTH}")
        self.stack.append(value)

    def push_list(self, items: list[Any]) -> None:
        self.stack.append(_List())
        self.extend(items)

    def extend(self, items: list[Any]) -> None:
        """Append to the list on the top of the stack."""
        if not self.stack or not isinstance(self.stack[-1], _List):
            raise _RefusedError("append to something that is no list")
        for item in items:
            if isinstance(item, (_Tuple, _List)):
                raise _RefusedError("a list or tuple inside a list")
            if isinstance(item, (_Name, _Dtype)):
                raise _RefusedError("a class inside a list")
        self.stack[-1].extend(items)

    def append(self) -> None:
        item = self.pop()
        self.extend([item])

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in _GLOBALS:
            raise _RefusedError(f"the name {_shown(module)}.{_shown(name)} is not allowed")
        self.stack.append(_GLOBALS[module, name])

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, _Tuple):
            raise _RefusedError("a call of something that cannot be called")
        self.stack.append(function.call(self, arguments))

    def build(self) -> None:
        state = self.pop()
        if not self.stack or not isinstance(self.stack[-1], (_Array, _Dtype)) or not isinstance(state, _Tuple):
            raise _RefusedError("state for something that has none")
        if isinstance(self.stack[-1], _Array):
            _set_array(self.stack[-1], state)
        # A dtype's state says its byte order and field names: without meaning for one byte, and not looked at.


def _line(stream: io.BytesIO) -> bytes:
    line = stream.readline()
    if line[-1:] != b"\n":
        raise _RefusedError("a line without an end")
    return line[:-1]


def _python2_literal(stream: io.BytesIO) -> bytes:
    """Read the line of a STRING, Python 2's repr of a str. `pickletools` reads only those that are ASCII."""
    literal = _line(stream).rstrip(b"\r")
    if len(literal) < 2 or literal[:1] not in (b"'", b'"') or literal[-1:] != literal[:1]:
        raise _RefusedError("a STRING without its quotes")
    if not _REPR.fullmatch(literal, 1, len(literal) - 1):
        raise _RefusedError("a STRING with escapes that Python 2 does not write")
    return codecs.escape_decode(literal[1:-1])[0]


def _two_lines(stream: io.BytesIO) -> str:
    """Read a GLOBAL's module and name; `pickletools` would look for escapes in them, and warn of some."""
    return f"{_line(stream).decode('latin1')} {_line(stream).decode('latin1')}"


def _shown(value: Any) -> str:
    """Say a value from the file on one line; only flat ones: nested tuples can be as long as one likes."""
    if isinstance(value, (str, int)):
        return ascii(value).strip("'")[:80]
    return type(value).__name__


def _encode(machine: _Machine, arguments: tuple) -> bytes:
    """Rebuild bytes that Python 3 wrote in protocol ≤ 2: _codecs.encode(text, 'latin1')."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
        raise _RefusedError("_codecs.encode of something other than (text, 'latin1')")
    machine.budget -= len(arguments[0])
    if machine.budget < 0:
        raise _RefusedError("asks for more bytes than the file has")
    return arguments[0].encode("latin1")


def _empty_bytes(machine: _Machine, arguments: tuple) -> bytes:
    """Rebuild empty bytes: bytes(). With an argument it could ask for any amount of memory."""
    if arguments:
        raise _RefusedError("bytes(…) with an argument")
    return b""


def _dtype(machine: _Machine, arguments: tuple) -> _Dtype:
    code = arguments[0] if arguments else None
    code = code.decode("latin1") if isinstance(code, bytes) else code
    if code not in ("u1", "b1"):
        raise _RefusedError(f"an array of {_shown(code)} where bytes (u1) or booleans (b1) are expected")
    return _Dtype(code)


def _reconstruct(machine: _Machine, arguments: tuple) -> _Array:
    """Begin an array, written as (ndarray, (0,), b'b'); its bytes come with BUILD."""
    if len(arguments) != 3 or arguments[0] is not _NDARRAY or arguments[1] != (0,):
        raise _RefusedError("numpy's _reconstruct of something other than an empty array")
    return _Array()


def _frombuffer(machine: _Machine, arguments: tuple) -> _Array:
    """Rebuild an array of protocol 5, written as (buffer, dtype, shape, order)."""
    if len(arguments) != 4:
        raise _RefusedError("numpy's _frombuffer without its four arguments")
    buffer, dtype, shape, _ = arguments
    array = _Array()
    _fill(array, shape, dtype, buffer)
    return array


def _scalar(machine: _Machine, arguments: tuple) -> bool:
    """Rebuild a numpy.bool_, written as (dtype, one byte)."""
    if len(arguments) != 2 or not isinstance(arguments[0], _Dtype) or arguments[0].code != "b1":
        raise _RefusedError("a numpy scalar that is no boolean")
    if arguments[1] not in (b"\0", b"\1"):
        raise _RefusedError("a numpy boolean that is neither 0 nor 1")
    return arguments[1] == b"\1"


def _not_callable(machine: _Machine, arguments: tuple) -> Any:
    raise _RefusedError("numpy.ndarray called by its name: its size would be the file's to choose")


def _set_array(array: _Array, state: tuple) -> None:
    """State of an array: (version, shape, dtype, fortran order, raw bytes)."""
    if len(state) != 5:
        raise _RefusedError(f"an array's state has 5 parts, got {len(state)}")
    _fill(array, state[1], state[2], state[4])


def _fill(array: _Array, shape: Any, dtype: Any, raw: Any) -> None:
    if array.raw is not None:
        raise _RefusedError("an array that is filled twice")
    if not isinstance(shape, _Tuple) or not 1 <= len(shape) <= 4 or not all(type(n) is int and n >= 0 for n in shape):
        raise _RefusedError("an array's shape is not a tuple of one to four sizes")
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
        raise _RefusedError("an array without a type of one byte or without its bytes")
    if math.prod(shape) != len(raw):
        raise _RefusedError(f"an array of shape {tuple(shape)} with {len(raw)} bytes")
    array.raw, array.code = raw, dtype.code


def _as_pairs(value: Any) -> tuple[list[bytes], np.ndarray]:
    if not isinstance(value, _Tuple) or len(value) != 2 or not isinstance(value[0], (_List, _Tuple)):
        raise _RefusedError("expected a tuple (images, booleans)")
    bins, truth = value
    if len(bins) > MAX_IMAGES:
        raise _RefusedError(f"{len(bins)} images, more than the limit of {MAX_IMAGES}")
    images: list[bytes] = []
    for image in bins:
        content = image.raw if isinstance(image, _Array) and image.code == "u1" else image
        if not isinstance(content, bytes):
            raise _RefusedError(f"image {len(images)} is neither bytes nor an array of uint8")
        images.append(content)
    if isinstance(truth, _Array):
        truth = truth.raw or b""  # its items are numbers
    if not isinstance(truth, (_List, _Tuple, bytes)):
        raise _RefusedError("the second part is not a list of booleans")
    if not truth or len(images) != 2 * len(truth):
        raise _RefusedError(f"{len(images)} images for {len(truth)} booleans: two images a pair are expected")
    if not all(type(t) in (bool, int) and t in (0, 1) for t in truth):
        raise _RefusedError("the second part is not a list of booleans")
    return images, np.array(list(truth), dtype=bool)


_REPR = re.compile(rb"""(?:[^\\]|\\(?:[\\'"nrt]|x[0-9a-fA-F]{2}))*+""", re.DOTALL)  # `*+`: no way back, so linear
_READERS: dict[str, Callable[[io.BytesIO], Any]] = {"STRING": _python2_literal, "GLOBAL": _two_lines}
_CODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_NDARRAY = _Name(_not_callable)
_GLOBALS: dict[tuple[str, str], _Name] = {
    ("_codecs", "encode"): _Name(_encode),
    ("__builtin__", "bytes"): _Name(_empty_bytes),
    ("builtins", "bytes"): _Name(_empty_bytes),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Name(_dtype),
    ("numpy.core.multiarray", "_reconstruct"): _Name(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): _Name(_reconstruct),
    ("numpy.core.multiarray", "scalar"): _Name(_scalar),
    ("numpy._core.multiarray", "scalar"): _Name(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _Name(_frombuffer),
    ("numpy._core.numeric", "_frombuffer"): _Name(_frombuffer),
}


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push_tuple([machine.pop() for _ in range(count)][::-1])


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.name(module, name)


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


def _push(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _push_python2(machine: _Machine, argument: str) -> None:
    machine.push(argument.encode("latin1"))  # what encoding="bytes" means: pickletools decodes with latin1


def _push_bytes(machine: _Machine, argument: bytes | bytearray) -> None:
    machine.push(bytes(argument))


def _nothing(machine: _Machine, _: Any) -> None:
    return


_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "STOP": _nothing,
    "MARK": lambda machine, _: machine.push(_Mark()),
    "NONE": _push,
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"), _push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push_bytes),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _push_python2),
    "STRING": _push,
    "EMPTY_TUPLE": _tuple_of(0),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": lambda machine, _: machine.push_tuple(machine.pop_to_mark()),
    "EMPTY_LIST": lambda machine, _: machine.push_list([]),
    "LIST": lambda machine, _: machine.push_list(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append(),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, index: machine.put(index)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.get(index)),
}
