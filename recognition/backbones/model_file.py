"""The backbone on disk: one .pt file with its settings, its weights and what is known of it; also published weights.

    NAME.pt = torch.save({"format": 1,
                          "backbone": {the fields of BackboneSettings},
                          "state_dict": {key: tensor, contiguous, on the CPU},
                          "info": {run, step, epoch, scores …: plain values only}})

A file is written whole or not at all, and read as untrusted input: its pickle is held against a list of allowed names
and opcodes before torch sees it, every entry against its CRC-32, every shape against the backbone's before memory is
taken. The file of weights that others publish, a bare state dict, loads when the caller names the backbone.
Proven by tests/recognition/backbones/test_model_file.py.
"""

import contextlib
import dataclasses
import io
import os
import pickletools
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recognition.backbones import BackboneSettings, build, mistakes
from recognition.errors import CheckpointError

FORMAT = 1
# Keys of a module wrapped by DistributedDataParallel or torch.compile carry these in front.
WRAPPERS = ("module.", "_orig_mod.")

# What the pickle of a dict of tensors and plain values consists of. torch's own weights-only list also allows
# `bytearray(n)`, by which a file of a few bytes takes n bytes of memory.
GLOBALS = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch Size"}
    | {f"torch {kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int")}
)
OPCODES = (
    "PROTO STOP MARK GLOBAL REDUCE BUILD BINPERSID BINPUT LONG_BINPUT BINGET LONG_BINGET EMPTY_DICT EMPTY_LIST "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS NONE NEWTRUE NEWFALSE BININT BININT1 "
    "BININT2 LONG1 BINFLOAT BINUNICODE"
)
MAX_PICKLE_BYTES = 16 << 20
MAX_INFO_VALUES = 100_000
EMBEDDING_BIASES = ("features.bias", "features.layers.3.bias", "feature.3.bias")


def save_model(path: str | Path, module: nn.Module, settings: BackboneSettings, info: Mapping[str, Any]) -> None:
    """Write the backbone to `path`, as `save_weights` does."""
    save_weights(path, module.state_dict(), settings, info)


