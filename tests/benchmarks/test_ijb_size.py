"""benchmarks/ijb_size.py on a hundredth of IJB-C."""

import json

import numpy as np

from benchmarks import ijb_size
from eval import metrics
from eval.ijb import pair_scores, template_features


def test_the_lists_are_like_ijb_cs():
    lists = ijb_size.make_set(0.01, np.random.default_rng(0))
    templates = len(lists.subject)
    assert (templates, len(lists.template), len(lists.first)) == (35 + 195, 4693, 195 + 156_389)
    assert set(lists.template) == set(range(templates))
    assert (lists.subject[lists.first] == lists.subject[lists.second]).tolist() == lists.same.tolist()
    assert lists.same.sum() == 195
    assert lists.first.max() < 35 <= lists.second.min()


def test_command(tmp_path, capsys):
    ijb_size.main(["--scale", "0.01", "--dim", "64", "--seed", "3", "--json", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    assert [entry["stage"] for entry in result["stages"]] == [
        "templates", "pair scores", "TAR at FAR", "1:N", "ROC with band",
    ]  # fmt: skip
    assert "4693 faces, 230 templates, 156584 pairs" in capsys.readouterr().out
    generator = np.random.default_rng(3)
    lists = ijb_size.make_set(0.01, generator)
    features = ijb_size.make_features(lists, 64, generator)
    templates = template_features(features, lists.template, lists.media, 230)
    expected = metrics.tar_at_far(pair_scores(templates, lists.first, lists.second), lists.same)
    assert result["1:1"] == expected
    assert 0.1 < result["1:1"]["strict"]["0.01"] < 1
    assert 0.1 < result["1:N"]["merged"]["rank1"] < 1
