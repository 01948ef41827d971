"""Models on disk: round trip, published weights, and files that are damaged, hostile or somebody else's."""

import dataclasses
import io
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import load_model, resolve_model, save_model
from recognition.errors import CheckpointError

SETTINGS = BackboneSettings("tiny", embedding_size=32, norm="batch")
INFO = {"run": "demo", "step": 7, "epoch": 1.5, "best": True, "note": None, "scores": [{"set": "lfw", "accuracy": 0.9}]}


def trained(settings: BackboneSettings = SETTINGS, seed: int = 0) -> nn.Module:
    """A backbone whose running statistics are not those of the start."""
    torch.manual_seed(seed)
    module = build(settings)
    with torch.no_grad():
        module(torch.rand(4, 3, 112, 112))
    return module.to(memory_format=torch.channels_last)


def content(**changes: Any) -> dict[str, Any]:
    weights = trained().state_dict()
    fields = {"format": 1, "backbone": dataclasses.asdict(SETTINGS), "state_dict": weights, "info": {}}
    return {**fields, **changes}


def same(a: nn.Module, b: nn.Module) -> bool:
    a_state, b_state = a.state_dict(), b.state_dict()
    return list(a_state) == list(b_state) and all(torch.equal(a_state[key], b_state[key]) for key in a_state)


def test_round_trip(tmp_path: Path) -> None:
    module = trained()
    save_model(tmp_path / "m.pt", module, SETTINGS, INFO)
    loaded, settings, info = load_model(tmp_path / "m.pt")
    assert same(module, loaded)
    assert (settings, info) == (SETTINGS, INFO)
    assert not loaded.training
    assert not loaded.features.weight.requires_grad
    assert loaded.conv1.weight.requires_grad
    assert os.listdir(tmp_path) == ["m.pt"]


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    save_model(tmp_path / "m.pt", trained(), SETTINGS, INFO)
    raw = torch.load(tmp_path / "m.pt", weights_only=True)
    assert raw["format"] == 1
    assert raw["backbone"] == dataclasses.asdict(SETTINGS)
    assert raw["info"] == INFO
    assert all(value.is_contiguous() for value in raw["state_dict"].values())


def test_loading_leaves_the_random_stream_alone(tmp_path: Path) -> None:
    save_model(tmp_path / "m.pt", trained(), SETTINGS, {})
    before = torch.get_rng_state()
    load_model(tmp_path / "m.pt")
    assert torch.equal(before, torch.get_rng_state())


def test_wrapped_modules_are_saved_bare(tmp_path: Path) -> None:
    module = trained()
    save_model(tmp_path / "m.pt", torch.compile(module, backend="eager"), SETTINGS, {})
    assert same(load_model(tmp_path / "m.pt")[0], module)


def test_info_of_anything_but_plain_values_is_refused(tmp_path: Path) -> None:
    for bad in ({"score": torch.ones(())}, {"where": tmp_path}, {"a": [{"b": {1: 2}}]}):
        with pytest.raises(ValueError, match="info"):
            save_model(tmp_path / "m.pt", trained(), SETTINGS, bad)
    assert os.listdir(tmp_path) == []


def test_a_save_that_fails_keeps_the_previous_file(tmp_path: Path) -> None:
    """The disk gives out (a file size limit stands in for a full one): clear error, old file whole, nothing left."""
    save_model(tmp_path / "m.pt", trained(), SETTINGS, {"step": 1})
    code = (
        "import resource, signal, sys\n"
        "from recognition.backbones import BackboneSettings, build\n"
        "from recognition.backbones.model_file import save_model\n"
        "from recognition.errors import run_command\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "settings = BackboneSettings('tiny', embedding_size=32)\n"
        "module = build(settings)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "run_command(lambda arguments: save_model(arguments[0], module, settings, {'step': 2}))\n"
    )
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", code, str(tmp_path / "m.pt")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert done.stderr.strip() == f"error: {tmp_path / 'm.pt'}: not written: File too large"
    assert os.listdir(tmp_path) == ["m.pt"]
    assert load_model(tmp_path / "m.pt")[2] == {"step": 1}


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone/m.pt: not written: No such file"):
        save_model(tmp_path / "gone" / "m.pt", trained(), SETTINGS, {})