def save_weights(
    path: str | Path, state: Mapping[str, torch.Tensor], settings: BackboneSettings, info: Mapping[str, Any]
) -> None:
    """Write a backbone's state dict in one piece; what was there before stays until the new file is safe on the disk.

    `info` holds plain values (str, int, float, bool, None, lists and dicts of them), else ValueError. CheckpointError
    when the disk does not take the file.
    """
    plain_info = _plain(dict(info), "info", [0])
    weights = {
        _bare_key(key): tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, tensor in state.items()
    }
    content = {
        "format": FORMAT,
        "backbone": dataclasses.asdict(settings),
        "state_dict": weights,
        "info": plain_info,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(Path(path), buffer.getbuffer())


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file under a temporary name, fsync it, rename it, fsync its folder. CheckpointError when that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CheckpointError(f"{path}: not written: {error.strerror or error}") from error


def load_model(
    path: str | Path, backbone: str | BackboneSettings | None = None
) -> tuple[nn.Module, BackboneSettings, dict[str, Any]]:
    """Read a backbone: (module in eval mode on the CPU, its settings, its info).

    `backbone`, a name or settings, is needed for a bare state dict (its embedding size is read off the weights when
    only a name is given; its info is empty) and must agree with the file's own settings otherwise.
    CheckpointError when the file is missing, damaged, hostile, or not that backbone.
    """
    path = Path(path)
    content = read_checked(path)
    if is_state_dict(content):
        return module_with(path, content, settings := _bare_settings(path, content, backbone)), settings, {}
    weights, settings, info = _parts(path, content)
    if backbone is not None and backbone not in (settings, settings.name):
        raise CheckpointError(f"{path}: holds {settings}, expected {backbone}")
    return module_with(path, weights, settings), settings, info


def resolve_model(path: str | Path) -> Path:
    """The model file that `path` means: a run folder's model_last.pt, or an .onnx, .pt or .pth file itself."""
    path = Path(path)
    if path.is_dir():
        inside = path / "model_last.pt"
        if not inside.is_file():
            raise CheckpointError(f"{path}: no model_last.pt in this run folder; did the run save a model?")
        return inside
    if not path.is_file():
        raise CheckpointError(f"{path}: no such model; expected a run folder or a .pt or .onnx file")
    if path.suffix not in (".onnx", ".pt", ".pth"):
        raise CheckpointError(f"{path}: expected a run folder, or a file named .pt, .pth or .onnx")
    return path


def _bare_key(key: str) -> str:
    """The key without what wrappers put in front of it."""
    while key.startswith(WRAPPERS):
        key = key.split(".", 1)[1]
    return key


def is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Whether this is a state dict: text to tensor, not empty."""
    return bool(content) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    )


def _plain(value: Any, where: str, seen: list[int]) -> Any:
    """A copy of `value` in dicts, lists and scalars; ValueError names the first thing that is neither."""
    seen[0] += 1
    if seen[0] > MAX_INFO_VALUES:
        raise ValueError(f"{where}: more than {MAX_INFO_VALUES} values")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{where}: expected text as key, got {bad[0]!r}")
        return {key: _plain(child, f"{where}.{key}", seen) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child, f"{where}[{i}]", seen) for i, child in enumerate(value)]
    raise ValueError(f"{where}: expected plain values, got {type(value).__name__}")


def read_checked(path: Path) -> dict[str, Any]:
    """The dict in a file of torch.save, after all checks of its container. Tensors are views of the mapped file.

    What the dict holds is not checked: a tensor may claim more elements than the file has, by strides of 0.
    """
    try:
        _check_container(path)
        # Mapped storages cannot be resized: a tensor that claims more than the file holds is refused, not allocated.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: not readable: {error.strerror or error}") from error
    # torch's reader fails on damaged files in too many ways to list.
    except Exception as error:
        raise CheckpointError(f"{path}: damaged or not a model file: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dict, got {type(content).__name__}")
    return content


def _check_container(path: Path) -> None:
    """CheckpointError unless the file is an uncompressed zip with right checksums and a harmless pickle."""
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise CheckpointError(f"{path}: damaged, or not written by torch.save in its zip form")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # A zip may have something in front that only some readers skip: torch has to see what is checked here.
        if not entries or min(entry.header_offset for entry in entries) != 0:
            raise CheckpointError(f"{path}: damaged, or not written by torch.save in its zip form")
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise CheckpointError(f"{path}: entry {packed[0]} is compressed, expected stored")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{path}: expected one data.pkl of at most {MAX_PICKLE_BYTES} bytes")
        try:
            damaged = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise CheckpointError(f"{path}: damaged: {_first_line(error)}") from error
        if damaged is not None:
            raise CheckpointError(f"{path}: damaged: entry {damaged} does not match its checksum")
        _check_pickle(path, archive.read(pickles[0]))


def _check_pickle(path: Path, pickled: bytes) -> None:
    """CheckpointError when the pickle has an opcode or names an object that a dict of tensors does not need."""
    opcodes = frozenset(OPCODES.split())
    for opcode, argument, position in pickletools.genops(pickled):
        if opcode.name not in opcodes:
            raise CheckpointError(f"{path}: refused: opcode {opcode.name} @ offset {position} of data.pkl")
        if opcode.name == "GLOBAL" and argument not in GLOBALS:
            raise CheckpointError(f"{path}: refused: it names {str(argument).replace(' ', '.')!r}, not a tensor's part")


def _bare_settings(
    path: Path, weights: Mapping[str, torch.Tensor], backbone: str | BackboneSettings | None
) -> BackboneSettings:
    """Settings for a bare state dict."""
    if isinstance(backbone, BackboneSettings):
        return backbone
    if backbone is None:
        raise CheckpointError(f"{path}: a bare state dict; say which backbone it belongs to (--backbone NAME)")
    sizes = [tensor.numel() for key, tensor in weights.items() if _bare_key(key) in EMBEDDING_BIASES]
    settings = BackboneSettings(name=backbone, embedding_size=sizes[0] if sizes else 512)
    if found := mistakes(settings):
        raise CheckpointError(f"{path}: {'; '.join(found)}")
    return settings


def _parts(path: Path, content: dict[str, Any]) -> tuple[dict[str, torch.Tensor], BackboneSettings, dict[str, Any]]:
    """Weights, settings and info of a file of this project."""
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}, got {str(content.get('format'))[:40]!r}")
    weights, fields, info = content.get("state_dict"), content.get("backbone"), content.get("info")
    if not isinstance(weights, dict) or not is_state_dict(weights):
        raise CheckpointError(f"{path}: state_dict: expected a dict of tensors")
    if not isinstance(fields, dict) or not isinstance(info, dict):
        raise CheckpointError(f"{path}: expected the dicts 'backbone' and 'info'")
    try:
        settings = BackboneSettings(**fields)
        plain_info = _plain(info, "info", [0])
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {_first_line(error)}") from error
    if found := mistakes(settings):
        raise CheckpointError(f"{path}: {'; '.join(found)}")
    return weights, settings, plain_info


def module_with(path: Path, weights: Mapping[str, torch.Tensor], settings: BackboneSettings) -> nn.Module:
    """The backbone of these settings with these weights, in eval mode, after keys, shapes and values were checked.

    `path`: the file that the weights are from. CheckpointError when they are not that backbone's or not finite.
    """
    weights = {_bare_key(key): tensor for key, tensor in weights.items()}
    with torch.device("meta"):
        module = build(settings)
    expected = module.state_dict()
    # Files from before torch counted batches lack these; nothing in the evaluation of a network reads them.
    for key in expected.keys() - weights.keys():
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.zeros((), dtype=torch.int64)
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(f"{path}: not {settings.name}: {_some('missing', missing, 'unexpected', extra)}")
    for key, tensor in weights.items():
        wanted = expected[key]
        if tensor.shape != wanted.shape or tensor.is_floating_point() != wanted.is_floating_point():
            raise CheckpointError(
                f"{path}: {key}: expected {list(wanted.shape)} {wanted.dtype}, got {list(tensor.shape)} {tensor.dtype}"
            )
    if sum(tensor.nbytes for tensor in weights.values()) > path.stat().st_size + 8 * len(weights):
        raise CheckpointError(f"{path}: its tensors claim more bytes than the file has")
    module = module.to_empty(device="cpu")
    module.load_state_dict(weights, strict=True)
    for key, tensor in module.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {key}: not finite")
    return module.eval()


def _some(*named: Any) -> str:
    """`missing a, b and 3 more; unexpected c` of alternating names and lists, empty lists left out."""
    texts = []
    for name, keys in zip(named[::2], named[1::2], strict=True):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            texts.append(f"{name} {', '.join(keys[:3])}{more}")
    return "; ".join(texts)


def _first_line(error: BaseException) -> str:
    """What an error says, on one line, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
