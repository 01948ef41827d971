"""An ONNX file from anybody, checked before a runtime opens it.

Owns the refusal of files that are no ONNX, and of weights kept in other files that are not plain files beside or below
the model: onnxruntime reads what it is told to. Every tensor of the file is looked at, wherever it hides: weights,
constants, subgraphs of any depth, functions, sparse tensors. Proven by tests/eval/test_onnx_file.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from recognition.errors import CheckpointError

# Separators and drives of other systems; onnxruntime's mark for "an address in memory" is a path with asterisks.
FORBIDDEN = frozenset("\\:*")


def check_onnx_file(path: Path) -> onnx.ModelProto:
    """Refuse an ONNX file that is not one, or whose external weights could be any file of this machine.

    Weights outside the file may lie in plain files in its folder or below: no absolute path, no `..`, no symbolic
    link, no hard link, long enough for what is claimed of them.

    Returns:
        The model, its external weights not read.

    Raises:
        CheckpointError: as above; the tensor and the location are named.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such ONNX file")
    try:
        model: onnx.ModelProto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, and whatever the file's bytes provoke
        raise CheckpointError(f"{path}: not an ONNX file: {first_line(error)}") from None
    for tensor in tensors_of(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            _check_external(path, tensor)
    return model


def _check_external(path: Path, tensor: Any) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    refused = f"{path}: weights of {tensor.name!r} at {location!r} refused"
    if len(entries) != len(tensor.external_data):
        raise CheckpointError(f"{refused}: a key given twice, and which of them counts is up to the reader")
    parts = Path(location).parts
    if not location or FORBIDDEN & set(location) or Path(location).is_absolute() or ".." in parts:
        raise CheckpointError(f"{refused}: not a path inside the model's folder")
    file = path.parent
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise CheckpointError(f"{refused}: a symbolic link")
    if not file.is_file():
        raise CheckpointError(f"{refused}: no such plain file")
    status = file.stat()
    if status.st_nlink != 1:
        raise CheckpointError(f"{refused}: a hard link, the file has {status.st_nlink} names")
    try:
        start, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
    except ValueError:
        raise CheckpointError(f"{refused}: offset and length are not numbers") from None
    if start < 0 or length < 0 or start + length > status.st_size:
        raise CheckpointError(f"{refused}: bytes {start} to {start + length} of a file of {status.st_size}")


def tensors_of(message: Any) -> Iterator[Any]:
    """Every TensorProto anywhere in a model: weights, constants, those in subgraphs, functions and sparse tensors."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if field.is_repeated else (value,):
            yield from tensors_of(part)


def first_line(error: Exception) -> str:
    """What an error says, on one line; runtimes tell their source files and addresses on further ones."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
