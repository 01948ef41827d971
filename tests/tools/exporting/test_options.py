"""The command line of an export: what it refuses in one line, and where files go by default."""

from pathlib import Path

import pytest

from recognition.errors import SettingsError
from tools.exporting.options import default_out, form_in, parse


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--std 0", "argument --std: expected numbers above 0, got '0'"),
        ("--std -5", "argument --std: expected numbers above 0, got '-5'"),
        ("--std 1,0,1", "argument --std: expected numbers above 0, got '1,0,1'"),
        ("--mean abc", "argument --mean: expected a number, or three with commas between, got 'abc'"),
        ("--mean nan", "argument --mean: expected a number, or three with commas between, got 'nan'"),
        ("--mean 1,2", "argument --mean: expected a number, or three with commas between, got '1,2'"),
        ("--least-cosine 2", "--least-cosine: expected a cosine, -1 to 1, got 2"),
        ("--least-cosine nan", "--least-cosine: expected a cosine, -1 to 1, got nan"),
        ("--batch 0", "--batch: expected 1 or more, got 0"),
        ("--norms images", "--norms says whose μ and σ the quality takes; give --quality as well"),
        ("--precision fp8", "argument --precision: invalid choice: 'fp8'"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        form_in(parse(["run", *arguments.split()]))
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_where_files_go(tmp_path: Path) -> None:
    (tmp_path / "a run.v2").mkdir()
    assert default_out(tmp_path / "a run.v2", "fp32") == tmp_path / "a run.v2" / "model.onnx"
    assert default_out(tmp_path / "a run.v2", "int8") == tmp_path / "a run.v2" / "model_int8.onnx"
    assert default_out(Path("nets/r50.pt"), "fp32") == Path("nets/r50.onnx")
    assert default_out(Path("nets/r50.onnx"), "fp16") == Path("nets/r50_fp16.onnx")
