"""The command line of an export: what it refuses in one line, and where files go by default."""

from pathlib import Path

import pytest

from recognition.errors import SettingsError
from tools.exporting.form import Form
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
    run = tmp_path / "a run.v2"
    run.mkdir()
    assert default_out(run, Form()) == run / "model.onnx"
    assert default_out(run, Form("int8", least_cosine=0.5)) == run / "model_int8.onnx"
    assert default_out(run, Form(unit=True, preprocessing="uint8", batch=1)) == run / "model_unit_uint8_b1.onnx"
    assert default_out(run, Form("fp16", preprocessing="inside")) == run / "model_fp16_inside.onnx"
    assert default_out(run, Form(quality=True)) == run / "model_quality.onnx"
    assert default_out(run, Form(quality=True, norms="images")) == run / "model_quality_norms.onnx"
    assert default_out(Path("nets/r50.pt"), Form()) == Path("nets/r50.onnx")
    assert default_out(Path("nets/r50.onnx"), Form("fp16")) == Path("nets/r50_fp16.onnx")
