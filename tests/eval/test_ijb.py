"""eval/ijb.py against 1:1 and 1:N written out from their description, on made folders and on real faces."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import ijb, ijb_faces, ijb_search, report, report_read
from eval.embed import load_embedder
from eval.ijb import embed_faces, evaluate_ijb, load_ijb, pair_scores, score_templates, template_features
from eval.ijb_lists import IjbSet, SearchLists
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.data.align import align_face
from recognition.errors import SettingsError

ROOT = Path(__file__).resolve().parents[2]
GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}


def templates_by_hand(folder, network, prefix="ijbc", detector_score=True, norm=True, flip=True):
    """Template → unit vector: a face, a media and a template at a time, in float64."""
    meta = folder / "meta"
    points = {}
    for line in (meta / f"{prefix}_name_5pts_score.txt").read_text().splitlines():
        name, *values = line.split()
        points[name] = [float(value) for value in values]
    templates = {}
    for line in (meta / f"{prefix}_face_tid_mid.txt").read_text().splitlines():
        name, template, media = line.split()
        image = cv2.cvtColor(cv2.imread(str(folder / "loose_crop" / name)), cv2.COLOR_BGR2RGB)
        crop = align_face(image, np.array(points[name][:10]).reshape(5, 2))
        feature = network(crop[None])[0].astype(np.float64)
        if flip:
            feature = feature + network(np.ascontiguousarray(np.fliplr(crop))[None])[0]
        if not norm:
            feature = feature / np.linalg.norm(feature)
        if detector_score:
            feature = feature * points[name][10]
        templates.setdefault(template, {}).setdefault(media, []).append(feature)
    units = {}
    for template, medias in templates.items():
        total = sum(np.mean(features, axis=0) for features in medias.values())
        units[template] = total / np.linalg.norm(total)
    return units


def pairs_by_hand(folder, units, prefix="ijbc"):
    scores, labels = [], []
    for line in (folder / "meta" / f"{prefix}_template_pair_label.txt").read_text().splitlines():
        a, b, label = line.split()
        scores.append(units[a] @ units[b])
        labels.append(label == "1")
    return np.array(scores), np.array(labels)


def curve_by_hand(scores, labels):
    """(FPR, TPR) at every distinct score, and the ends of the straight runs of that."""
    counts = [(0, 0)]
    for threshold in sorted(set(scores), reverse=True):
        counts.append((int((scores[~labels] >= threshold).sum()), int((scores[labels] >= threshold).sum())))
    bends = [
        here
        for before, here, after in zip(counts[1:], counts[2:], counts[3:], strict=False)
        if (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1])
    ]
    negatives, positives = (~labels).sum(), labels.sum()
    return (
        [(x / negatives, y / positives) for x, y in counts],
        [(x / negatives, y / positives) for x, y in [*counts[:2], *bends, counts[-1]]],
    )


def check_rates(result, scores, labels):
    assert list(result) == ["nearest", "strict", "pairs"]
    assert result["pairs"] == len(labels)
    points, ends = curve_by_hand(scores, labels)
    for far in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        strict = max(tpr for fpr, tpr in points if fpr <= far)
        _, nearest = min(ends, key=lambda point: (abs(point[0] - far), -point[0], -point[1]))
        assert result["strict"][str(far)] == pytest.approx(strict, abs=1e-6)
        assert result["nearest"][str(far)] == pytest.approx(nearest, abs=1e-6)


def search_by_hand(folder, units, prefix="ijbc"):
    """1:N as described, a probe and a gallery template at a time."""

    def subjects(name):
        lines = (folder / "meta" / f"{prefix}_1N_{name}.csv").read_text().splitlines()[1:]
        return [line.split(",")[:2] for line in lines]

    probes = subjects("probe_mixed")
    galleries = {name: subjects(f"gallery_{name}") for name in GALLERIES[prefix]}
    result, all_ranks = {}, []
    for name, gallery in galleries.items():
        ranks, firsts, mates, strangers = [], [], [], []
        for probe, who in probes:
            found = sorted(((units[probe] @ units[template], subject) for template, subject in gallery), reverse=True)
            order = [subject for _, subject in found]
            if who in order:
                ranks.append(order.index(who))
                firsts.append(order[0] == who)
                mates.append({subject: score for score, subject in found}[who])
            else:
                strangers.append(found[0][0])
        strangers.sort(reverse=True)
        row = {f"rank{k}": sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
        for fpir in (0.01, 0.1):
            threshold = strangers[max(int(len(strangers) * fpir) - 1, 0)]
            hits = sum(first and mate > threshold for first, mate in zip(firsts, mates, strict=True))
            row[f"tpir@{fpir}"] = hits / len(mates)
        result[name] = {**row, "mated": len(ranks), "non_mated": len(strangers)}
        all_ranks += ranks
    rows = list(result.values())
    result["mean"] = {
        **{f"rank{k}": sum(rank < k for rank in all_ranks) / len(all_ranks) for k in (1, 5, 10)},
        **{f"tpir@{fpir}": sum(row[f"tpir@{fpir}"] for row in rows) / 2 for fpir in (0.01, 0.1)},
        "mated": len(all_ranks),
        "non_mated": sum(row["non_mated"] for row in rows),
    }
    result["merged"] = merged_by_hand(units, probes, [entry for gallery in galleries.values() for entry in gallery])
    return result


def merged_by_hand(units, probes, gallery):
    mates, others, ranks = [], [], []
    for probe, who in probes:
        scores = [(units[probe] @ units[template], subject) for template, subject in gallery]
        mate = [score for score, subject in scores if subject == who]
        other = [score for score, subject in scores if subject != who]
        mates += mate
        others += other
        ranks += [sum(score > mate[0] for score in other) + 1] if mate else []
    others.sort(reverse=True)
    row = {f"rank{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    for fpir in (0.01, 0.1):
        threshold = others[math.ceil(len(probes) * fpir) - 1]
        row[f"tpir@{fpir}"] = sum(mate > threshold for mate in mates) / len(mates)
    return {**row, "mated": len(mates), "non_mated": len(probes) - len(mates)}


def check_search(result, expected):
    assert list(result) == list(expected)
    for name, row in expected.items():
        assert list(result[name]) == list(row)
        assert result[name] == pytest.approx(row, abs=1e-6), name


@pytest.mark.parametrize("prefix", ["ijbb", "ijbc"])
@pytest.mark.parametrize("detector_score", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("flip", [True, False])
def test_it_is_the_protocol(tmp_path, make_ijb, cheap_network, prefix, detector_score, norm, flip):
    folder = make_ijb(tmp_path / "set", prefix)
    units = templates_by_hand(folder, cheap_network, prefix, detector_score, norm, flip)
    scores, labels = pairs_by_hand(folder, units, prefix)
    options = {"use_detector_score": detector_score, "use_norm": norm, "flip": flip}
    loaded = load_ijb(folder)
    assert loaded.name == prefix.upper()
    features = embed_faces(cheap_network, loaded, **options)
    templates = template_features(features, loaded.template, loaded.media, len(loaded.template_ids))
    np.testing.assert_allclose(pair_scores(templates, loaded.first, loaded.second), scores, atol=1e-6)
    np.testing.assert_array_equal(loaded.issame, labels)
    result = evaluate_ijb(cheap_network, folder, **options)
    assert list(result) == ["1:1", "1:N"]
    check_rates(result["1:1"], scores, labels)
    assert 0.1 < result["1:1"]["strict"]["0.1"] < 1
    check_search(result["1:N"], search_by_hand(folder, units, prefix))
    assert 0.2 < result["1:N"]["mean"]["rank1"] < 1


def test_every_option_matters(tmp_path, make_ijb, cheap_network):
    loaded = load_ijb(make_ijb(tmp_path / "set"))
    everything = embed_faces(cheap_network, loaded)
    for option in ("use_detector_score", "use_norm", "flip"):
        assert not np.allclose(embed_faces(cheap_network, loaded, **{option: False}), everything, rtol=0.01)


def check_real(folder, network, result):
    units = templates_by_hand(folder, network)
    check_rates(result["1:1"], *pairs_by_hand(folder, units))
    check_search(result["1:N"], search_by_hand(folder, units))


def test_real_faces(real_data, cheap_network):
    folder = real_data / "lfw_as_ijbc"
    check_real(folder, cheap_network, evaluate_ijb(cheap_network, folder))


@pytest.mark.slow
def test_real_faces_with_a_real_network(real_data, tmp_path):
    model, folder = real_data / "third_party" / "mobilefacenet" / "MobileFaceNet.onnx", real_data / "lfw_as_ijbc"
    command = [sys.executable, "-m", "eval.ijb", str(model), str(folder), "--cache", str(tmp_path / "cache")]
    subprocess.run([*command, "--json", str(tmp_path / "out.json")], cwd=ROOT, check=True)
    result = json.loads((tmp_path / "out.json").read_text())
    check_real(folder, load_embedder(model).embed, result)
    assert result["1:N"]["mean"]["rank1"] == pytest.approx(0.75, abs=0.05)


def test_a_protocol_alone_and_lists_that_are_not_there(tmp_path, make_ijb, cheap_network, capsys):
    folder = make_ijb(tmp_path / "set")
    both = evaluate_ijb(cheap_network, folder)
    for protocol in ("1:1", "1:N"):
        assert evaluate_ijb(cheap_network, folder, protocols=[protocol]) == {protocol: both[protocol]}
    (folder / "meta" / "ijbc_1N_gallery_G2.csv").unlink()
    assert evaluate_ijb(cheap_network, folder) == {"1:1": both["1:1"]}


def test_two_targets_in_one_folder(tmp_path, make_ijb, cheap_network):
    folder = make_ijb(tmp_path / "set", "ijbb", seed=1)
    alone = evaluate_ijb(cheap_network, folder)
    pictures = {path.name: path.read_bytes() for path in (folder / "loose_crop").iterdir()}
    make_ijb(folder, "ijbc", seed=2)
    for name, content in pictures.items():
        (folder / "loose_crop" / name).write_bytes(content)
    assert evaluate_ijb(cheap_network, folder, target="IJBB") == alone


@st.composite
def scored_sets(draw):
    """A set and whole-number features of its faces, so that sums are exact in any order and scores are often equal."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    templates, faces = draw(st.integers(3, 8)), draw(st.integers(8, 30))
    template = np.concatenate([np.arange(templates), generator.integers(0, templates, faces - templates)])
    first, second = (side.astype(np.int32) for side in np.triu_indices(templates, 1))
    issame = generator.random(len(first)) < 0.4
    issame[:2] = True, False
    made = IjbSet(
        "IJBC", Path("nowhere"), [f"{n}.jpg" for n in range(faces)], np.ones(faces, int), np.zeros((faces, 5, 2)),
        np.ones(faces), np.arange(templates) * 3 + 5, template, generator.integers(0, 3, faces), first, second, issame,
        None,
    )  # fmt: skip
    return made, generator.integers(-2, 3, (faces, 3)).astype(np.float32), generator


