"""Files written here are safetensors files to the package of that name, and the other way round; hashes are right."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recognition.checkpoint import tensor_file
from recognition.checkpoint.tensor_file import Blocks, facts_of, read_header, read_rows, read_tensors, write_tensors
from recognition.errors import CheckpointError

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(shapes, st.sampled_from(sorted(tensor_file.DTYPES))),
    max_size=6,
)


def _tensor(shape: tuple[int, ...], kind: str) -> torch.Tensor:
    dtype = tensor_file.DTYPES[kind]
    data = torch.arange(math.prod(shape)) % 2 if dtype == torch.bool else torch.arange(math.prod(shape)) + 1
    return data.to(dtype).view(shape)


def _assert_same(got: dict, expected: dict) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value), name


@settings(max_examples=60, deadline=None)
@given(tensors)
def test_the_package_reads_what_is_written_here_and_the_other_way_round(tmp_path_factory, described):
    folder = tmp_path_factory.mktemp("files")
    expected = {name: _tensor(*what) for name, what in described.items()}
    facts = write_tensors(folder / "ours", {name: Blocks.of(value) for name, value in expected.items()})
    content = (folder / "ours").read_bytes()
    assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert facts == facts_of(folder / "ours", 1 << 40) == facts_of(folder / "ours", 1 << 40, from_disk=True)
    _assert_same(load_file(folder / "ours"), expected)
    _assert_same(read_tensors(folder / "ours"), expected)
    save_file(expected, folder / "theirs", metadata={"format": "pt"})
    _assert_same(read_tensors(folder / "theirs"), expected)
    if expected:  # the same bytes but for the metadata and the package's own order of equals
        assert {name: entry.shape for name, entry in read_header(folder / "ours").items()} == {
            name: tuple(value.shape) for name, value in expected.items()
        }


def test_a_tensor_comes_in_parts_and_out_in_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "CHUNK", 7)  # so that parts and chunks do not meet
    whole = torch.randn(13, 3).to(torch.bfloat16)
    parts = (part for part in whole.split(4))
    write_tensors(tmp_path / "x", {"x": Blocks(whole.dtype, (13, 3), parts), "y": Blocks.of(torch.arange(13))})
    for first, last in [(0, 13), (3, 9), (12, 13), (5, 5)]:
        rows = read_rows(tmp_path / "x", first, last)
        assert torch.equal(rows["x"], whole[first:last])
        assert torch.equal(rows["y"], torch.arange(13)[first:last])
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert torch.equal(file.get_slice("x")[3:9], whole[3:9])
    assert list(read_rows(tmp_path / "x", 0, 1, ["y", "absent"])) == ["y"]


def test_memory_layout_does_not_show(tmp_path):
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    write_tensors(tmp_path / "x", {"image": Blocks.of(image), "transposed": Blocks.of(image[0, 0].t())})
    got = load_file(tmp_path / "x")
    np.testing.assert_array_equal(got["image"], image)
    np.testing.assert_array_equal(got["transposed"], image[0, 0].t())


def test_a_file_is_never_written_over_or_through_a_link(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("target", "link"):
        with pytest.raises(FileExistsError):
            write_tensors(tmp_path / name, {})
    assert (tmp_path / "target").read_text() == "precious"


def test_reading_goes_no_further_than_said(tmp_path):
    (tmp_path / "x").write_bytes(bytes(100))
    assert facts_of(tmp_path / "x", 10) == {"bytes": 100, "sha256": hashlib.sha256(bytes(10)).hexdigest()}


def test_rows_that_are_not_there(tmp_path):
    write_tensors(tmp_path / "x", {"scalar": Blocks.of(torch.tensor(1.0))})
    with pytest.raises(CheckpointError, match=r"rows \[0, 1\) of a tensor of shape \[\]"):
        read_rows(tmp_path / "x", 0, 1)
