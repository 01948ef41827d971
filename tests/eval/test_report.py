"""eval/report.py: the page against the JSON that it is made from, read back as HTML."""

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval import metrics, report
from eval.embed import IMAGE_SIZE
from eval.report_read import read_all
from eval.verification import embed_with_mirror, load_bin, reduce_to, score, squared_distances
from recognition.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
VOID = {"meta", "img", "wbr"}
HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;"


class Page(HTMLParser):
    """Tags, attributes and text of a page; every tag is closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self._open = [], [], [], []
        self.rows, self.cell = [], None
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *one) for one in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *one) for one in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        self.text.append(data)
        if self.cell:
            self.rows[-1][-1] += data


def embed(images):
    """A network of a kind: coarse colours, so that mirrors and sides matter."""
    small = np.stack([cv2.resize(image, (4, 4), interpolation=cv2.INTER_AREA) for image in images])
    return (small.reshape(len(images), -1).astype(np.float32) - 128) / 16


def results(path, sides=(None, 8), name=None):
    """Rows and curves of a set, by the functions that the commands use."""
    pairs = load_bin(path)
    rows, curves = [], []
    for side in sides:
        images = reduce_to(pairs.images, side) if side else pairs.images
        sums, norms = embed_with_mirror(embed, images)
        alike = -squared_distances(sums)
        hardest = {}
        for kind, same, sign in (("false_match", False, -1), ("false_non_match", True, 1)):
            rows_of = np.flatnonzero(pairs.issame == same)
            order = rows_of[np.argsort(sign * alike[rows_of], kind="stable")][:8]
            hardest[kind] = [[int(pair), float(alike[pair])] for pair in order]
        rows.append(score(sums, norms, pairs.issame, name or pairs.name, side))
        curves.append({"set": name or pairs.name, "degrade": side, "path": str(path),
                       "roc": metrics.roc_summary(alike, pairs.issame, points=20, resamples=20), "hardest": hardest})
    return rows, curves


def ijb_result(seed=0):
    draw = np.random.default_rng(seed)
    targets = ("1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1")
    search = {"rank1": 0.8125, "rank5": 0.9, "rank10": 0.95, "tpir@0.01": None, "tpir@0.1": 0.4375, "mated": 20,
              "non_mated": 61}
    same = np.arange(200) % 2 == 0
    return {
        "1:1": {"nearest": {far: float(draw.random()) for far in targets},
                "strict": {far: float(draw.random()) for far in targets}, "pairs": 9730},
        "1:N": {name: {**search, "rank1": float(draw.random())} for name in ("G1", "G2", "mean", "merged")},
        "curve": {"roc": metrics.roc_summary(draw.normal(size=200) + same, same, points=20, resamples=20),
                  "hardest": {"false_match": [[1, 2, 0.5]], "false_non_match": []}},
    }


@pytest.fixture
def run(tmp_path, small_set):
    return make_run(tmp_path / "run", small_set)


def make_run(folder, small_set, lr=0.1, name=None):
    folder.mkdir(parents=True)
    rows, curves = results(small_set / "pairs.bin", name=name)
    settings = {"name": folder.name, "epochs": 3, "optimizer.lr": lr, "head.margin": "arcface", "evaluation.ijb": []}
    facts = {"settings": settings, "data": "0cce1b", "commit": "61e2b27", "versions": {"torch": "2.13.0"}}
    (folder / "config.json").write_text(json.dumps(facts))
    lines = [{"step": 10 * step, "epoch": step / 2, "loss": 9 / step, "lr": lr / step, "norm_mean": 20.0 + step,
              "norm_deviation": 2.0, "mean_weight": 1.5, "something_new": step * 7} for step in range(1, 7)]
    lines.append({"step": 60, "epoch": 3.0, "verification": rows})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = {"model": str(folder / "model.onnx"), "verification": rows, "curves": curves,
                  "ijb": {"some/folder": ijb_result()}}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def built(*inputs):
    return report.build(read_all([str(one) for one in inputs]))


def test_every_figure_stands_in_the_tables(run):
    page = Page(built(run))
    value = json.loads((run / "evaluation.json").read_text())
    for row in value["verification"]:
        title = row["set"] + (f", {row['degrade']}×{row['degrade']}" if row["degrade"] else "")
        shown = [f"{row['accuracy']:.4f} ± {row['accuracy_std']:.4f}",
                 *("–" if row[key] is None else f"{row[key]:.4f}" for key in ("val", "far", "eer")),
                 f"{row['mean_norm']:.2f}"]
        assert [title, "run", str(row["pairs"]), *shown] in page.rows
        pixels = f"{row['degrade']}×{row['degrade']}" if row["degrade"] else "as it is"
        assert ["run", pixels, f"{100 * row['accuracy']:.2f}"] in page.rows
    (result,) = value["ijb"].values()
    for reading in ("nearest", "strict"):
        rates = [f"{rate:.4f}" for rate in result["1:1"][reading].values()]
        assert ["run", reading, "9730", *rates] in page.rows
    for gallery, figures in result["1:N"].items():
        assert ["run", gallery, f"{figures['rank1']:.4f}", "0.9000", "0.9500", "–", "0.4375", "20", "61"] in page.rows
    for setting in (["epochs", "3"], ["head.margin", "arcface"], ["evaluation.ijb", "[]"]):
        assert setting in page.rows


def test_training_is_drawn(run):
    text = Page(built(run)).text
    for title in ("Loss", "Learning rate", "Norm of embeddings, μ ± σ", "something_new", "ROC", "DET", "epoch"):
        assert title in text
    assert "norm_deviation" not in text


def test_one_file_that_needs_nothing(run):
    html = built(run)
    page = Page(html)
    assert "http" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name == "src":
            assert value.startswith("data:image/jpeg;base64,")
        if name == "href":
            assert value.startswith("#")
            assert any(attribute == ("section", "id", value[1:]) for attribute in page.attributes)


def test_same_inputs_same_bytes(run):
    command = [sys.executable, "-m", "eval.report", str(run)]
    subprocess.run([*command, "--out", str(run / "one.html")], cwd=ROOT, check=True, capture_output=True)
    assert (run / "one.html").read_text(encoding="utf-8") == built(run)


def test_names_from_outside_stay_text(tmp_path, small_set):
    folder = make_run(tmp_path / HOSTILE.replace("/", ""), small_set, name=HOSTILE)
    html = built(folder, f"{HOSTILE}={folder / 'evaluation.json'}")
    page = Page(html)
    assert "<img src=x" not in html
    assert not any(name == "onerror" for _, name, _ in page.attributes)
    assert HOSTILE in "".join(page.text)
    assert any(HOSTILE in cell for row in page.rows for cell in row)


def test_pictures_are_those_of_the_hardest_pairs(run, small_set):
    page = Page(built(run))
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    value = json.loads((run / "evaluation.json").read_text())
    hardest = [pair for curve in value["curves"] for kind in curve["hardest"].values() for pair in kind]
    assert len(sources) == 2 * len(hardest)
    captions = [text for text in page.text if text.startswith("pair ")]
    assert captions == [f"pair {pair}, cosine {1 + score / 2:.3f}" for pair, score in hardest]
    encoded = np.frombuffer(base64.b64decode(sources[1].split(",")[1]), np.uint8)
    shown = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    truth = load_bin(small_set / "pairs.bin").images[2 * hardest[0][0] + 1]
    assert shown.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert np.abs(shown.astype(int) - truth).mean() < 6


def test_the_page_names_where_pictures_are_from_and_can_do_without(run, small_set, tmp_path):
    said = f"Pictures are from {small_set / 'pairs.bin'}."
    out = tmp_path / "report.html"
    report.main([str(run), "--out", str(out)])
    page = Page(out.read_text())
    assert "img" in page.tags
    assert said in "".join(page.text)
    report.main([str(run), "--out", str(out), "--no-pictures"])
    page = Page(out.read_text())
    assert "img" not in page.tags
    assert "Pictures are from" not in "".join(page.text)
    assert "No pictures of the hardest false matches: --no-pictures leaves them out." in page.text


@pytest.mark.parametrize("change", ["gone", "other", "beyond", "no path"])
def test_pictures_that_cannot_be_shown_are_said(run, small_set, change):
    path = run / "evaluation.json"
    value = json.loads(path.read_text())
    curve = value["curves"][0]
    expected = {"gone": "the set is not at", "other": "the set there is another one", "beyond": "image 2000",
                "no path": "where the set lies is not said"}[change]  # fmt: skip
    if change == "gone":
        curve["path"] = "nowhere/lfw.bin"
    elif change == "other":
        curve["hardest"]["false_match"][0][0] = 0  # a pair of the same person
    elif change == "beyond":
        curve["hardest"]["false_match"][0][0] = 1000
    else:
        curve["path"] = None
    path.write_text(json.dumps(value))
    assert expected in "".join(Page(built(run)).text)


def test_several_models_side_by_side(tmp_path, small_set):
    one, other = make_run(tmp_path / "a", small_set), make_run(tmp_path / "b", small_set, lr=0.2)
    page = Page(built(one, other))
    assert page.rows.count(["optimizer.lr", "0.1", "0.2"]) == 2  # among the differences and among all
    assert page.rows.count(["epochs", "3", "3"]) == 1
    colors = {re.search(r"--c\d", value).group() for tag, name, value in page.attributes
              if (tag, name) == ("span", "style")}
    assert colors == {"--c0", "--c1"}


def test_runs_of_one_name_are_told_apart(tmp_path, small_set):
    make_run(tmp_path / "x" / "run", small_set)
    make_run(tmp_path / "y" / "run", small_set)
    models = read_all([str(tmp_path / "x" / "run"), str(tmp_path / "y" / "run")]).models
    assert [model.name for model in models] == ["x/run", "y/run"]


def test_inputs_of_one_name_are_one_model(tmp_path, small_set):
    rows, _ = results(small_set / "pairs.bin")
    (tmp_path / "v.json").write_text(json.dumps(rows))
    (tmp_path / "i.json").write_text(json.dumps(ijb_result()))
    (model,) = read_all([f"net={tmp_path / 'v.json'}", f"net={tmp_path / 'i.json'}"]).models
    assert model.name == "net"
    assert len(model.verification) == 2
    assert list(model.ijb) == ["IJB-C"]


def test_what_is_given_twice_is_said(tmp_path, small_set):
    rows, _ = results(small_set / "pairs.bin")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    rows[0]["accuracy"] = 0.125
    (tmp_path / "b.json").write_text(json.dumps(rows))
    page = Page(built(f"m={tmp_path / 'a.json'}", f"m={tmp_path / 'b.json'}"))
    assert "m: verification of pairs is given twice; the later one is shown" in page.text
    assert ["m", "as it is", "12.50"] in page.rows


def test_what_is_absent_is_left_out_and_said(run):
    for file in ("evaluation.json", "config.json"):
        (run / file).unlink()
    page = Page(built(run))
    text = "".join(page.text)
    for said in ("run: config.json is absent", "run: evaluation.json is absent", "IJB: nothing about it",
                 "Settings: nothing about it"):
        assert said in text
    assert "ROC" not in page.text
    assert "Loss" in page.text


def test_a_line_cut_short_is_said(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 70, "epo')
    assert "run: 1 of 8 lines of metrics.jsonl cannot be read" in Page(built(run)).text


def test_numbers_that_no_float_holds_are_lines_that_cannot_be_read(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": 70, "epoch": {"9" * 400}}}\n{{"step": 80, "epoch": 4, "loss": {"9" * 400}}}\n')
    assert "run: 1 of 9 lines of metrics.jsonl cannot be read" in Page(built(run)).text


def test_a_comparison(tmp_path):
    value = {
        "figures": {"none": {"lfw": {"mean": 0.86311, "deviation": 0.00388, "seeds": 5, "values": {}}},
                    "vpl": {"lfw": {"mean": 0.8554, "deviation": None, "seeds": 1, "values": {}}}},
        "differences": {"vpl": {"lfw": {"mean": -0.0077, "error": 0.0045, "seeds": 5}}},
        "failed": {"vpl_seed3": 5},
    }  # fmt: skip
    path = tmp_path / "x.comparison.json"
    path.write_text(json.dumps(value))
    page = Page(built(path))
    for row in (["none", "0.8631 ± 0.0039 (5)"], ["vpl", "0.8554 ± – (1)"], ["vpl", "−0.0077 ± 0.0045 (5)"]):
        assert row in page.rows
    assert "vpl_seed3 failed, exit status 5: its figures are missing." in page.text


BAD = {
    "empty": b"", "cut": b'[{"set": "lfw", ', "number": b"7", "null": b"null", "text": b'"lfw"', "empty object": b"{}",
    "nan": b'[{"set": "lfw", "degrade": null, "pairs": 6, "accuracy": NaN}]', "binary": bytes(range(256)),
    "lacks": b'[{"set": "lfw", "degrade": null, "pairs": 6}]', "rows": b"[[1, 2]]", "deep": b"[" * 100_000,
    "words": b'[{"set": "lfw", "degrade": null, "pairs": "many"}]', "digits": b"[" + b"9" * 5000 + b"]",
    "huge": b'[{"set": "lfw", "degrade": null, "pairs": ' + b"9" * 400 + b"}]",
    "curve": b'{"verification": [], "curves": [{"set": "a", "degrade": null, "roc": {"far": [1], "tar": [1, 2]}}]}',
    "ijb": b'{"1:1": {"pairs": 3, "nearest": {"x": 1}, "strict": {}}}', "ijb list": b'{"ijb": [1]}',
    "quality": b'{"models": [1]}', "comparison": b'{"differences": {"a": 1}, "figures": {}}',
}  # fmt: skip


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_garbage_is_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.json: ") as error:
        built(path)
    assert "\n" not in str(error.value)


def test_identification(tmp_path):
    value = {"set": "TinyFace", "probes": 40, "gallery": 30, "distractors": 100, "without_mate": 1, "rank1": 0.6251,
             "rank5": None, "map": 0.5, "map_steps": 0.4873, "mean_norm": {"probe": 9.5, "gallery": 12.25}}
    (tmp_path / "net.json").write_text(json.dumps(value))
    page = Page(built(tmp_path / "net.json"))
    assert ["model", "probes", "gallery", "distractors", "without mate", "rank 1", "rank 5", "mAP", "mAP, by steps",
            "mean norm, probe", "mean norm, gallery"] in page.rows
    assert ["net", "40", "30", "100", "1", "0.6251", "–", "0.5000", "0.4873", "9.5000", "12.2500"] in page.rows


def test_templates_of_a_result_without_a_folder(tmp_path):
    (tmp_path / "net.json").write_text(json.dumps(ijb_result()))
    text = Page(built(tmp_path / "net.json")).text
    assert "No pictures of the hardest pairs: where the set lies is not said." in text


def test_status_and_line_of_a_file_that_is_not_there(tmp_path):
    command = [sys.executable, "-m", "eval.report", str(tmp_path / "no.json"), "--out", str(tmp_path / "r.html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == f"error: {tmp_path / 'no.json'}: cannot be read: No such file or directory\n"
    assert not (tmp_path / "r.html").exists()


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(DataError, match="no run"):
        built(tmp_path)


def test_faces_of_the_hardest_templates(real_data, tmp_path):
    result = ijb_result()
    result["curve"]["hardest"] = {"false_match": [[100002, 100005, 0.5]], "false_non_match": []}
    lists = (real_data / "lfw_as_ijbc" / "meta" / "ijbc_template_pair_label.txt").read_text().split("\n")
    first, second, _ = next(line.split() for line in lists if line.endswith(" 0"))
    result["curve"]["hardest"]["false_match"][0][:2] = [int(first), int(second)]
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"verification": [], "ijb": {str(real_data / "lfw_as_ijbc"): result}}))
    page = Page(built(path))
    assert f"templates {first}, {second}, cosine 0.500" in page.text
    assert page.tags.count("img") == 2
    shutil.rmtree(tmp_path)
