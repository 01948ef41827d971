"""The doctor's figures are those of real runs, its problems have the run's exit status, and it leaves no file."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recognition import launch, speed
from recognition.backbones import BackboneSettings
from recognition.backbones.work import multiply_accumulates
from recognition.config import Config, DataSettings, load
from recognition.data.dataset import open_dataset
from recognition.distributed import Ranks
from recognition.doctor import examine, files, times, trial
from recognition.doctor.report import Report, amount
from recognition.doctor.times import estimate, read_line, span
from recognition.errors import SettingsError

sys.path.insert(0, str(Path(__file__).parent))

import doctor_runs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path, small_set) -> Path:
    return doctor_runs.copied(small_set, tmp_path)


@pytest.fixture
def file(tmp_path, root) -> str:
    return doctor_runs.config_file(tmp_path, root)


def _config(root: Path) -> Config:
    return Config(name="run", data=DataSettings(str(root), reader="fallback"), batch_size=16, epochs=10,
                  backbone=BackboneSettings("tiny", 32))


def _looked(root: Path) -> Report:
    report = Report()
    files.look_at_sets(_config(root), report)
    return report


def test_a_sound_set_is_told_with_its_numbers(root):
    before = sorted(root.iterdir())
    report = _looked(root)
    text = report.text(110)
    assert report.problems == []
    assert "96 images of 12 identities" in " ".join(text.split())
    assert sorted(root.iterdir()) == before


@pytest.mark.parametrize(("damage", "expected"), [
    ("cut", "point where no record can begin"),
    ("longer", "do not belong together"),
    ("frame", "record"),
    ("label", "`property` states 11 identities"),
    ("images", "cannot be: more than data.bad_share"),
    ("gone", "train.idx"),
])
def test_a_damaged_set_is_a_problem_of_the_data(root, damage, expected):
    rec, index = root / "train.rec", root / "train.idx"
    content = bytearray(rec.read_bytes())
    if damage == "cut":
        rec.write_bytes(content[: len(content) // 2])
    elif damage == "longer":
        rec.write_bytes(content + content[:1000])
    elif damage == "frame":
        offset = int(index.read_text().splitlines()[40].split("\t")[1])
        content[offset] ^= 255
        rec.write_bytes(content)
    elif damage == "label":
        (root / "property").write_text("11,112,112\n")
    elif damage == "images":
        for line in index.read_text().splitlines()[1:20:5]:
            at = int(line.split("\t")[1])
            content[at + 40 : at + 80] = bytes(40)
        rec.write_bytes(content)
    else:
        index.unlink()
    (problem,) = _looked(root).problems
    assert problem.status == 3
    assert expected in problem.text


def test_a_large_set_is_opened_in_part(root, monkeypatch):
    monkeypatch.setattr(files, "SMALL", 0)
    monkeypatch.setattr(files, "_RUN", 2)
    part, is_whole = files.open_for_trial(replace(_config(root), batch_size=8))
    whole = open_dataset(root)
    assert (is_whole, part.num_classes) == (False, 12)
    assert 8 <= part.num_images < whole.num_images
    keys = [part.place(sample)[1] for sample in range(part.num_images)]
    everywhere = {whole.place(sample)[1]: sample for sample in range(whole.num_images)}
    for sample, key in enumerate(keys):
        assert part.labels[sample] == whole.labels[everywhere[key]]
        assert np.array_equal(part.encoded(sample), whole.encoded(everywhere[key]))


def _launch(command: Sequence[str]) -> tuple[int, str]:
    """One rank in this process instead of the launcher's, with little patience."""
    path, out, rows, steps = command[2], Path(command[4]), int(command[6]), int(command[8])
    config = load(path, command[command.index("--set") + 1 :])
    found = trial.measure(config, Ranks(), files.open_for_trial(config)[0], rows, patience=0.01, steps=steps)
    out.write_text(json.dumps(found | {"whole_set": True}))
    return 0, ""


