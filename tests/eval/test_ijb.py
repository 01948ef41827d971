"""eval/ijb.py against the 1:1 protocol written out template by template, on made folders and on real faces."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from eval import ijb
from eval.embed import load_embedder
from eval.ijb import embed_faces, evaluate_ijb, load_ijb, pair_scores, template_features
from recognition.backbones import BackboneSettings, build
from recognition.backbones.model_file import save_model
from recognition.data.align import TEMPLATE, align_face
from recognition.errors import DataError, NumericsError

PROJECTION = np.random.default_rng(0).normal(size=(14 * 14 * 3, 16)) / 100


def embed(images):
    """A cheap network that is no friend of mirrors: coarse pixels times a matrix."""
    coarse = images.reshape(len(images), 14, 8, 14, 8, 3).mean(axis=(2, 4)).reshape(len(images), -1)
    return ((coarse - 127.5) @ PROJECTION).astype(np.float32)


def make_folder(folder, prefix="ijbc", seed=0):
    """Write 15 templates of 5 people, 1 to 6 faces each, in unordered lists; every pair of templates."""
    generator = np.random.default_rng(seed)
    (folder / "loose_crop").mkdir(parents=True)
    (folder / "meta").mkdir()
    faces = []
    for template in range(15):
        person = np.random.default_rng(100 + template % 5).integers(0, 256, (6, 6, 3))
        for _ in range(generator.integers(1, 7)):
            face = np.clip(person + generator.normal(0, 150, person.shape), 0, 255).astype(np.uint8)
            image = cv2.resize(face, (160, 150), interpolation=cv2.INTER_CUBIC)
            name = f"{len(faces) + 1}.png"
            cv2.imwrite(str(folder / "loose_crop" / name), image)
            points = TEMPLATE * generator.uniform(0.9, 1.2) + generator.normal(0, 2, (5, 2)) + 15
            faces.append((name, 700 + 13 * template, generator.integers(1, 4), points, generator.uniform(0.5, 1)))
    faces = [faces[i] for i in generator.permutation(len(faces))]
    pairs = [(a, b) for a in range(15) for b in range(a)]
    pairs = [pairs[i] for i in generator.permutation(len(pairs))]
    write_lists(folder, prefix, faces, [(700 + 13 * a, 700 + 13 * b, int(a % 5 == b % 5)) for a, b in pairs])
    return folder


def write_lists(folder, prefix, faces, pairs):
    meta = folder / "meta"
    (meta / f"{prefix}_face_tid_mid.txt").write_text("".join(f"{n} {t} {m}\n" for n, t, m, _, _ in faces))
    (meta / f"{prefix}_name_5pts_score.txt").write_text(
        "".join(f"{n} {' '.join(f'{v:.3f}' for v in p.flat)} {s:.3f}\n" for n, _, _, p, s in faces)
    )
    (meta / f"{prefix}_template_pair_label.txt").write_text("".join(f"{a} {b} {label}\n" for a, b, label in pairs))


def by_hand(folder, prefix="ijbc", network=embed, detector_score=True, norm=True, flip=True):
    """The protocol from its description: a face, a media, a template and a pair at a time, in float64."""
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
    scores, labels = [], []
    for line in (meta / f"{prefix}_template_pair_label.txt").read_text().splitlines():
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
    assert result["pairs"] == len(labels)
    points, ends = curve_by_hand(scores, labels)
    for far in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        strict = max(tpr for fpr, tpr in points if fpr <= far)
        _, nearest = min(ends, key=lambda point: (abs(point[0] - far), -point[0], -point[1]))
        assert result["strict"][str(far)] == pytest.approx(strict, abs=1e-6)
        assert result["nearest"][str(far)] == pytest.approx(nearest, abs=1e-6)


@pytest.mark.parametrize("prefix", ["ijbb", "ijbc"])
@pytest.mark.parametrize("detector_score", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("flip", [True, False])
def test_one_to_one_is_the_protocol(tmp_path, prefix, detector_score, norm, flip):
    folder = make_folder(tmp_path / "set", prefix)
    scores, labels = by_hand(folder, prefix, embed, detector_score, norm, flip)
    options = {"use_detector_score": detector_score, "use_norm": norm, "flip": flip}
    loaded = load_ijb(folder)
    assert loaded.name == prefix.upper()
    features = embed_faces(embed, loaded, **options)
    templates = template_features(features, loaded.template, loaded.media, len(loaded.template_ids))
    np.testing.assert_allclose(pair_scores(templates, loaded.first, loaded.second), scores, atol=1e-6)
    np.testing.assert_array_equal(loaded.issame, labels)
    result = evaluate_ijb(embed, folder, **options)
    assert list(result) == ["1:1"]
    assert list(result["1:1"]) == ["nearest", "strict", "pairs"]
    check_rates(result["1:1"], scores, labels)
    assert 0.1 < result["1:1"]["strict"]["0.1"] < 1


def test_every_option_matters(tmp_path):
    folder = make_folder(tmp_path / "set")
    loaded = load_ijb(folder)
    everything = embed_faces(embed, loaded)
    for option in ("use_detector_score", "use_norm", "flip"):
        assert not np.allclose(embed_faces(embed, loaded, **{option: False}), everything, rtol=0.01)


def test_real_faces(real_data):
    folder = real_data / "lfw_as_ijbc"
    check_rates(evaluate_ijb(embed, folder)["1:1"], *by_hand(folder))


@pytest.mark.slow
def test_real_faces_with_a_real_network(real_data):
    network = load_embedder(real_data / "third_party" / "mobilefacenet" / "MobileFaceNet.onnx").embed
    folder = real_data / "lfw_as_ijbc"
    check_rates(evaluate_ijb(network, folder)["1:1"], *by_hand(folder, network=network))


def rewrite(folder, suffix, change):
    path = folder / "meta" / f"ijbc_{suffix}.txt"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    return path


def test_order_of_lines_changes_nothing(tmp_path):
    folder = make_folder(tmp_path / "set")
    before = evaluate_ijb(embed, folder)
    for suffix in ("face_tid_mid", "name_5pts_score", "template_pair_label"):
        rewrite(folder, suffix, lambda lines: lines[::-1])
        assert evaluate_ijb(embed, folder) == before
    rewrite(folder, "name_5pts_score", lambda lines: sorted(lines))
    assert evaluate_ijb(embed, folder) == before


def test_chunks_change_nothing(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "set")
    before = evaluate_ijb(embed, folder)
    monkeypatch.setattr(ijb, "FACES_AT_ONCE", 7)
    monkeypatch.setattr(ijb, "PAIRS_AT_ONCE", 11)
    assert evaluate_ijb(embed, folder) == before


def test_a_face_that_stands_twice_in_its_media_changes_nothing():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(3, 4)).astype(np.float32)
    template, media = np.array([0, 0, 1]), np.array([1, 2, 2])
    once = template_features(features, template, media, 2)
    twice = template_features(features[[0, 1, 1, 2]], template[[0, 1, 1, 2]], media[[0, 1, 1, 2]], 2)
    np.testing.assert_allclose(once, twice, atol=1e-7)
    other_media = template_features(features[[0, 1, 1, 2]], template[[0, 1, 1, 2]], np.array([1, 2, 3, 2]), 2)
    assert not np.allclose(once[0], other_media[0])
    np.testing.assert_allclose(np.linalg.norm(once, axis=1), 1, atol=1e-6)


def broken(suffix, change):
    return lambda folder: rewrite(folder, suffix, change)


def first_line(text):
    return lambda lines: [text, *lines[1:]]


BROKEN = {
    "no lists": (lambda folder: shutil.rmtree(folder / "meta"), "expected ijbb_face_tid_mid.txt or .*, got neither"),
    "no pairs": (lambda folder: (folder / "meta" / "ijbc_template_pair_label.txt").unlink(), "template_pair_label"),
    "no images": (lambda folder: shutil.rmtree(folder / "loose_crop"), "loose_crop: cannot be read"),
    "missing images": (lambda folder: (folder / "loose_crop" / "3.png").unlink(), "1 of .* images are missing: 3.png"),
    "image outside": (broken("face_tid_mid", first_line("../x.png 700 1")), "no landmarks for 1 faces: ../x.png"),
    "no image": (lambda folder: (folder / "loose_crop" / "4.png").write_bytes(b"x"), "4.png: not a JPEG"),
    "short line": (broken("face_tid_mid", first_line("1.png 700")), "line 1: expected 3 columns, got 2"),
    "no numbers": (broken("face_tid_mid", first_line("1.png seven 1")), "line 1: not numbers: seven 1"),
    "landmark missing": (broken("name_5pts_score", lambda lines: lines[1:]), "no landmarks for 1 faces"),
    "score nan": (
        broken("name_5pts_score", lambda lines: [f"{lines[0].rsplit(maxsplit=1)[0]} nan", *lines[1:]]),
        "png: a landmark or score is not finite",
    ),
    "landmarks coincide": (
        broken("name_5pts_score", lambda lines: [f"{lines[0].split()[0]} {'5 ' * 10} 1", *lines[1:]]),
        "png: all landmarks coincide",
    ),
    "template unknown": (broken("template_pair_label", first_line("700 701 0")), "line 1: template 701 has no face"),
    "label 2": (broken("template_pair_label", first_line("700 713 2")), "line 1: expected label 0 or 1, got 2"),
    "label text": (broken("template_pair_label", first_line("700 713 yes")), "yes"),
    "only one label": (
        broken("template_pair_label", lambda lines: [line for line in lines if line.endswith("1")]),
        "expected pairs of both labels, all 15 have 1",
    ),
    "empty pairs": (broken("template_pair_label", lambda lines: []), "expected lines of"),
    "empty faces": (broken("face_tid_mid", lambda lines: []), "empty"),
}


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_refused_with_the_place_named(tmp_path, name):
    folder = make_folder(tmp_path / "set")
    change, text = BROKEN[name]
    change(folder)
    with pytest.raises(DataError, match=text) as error:
        evaluate_ijb(embed, folder)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


def test_not_finite_embeddings_name_the_images(tmp_path):
    folder = make_folder(tmp_path / "set")
    names = load_ijb(folder).images

    def spoilt(images):
        result = embed(images)
        result[2] = np.nan
        return result

    with pytest.raises(NumericsError, match=f": {names[2]}$"):
        evaluate_ijb(spoilt, folder)


def test_command(tmp_path, capsys):
    folder = make_folder(tmp_path / "set")
    settings = BackboneSettings(name="tiny", embedding_size=16)
    torch.manual_seed(0)
    model = tmp_path / "model_last.pt"
    save_model(model, build(settings), settings, {})
    out = tmp_path / "out.json"
    assert ijb.main([str(model), str(folder), "--json", str(out), "--threads", "1", "--no-flip"]) is None
    result = json.loads(out.read_text())
    assert result == evaluate_ijb(load_embedder(model, 1).embed, folder, flip=False)
    printed = capsys.readouterr().out
    assert "105 pairs" in printed
    assert f"{100 * result['1:1']['strict']['0.1']:.2f}" in printed