def scored(made, features, curve=False):
    return score_templates(made, template_features(features, made.template, made.media, len(made.template_ids)), curve)


@settings(max_examples=60, deadline=None)
@given(scored_sets())
def test_orders_change_nothing(drawn):
    made, features, generator = drawn
    expected = scored(made, features, curve=True)
    faces = generator.permutation(len(features))
    moved = replace(made, template=made.template[faces], media=made.media[faces])
    assert scored(moved, features[faces], curve=True) == expected
    place = generator.permutation(len(made.template_ids)).astype(np.int32)  # template t is called place[t]
    renamed = replace(made, template=place[made.template], first=place[made.first], second=place[made.second])
    assert scored(renamed, features)["1:1"] == expected["1:1"]
    pairs = generator.permutation(len(made.issame))
    shuffled = replace(made, first=made.first[pairs], second=made.second[pairs], issame=made.issame[pairs])
    result = scored(shuffled, features, curve=True)
    assert result["1:1"] == expected["1:1"]
    assert result["curve"]["hardest"] == expected["curve"]["hardest"]


@settings(max_examples=60, deadline=None)
@given(scored_sets())
def test_a_media_whose_images_all_stand_twice_changes_nothing(drawn):
    made, features, generator = drawn
    chosen = generator.integers(0, len(features))
    again = np.flatnonzero((made.template == made.template[chosen]) & (made.media == made.media[chosen]))
    rows = np.concatenate([np.arange(len(features)), again])
    twice = replace(made, template=made.template[rows], media=made.media[rows])
    assert scored(twice, features[rows]) == scored(made, features)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 12))