def test_a_sound_run_is_told_in_hours_and_leaves_no_file(tmp_path, file, capsys):
    before = sorted(path for path in tmp_path.rglob("*"))
    status = examine(file, [], _launch, 1, json_path=None)
    text = capsys.readouterr().out
    assert status == 0, text
    for title in ("this machine", "settings", "training set", "evaluation", "disk", "memory of a rank", "time"):
        assert f"\n{title}\n" in text
    assert "60 steps, 6 an epoch" in text
    assert "Loader" not in text.partition("loader alone")[2].partition("\n")[0]
    assert "compiled" not in text
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_what_the_run_compiles_is_told_and_not_waited_for(file, capsys):
    assert examine(file, ["speed.compile=blocks"], _launch, 1, json_path=None) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "compiles its backbone (speed.compile=blocks)" in text
    assert "then faster than these steps" in text


@pytest.mark.parametrize(("steps", "way"), [(None, "off"), (10_000, "blocks")])
def test_whether_the_run_compiles_is_of_all_its_steps(file, monkeypatch, steps, way):
    config = load(file)
    images = 16 * 10_000
    monkeypatch.setattr(speed, "WORTH_COMPILING", 6.0 * multiply_accumulates(config.backbone) * images)
    dataset = files.open_for_trial(config)[0]
    assert trial.measure(config, Ranks(), dataset, patience=0.01, steps=steps)["left_out"] == way


def test_of_a_part_of_the_set_the_trial_is_told_the_run_s_steps(file):
    commands = []

    def launch(command: Sequence[str]) -> tuple[int, str]:
        commands.append(command)
        return doctor_runs.canned(command)

    assert examine(file, [], launch, 1, machines=2) == 0
    assert commands[0][7:9] == ["--steps", "60"]


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "status"), [("blocks", 2), ("auto", 0)])
def test_a_compiler_that_is_missing_is_told_where_it_was_asked_for(tmp_path, file, setting, status):
    cache = tmp_path / "cache"
    cache.mkdir()
    environment = os.environ | {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "recognition.doctor.trial", file, "--out", str(tmp_path / "out.json"), "--set",
               f"speed.compile={setting}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert ("speed.compile=blocks fails here" in done.stdout + done.stderr) == (status == 2)
    assert not any(cache.iterdir())


@pytest.mark.parametrize(("overrides", "status", "expected"), [
    (["batch_size=15", "seed=-1"], 2, "2 mistake(s)"),
    (["batch_size=128"], 2, "128 is larger than the set of 96 images"),
    (["data.root=/no/such/folder"], 2, "/no/such/folder"),
    (["evaluation.sets=lfw"], 2, "no file"),
    (["checkpoint.keep=0", "checkpoint.every_steps=1", "epochs=900000"], 2, "too little"),
    (["head.tile_bytes=99999999999999"], 2, "before any activation"),
])
def test_problems_have_the_runs_status(tmp_path, file, capsys, overrides, status, expected):
    ranks = 2 if overrides[0] == "batch_size=15" else 1
    out = tmp_path / "doctor.json"
    assert examine(file, overrides, _launch, ranks, json_path=str(out)) == status
    told = json.loads(out.read_text())
    assert told["exit_status"] == status
    problems = [fact["text"] for facts in told["sections"].values() for fact in facts if fact["kind"] == "problem"]
    assert any(expected in text for text in problems), problems
    assert "✗" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--doctor", "a.py", "b.py"], "looks at one config"),
    (["--doctor", "a.py", "--fresh"], "starts nothing"),
    (["a.py", "--json", "x.json"], "--json goes with --doctor"),
])
def test_arguments_that_do_not_go_together(arguments, expected):
    with pytest.raises(SettingsError, match=expected):
        launch.main(arguments)


def test_seconds_of_scoring_while_it_trains(file):
    pairs = 20  # of the small set; two images each and their mirrors, after each of ten epochs
    assert times._evaluation_seconds(load(file), 0.3) == pytest.approx(10 * pairs * 2 * 2 * 0.1)
    degraded = ["evaluation.degrade=16,8", "evaluation.every_epochs=5"]
    assert times._evaluation_seconds(load(file, degraded), 0.3) == pytest.approx(2 * 3 * pairs * 2 * 2 * 0.1)
    assert times._evaluation_seconds(load(file, ["evaluation.every_epochs=0"]), 0.3) == 0
    (fact,) = [fact for fact in doctor_runs.told(file)["sections"]["time"] if fact["name"] == "evaluation"]
    assert fact["text"].startswith("17 s")  # a step of 16 images takes 1 s


