"""The command line of an export: what it refuses in one line, and where files go by default."""

import json
from pathlib import Path

import pytest

from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.errors import DataError, SettingsError
from tools.export_onnx import main
from tools.exporting.form import Form
from tools.exporting.options import check_places, default_out, form_in, pairs_in, parse


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


def test_places_are_looked_at_before_the_work(tmp_path: Path, small_set: Path) -> None:
    out = tmp_path / "out.onnx"
    check_places(out, tmp_path / "figures.json", [small_set / "pairs.bin"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingsError, match=r"OUT: .* is a folder, expected a file's name"):
        check_places(tmp_path, None, [])
    with pytest.raises(SettingsError, match=r"OUT: no folder .*none"):
        check_places(tmp_path / "none" / "out.onnx", None, [])
    with pytest.raises(SettingsError, match=r"--json: no folder .*none"):
        check_places(out, tmp_path / "none" / "figures.json", [])
    with pytest.raises(DataError, match=r"none\.bin"):
        check_places(out, None, [small_set / "pairs.bin", tmp_path / "none.bin"])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no file, whoever asks")
def test_a_folder_that_takes_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="OUT: /proc takes no file: "):
        check_places(Path("/proc/out.onnx"), None, [])


def test_the_command_looks_at_them_first(tmp_path: Path) -> None:
    """The model is no model, which is said only after that."""
    (tmp_path / "theirs.onnx").write_bytes(b"no model")
    with pytest.raises(SettingsError, match="OUT: no folder"):
        main([str(tmp_path / "theirs.onnx"), str(tmp_path / "none" / "out.onnx")])
    with pytest.raises(DataError, match=r"none\.bin"):
        main([str(tmp_path / "theirs.onnx"), str(tmp_path / "out.onnx"), "--pairs", str(tmp_path / "none.bin")])


def test_a_run_is_verified_on_its_own_sets(tmp_path: Path) -> None:
    (tmp_path / "lfw.bin").write_bytes(b"")
    settings = {"data.root": str(tmp_path), "evaluation.sets": ["lfw", "cfp"]}
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings}))

    def pairs(*arguments: str, run: Path = tmp_path) -> tuple[list[Path], list[str]]:
        return pairs_in(parse([str(run), *arguments]))

    missing = ["accuracy not measured on cfp: the run's set is not there; --pairs"]
    for precision in ("fp16", "int8"):
        assert pairs("--precision", precision) == ([tmp_path / "lfw.bin"], missing)
        assert pairs("--precision", precision, run=Path("theirs.onnx")) == ([], ["accuracy not measured: --pairs"])
        assert pairs("--precision", precision, "--pairs") == ([], []), "asked not to"
        assert pairs("--precision", precision, "--pairs", "other.bin") == ([Path("other.bin")], [])
    assert pairs() == ([], []), "float32 is the network"
    assert pairs("--pairs", "a", "b") == ([Path("a"), Path("b")], [])


def test_the_command_measures_a_runs_accuracy(
    tmp_path: Path, small_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = BackboneSettings("tiny", embedding_size=16)
    save_model(tmp_path / "model_last.pt", build(settings), settings, {})
    config = {"data.root": str(small_set), "evaluation.sets": ["pairs"]}
    (tmp_path / "config.json").write_text(json.dumps({"settings": config}))
    run = [str(tmp_path), "--precision", "fp16"]
    main(run)
    said = capsys.readouterr().out
    assert "accuracy before" in said
    assert "not measured" not in said
    main([*run, "--pairs"])
    assert "accuracy" not in capsys.readouterr().out
    main([str(tmp_path / "model_last.pt"), "--precision", "fp16"])
    assert "\naccuracy not measured: --pairs\n" in capsys.readouterr().out