def test_orders_and_ties_in_a_search(seed, people, probes):
    """Vectors of ±½ have exact dot products, many of them equal."""
    generator = np.random.default_rng(seed)
    total = 2 * people + probes
    templates = generator.choice([-0.5, 0.5], (total, 4)).astype(np.float32)
    subject = np.concatenate([np.arange(2 * people), generator.integers(0, 2 * people + 3, probes)])
    galleries = {"G1": np.arange(people), "G2": np.arange(people, 2 * people)}
    lists = SearchLists(galleries, np.arange(2 * people, total), subject)
    nobody = np.empty(0)
    made = IjbSet("IJBC", Path("nowhere"), [], *[nobody] * 9, lists)
    expected = ijb_search.identify_templates(made, templates)
    order = generator.permutation(total)
    back = np.argsort(order)
    moved = SearchLists({name: generator.permutation(back[rows]) for name, rows in galleries.items()},
                        generator.permutation(back[lists.probe]), subject[order])  # fmt: skip
    assert ijb_search.identify_templates(replace(made, search=moved), templates[order]) == expected
    same = np.full_like(templates, 0.5)  # a model that gives everybody one vector finds nobody
    row = ijb_search.identify_templates(made, same)["merged"]
    assert row["rank1"] in (None, 0.0)