def test_a_step_that_is_faster_beside_the_loader_is_told_and_counts(file, root):
    found = {"ranks": 1, "batch": 16, "name": "a loader", "left_out": "off", "whole_set": True, "peak_bytes": 1 << 20,
             "loader": {"batches": 10, "seconds": 1.0}, "points": [[4, 1.0], [16, 3.0]], "together": [1.5, 1.5, 1.5]}
    report = Report()
    report.section("time")
    facts = [files.SetFacts(96, 12, True)]
    times._tell_trial(report, load(file), found, estimate(found, 16), facts)
    told = {fact.name: fact.text for fact in report.sections["time"]}
    assert told["step alone"].endswith("this machine was slower than below")
    assert told["evaluation"].startswith("25 s")  # 10 × 20 pairs × 2 × 2 × 1.5 s / 16 / 3
    report.section("time again")
    times._tell_trial(report, load(file), found, estimate(found | {"together": [3.2] * 3}, 16), facts)
    told = {fact.name: fact.text for fact in report.sections["time again"]}
    assert told["step alone"].endswith(")")
    assert told["evaluation"].startswith("50 s")
    assert "compiled" not in told
    report.section("of a transformer")
    slower = found | {"left_out": "blocks", "gains": False}
    times._tell_trial(report, load(file), slower, estimate(found, 16), facts)
    told = {fact.name: fact.text for fact in report.sections["of a transformer"]}
    assert "then slower than these steps" in told["compiled"]


@pytest.mark.parametrize(("damage", "why"), [
    ("image", "the training set is damaged"), ("frame", "the training set is damaged"),
    ("index", "the training set cannot be read"), ("batch", "the batch is larger than the training set"),
])
def test_why_nothing_was_measured(file, root, damage, why):
    rec, content = root / "train.rec", bytearray((root / "train.rec").read_bytes())
    at = [int(line.split("\t")[1]) for line in (root / "train.idx").read_text().splitlines()]
    if damage == "image":
        for place in at[1:20:5]:
            content[place + 40 : place + 80] = bytes(40)
    elif damage == "frame":
        content[at[40]] ^= 255
    elif damage == "index":
        (root / "train.idx").unlink()
    rec.write_bytes(content)
    sections = doctor_runs.told(file, ["batch_size=128"] if damage == "batch" else [])["sections"]
    (fact,) = sections["time"]
    assert (fact["name"], fact["text"]) == ("not measured", why)
    left_out = [fact["text"] for fact in sections["memory of a rank"] if fact["name"] == "classes"]
    assert left_out == ([f"left out, as {why}: this is the backbone alone"] if damage == "index" else [])


def test_seconds_of_the_whole_batch():
    points = [[4, 1.0], [16, 2.0], [32, 4.0]]
    assert read_line(points, 32) == 4.0
    assert read_line(points, 64) == 8.0
    assert read_line(points[:1], 8) == 2.0
    found = {"ranks": 2, "batch": 64, "loader": {"batches": 5, "seconds": 10.0}, "points": points, "together": []}
    guess = estimate(found, 64)
    assert (guess.step, guess.loader, guess.seconds, guess.measured) == (4.0, 2.0, 4.0, False)
    measured = estimate(found | {"together": [4.0, 5.0, 6.0, 7.0]}, 64)
    assert measured.seconds == 5.5
    assert measured.low < 5.5 < measured.high


def test_amounts_in_words():
    assert [span(seconds) for seconds in (4, 40, 600, 7200)] == ["4.0 s", "40 s", "10 min", "2.0 h"]
    assert span(864_000) == "10.0 days"
    assert [amount(count) for count in (2e3, 5.12e8, 7.7e9, 1.2e13)] == ["2 kB", "512 MB", "7.7 GB", "12.0 TB"]


@pytest.mark.slow
def test_the_command_measures_on_all_ranks_and_writes_nothing(tmp_path, file, root):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        active = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        return subprocess.run(["bash", ROOT / "run.sh", "--doctor", file, *arguments], capture_output=True, text=True,
                              cwd=tmp_path, env=os.environ | active | {"NPROC": "2"}, check=False, timeout=240)

    before = sorted(path for path in tmp_path.rglob("*"))
    done = run("--json", "found.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "both together" in done.stdout
    told = json.loads((tmp_path / "found.json").read_text())
    assert told["figures"]["trial"]["ranks"] == 2
    (tmp_path / "found.json").unlink()
    assert sorted(path for path in tmp_path.rglob("*")) == before
    (root / "train.idx").write_text("")
    assert run().returncode == 3
