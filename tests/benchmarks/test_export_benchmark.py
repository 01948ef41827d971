"""The benchmark of exported files runs and reports every precision that it measures."""

import json

import pytest
import torch

from benchmarks.export import main, untrained
from recognition.backbones.model_file import load_model
from tools.exporting.images import generated_images


@pytest.mark.slow
def test_the_benchmark_reports_every_precision(tmp_path, small_set, capsys):
    out = tmp_path / "export.json"
    main(["tiny", "--images", str(small_set), "--batches", "1", "2", "--threads", "1", "--rounds", "1",
          "--json", str(out)])
    (rows,) = json.loads(out.read_text())["models"].values()
    assert list(rows) == ["fp32", "fp16", "int8"]
    assert rows["fp32"]["bytes"] > rows["fp16"]["bytes"] > rows["int8"]["bytes"]
    assert rows["fp32"]["min_cosine"] > 0.99999
    for row in rows.values():
        assert [(entry["threads"], entry["batch"]) for entry in row["times"]] == [(1, 1), (1, 2)]
        assert all(entry["milliseconds"] > 0 for entry in row["times"])
        assert row["accuracy"] is None, "an untrained network has none"
    assert all(entry["ratio"] == 1 for entry in rows["fp32"]["times"])
    assert "1 thr., batch 2" in capsys.readouterr().out


def test_an_untrained_network_has_values_of_ordinary_size(tmp_path):
    images = generated_images(16)
    module, _, _ = load_model(untrained("tiny", tmp_path / "model.pt", images))
    with torch.no_grad():
        embedding = module(torch.from_numpy(images.transpose(0, 3, 1, 2) / 127.5 - 1).float())
    assert 0.1 < embedding.std() < 10