def rewrite(folder, suffix, change):
    path = folder / "meta" / f"ijbc_{suffix}"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))


def test_order_of_lines_changes_nothing(tmp_path, make_ijb, cheap_network):
    folder = make_ijb(tmp_path / "set")
    before = evaluate_ijb(cheap_network, folder)
    for suffix in ("face_tid_mid.txt", "name_5pts_score.txt", "template_pair_label.txt"):
        rewrite(folder, suffix, lambda lines: lines[::-1])
        assert evaluate_ijb(cheap_network, folder) == before
    rewrite(folder, "name_5pts_score.txt", sorted)
    for name in ("gallery_G1", "gallery_G2", "probe_mixed"):
        rewrite(folder, f"1N_{name}.csv", lambda lines: [lines[0], *lines[:0:-1]])
    assert evaluate_ijb(cheap_network, folder) == before


def test_chunks_and_threads_change_nothing(tmp_path, monkeypatch, make_ijb, cheap_network):
    folder = make_ijb(tmp_path / "set")
    before = evaluate_ijb(cheap_network, folder)
    monkeypatch.setattr(ijb_faces, "FACES_AT_ONCE", 7)
    monkeypatch.setattr(ijb_faces, "CHUNK", 17)
    monkeypatch.setattr(ijb, "PAIRS_AT_ONCE", 11)
    monkeypatch.setattr(ijb_search, "MEGABYTES", 0)
    assert evaluate_ijb(cheap_network, folder, threads=3) == before


def test_hardest_pairs_are_the_worst(tmp_path, make_ijb, cheap_network):
    folder = make_ijb(tmp_path / "set")
    curve = evaluate_ijb(cheap_network, folder, curve=True)["curve"]
    assert set(curve["roc"]) == {"far", "tar", "low", "high"}
    units = templates_by_hand(folder, cheap_network)
    scores, labels = pairs_by_hand(folder, units)
    lines = (folder / "meta" / "ijbc_template_pair_label.txt").read_text().splitlines()
    order_of = {"false_match": (False, np.argsort(-scores)), "false_non_match": (True, np.argsort(scores))}
    for kind, (label, order) in order_of.items():
        worst = [number for number in order if labels[number] == label][:8]
        assert [row[:2] for row in curve["hardest"][kind]] == [[int(n) for n in lines[w].split()[:2]] for w in worst]
        np.testing.assert_allclose([row[2] for row in curve["hardest"][kind]], scores[worst], atol=1e-6)


def test_command(tmp_path, capsys, make_ijb):
    folder = make_ijb(tmp_path / "set")
    shape = BackboneSettings(name="tiny", embedding_size=16)
    torch.manual_seed(0)
    model = tmp_path / "model_last.pt"
    save_model(model, build(shape), shape, {})
    out = tmp_path / "out.json"
    command = [str(model), str(folder), "--json", str(out), "--threads", "1", "--no-flip", "--no-cache"]
    assert ijb.main([*command, "--plot", str(tmp_path / "roc.png")]) is None
    assert cv2.imread(str(tmp_path / "roc.png")) is not None
    result = json.loads(out.read_text())
    assert result.pop("folder") == str(folder.resolve())
    assert result == evaluate_ijb(load_embedder(model, 1).embed, folder, flip=False)
    printed = capsys.readouterr().out
    assert "153 pairs" in printed
    assert f"{100 * result['1:1']['strict']['0.1']:.2f}" in printed
    assert "| merged " in printed
    for name in ("gallery_G1", "gallery_G2", "probe_mixed"):
        (folder / "meta" / f"ijbc_1N_{name}.csv").unlink()
    assert ijb.main(command) is None
    assert "lacks ijbc_1N_gallery_G1.csv, ijbc_1N_gallery_G2.csv, ijbc_1N_probe_mixed.csv" in capsys.readouterr().out
    assert list(json.loads(out.read_text())) == ["folder", "1:1"]
    assert ijb.main([*command, "--curves"]) is None
    assert list(json.loads(out.read_text())) == ["folder", "1:1", "curve"]
    page = report.build(report_read.read_all([str(out)]))  # finds the hardest pairs' pictures
    assert page.count("data:image/jpeg") == 32
    with pytest.raises(SettingsError, match="expected a name ending in"):
        ijb.main([*command, "--plot", str(tmp_path / "roc")])