@pytest.mark.parametrize("name", ["iresnet18", "mobilefacenet"])
@pytest.mark.parametrize("variant", ["plain", "wrapped", "half", "uncounted"])
def test_bare_state_dicts_load_when_the_backbone_is_named(tmp_path: Path, name: str, variant: str) -> None:
    module = trained(BackboneSettings(name, embedding_size=48))
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    if variant == "wrapped":
        state = {f"module.{key}": value for key, value in state.items()}
    if variant == "half":
        module, state = module.half().float(), {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    if variant == "uncounted":
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "backbone.pth")
    loaded, settings, info = load_model(tmp_path / "backbone.pth", name)
    assert settings == BackboneSettings(name, embedding_size=48)
    assert info == {}
    for key, value in module.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(loaded.state_dict()[key], value), key


def test_bare_state_dicts_need_the_right_name(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="bare state dict; say which backbone"):
        load_model(tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"not iresnet18: missing layer1.1.* and \d+ more"):
        load_model(tmp_path / "b.pt", "iresnet18")
    with pytest.raises(CheckpointError, match="nearest: tiny"):
        load_model(tmp_path / "b.pt", "tinny")


def test_the_name_has_to_agree_with_the_file(tmp_path: Path) -> None:
    save_model(tmp_path / "m.pt", trained(), SETTINGS, {})
    load_model(tmp_path / "m.pt", "tiny")
    load_model(tmp_path / "m.pt", SETTINGS)
    with pytest.raises(CheckpointError, match="expected iresnet18"):
        load_model(tmp_path / "m.pt", "iresnet18")


class Runs:
    """A pickle that would call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def wide_tensor(elements: int, stride: int) -> Any:
    storage = torch.zeros(4).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    return Runs(torch._utils._rebuild_tensor_v2, typed, 0, (elements,), (stride,), False, {})


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value, value]
    return value


def hostile_files(folder: Path) -> dict[str, Any]:
    weights = trained().state_dict()
    huge = {**dataclasses.asdict(SETTINGS), "name": "iresnet200", "embedding_size": 65536}
    mark = folder / "executed"
    return {
        "runs a command": content(info=Runs(os.system, f"touch '{mark}'")),
        "writes a file": Runs(open, str(mark), "w"),
        "whole module": trained(),
        "asks for 64 GiB": content(info=Runs(bytearray, 1 << 36)),
        "claims 8 GiB": content(state_dict={**weights, "fc.bias": wide_tensor(1 << 31, 1)}),
        "claims 8 GiB without stride": content(state_dict={**weights, "fc.bias": wide_tensor(1 << 31, 0)}),
        "settings that need gigabytes": content(backbone=huge),
        "doubles 60 times": content(info={"a": nested(60)}),
        "no dict": [1, 2],
        "empty dict": {},
        "another format": content(format=2),
        "no weights": content(state_dict={}),
        "weights that are text": content(state_dict={"fc.bias": "x"}),
        "keys that are numbers": content(state_dict={1: torch.zeros(1)}),
        "unknown setting": content(backbone={"name": "tiny", "depth": 5}),
        "settings of wrong types": content(backbone={"name": ["tiny"], "embedding_size": "32"}),
        "no settings": content(backbone=None),
        "missing weight": content(state_dict={k: v for k, v in weights.items() if k != "fc.bias"}),
        "extra weight": content(state_dict={**weights, "fc.more": torch.zeros(1)}),
        "wrong shape": content(state_dict={**weights, "fc.bias": torch.zeros(33)}),
        "wrong kind": content(state_dict={**weights, "fc.bias": torch.zeros(32, dtype=torch.int64)}),
        "not finite": content(state_dict={**weights, "fc.bias": torch.full((32,), torch.nan)}),
    }


def test_hostile_and_foreign_files_are_refused_with_one_line(tmp_path: Path) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for what, value in hostile_files(tmp_path).items():
        path = tmp_path / "m.pt"
        torch.save(value, path)
        with pytest.raises(CheckpointError) as caught:
            load_model(path)
        assert str(caught.value).startswith(f"{path}: "), what
        assert "\n" not in str(caught.value), what
        assert len(str(caught.value)) < 400 + len(str(path)), what
        assert os.listdir(tmp_path) == ["m.pt"], what
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 << 10, f"{grown} KiB"


def test_hostile_containers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    save_model(path, trained(), SETTINGS, {})
    good = path.read_bytes()
    packed, doubled = io.BytesIO(), io.BytesIO(good)
    with zipfile.ZipFile(io.BytesIO(good)) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
        pickle_name = next(e.filename for e in source.infolist() if e.filename.endswith("data.pkl"))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(doubled, "a") as target:
        target.writestr(pickle_name, b"\x80\x02}.")
    for what, raw in {
        "compressed": packed.getvalue(),
        "two pickles": doubled.getvalue(),
        "something in front": good[:64] + good,
        "a bare pickle": pickle.dumps(Runs(os.system, f"touch '{tmp_path / 'executed'}'")),
        "an old torch file": old_torch_file(),
        "text": b"<html>404</html>",
        "nothing": b"",
    }.items():
        path.write_bytes(raw)
        with pytest.raises(CheckpointError) as caught:
            load_model(path)
        assert "\n" not in str(caught.value), what
    assert os.listdir(tmp_path) == ["m.pt"]


def old_torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save(content(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def test_cut_files_and_flipped_bits_are_found(tmp_path: Path) -> None:
    """Every cut, and every bit flipped in what is read; headers' unused fields (times, attributes) may differ."""
    path = tmp_path / "m.pt"
    module = trained()
    save_model(path, module, SETTINGS, INFO)
    good = path.read_bytes()
    pick = random.Random(0)
    for size in [0, 1, 4, 100, len(good) - 1, *(pick.randrange(len(good)) for _ in range(20))]:
        path.write_bytes(good[:size])
        with pytest.raises(CheckpointError):
            load_model(path)
    refused = 0
    for _ in range(60):
        damaged, bit = bytearray(good), pick.randrange(8 * len(good))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            loaded, settings, info = load_model(path)
        except CheckpointError:
            refused += 1
        else:
            assert same(loaded, module)
            assert (settings, info) == (SETTINGS, INFO)
    assert refused > 50


def test_every_flipped_bit_of_the_pickle_and_the_directory_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    module = trained()
    save_model(path, module, SETTINGS, INFO)
    good = path.read_bytes()
    directory = good.index(b"PK\x01\x02")
    pick = random.Random(1)
    for place in [*range(0, 300), *(pick.randrange(directory, len(good)) for _ in range(100))]:
        damaged = bytearray(good)
        damaged[place] ^= 1 << pick.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded, _, _ = load_model(path)
        except CheckpointError:
            continue
        assert same(loaded, module)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.pt: no such file"):
        load_model(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="not readable: Is a directory"):
        load_model(tmp_path)


def test_resolve_model(tmp_path: Path) -> None:
    for name in ("model_last.pt", "model_best.pt", "model.onnx", "w.pth", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert resolve_model(tmp_path) == tmp_path / "model_last.pt"
    for name in ("model_best.pt", "model.onnx", "w.pth"):
        assert resolve_model(str(tmp_path / name)) == tmp_path / name
    with pytest.raises(CheckpointError, match=r"notes.txt: expected a run folder, or a file named"):
        resolve_model(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="gone: no such model"):
        resolve_model(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: no model_last.pt in this run folder"):
        resolve_model(tmp_path / "empty")
