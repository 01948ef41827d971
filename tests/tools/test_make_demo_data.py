import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.metrics import fold_accuracy
from eval.verification import load_bin
from recognition.data.align import SIZE, TEMPLATE, align_face, similarity_transform
from recognition.data.dataset import open_dataset
from recognition.data.recordio import RecordReader, read_index, unpack_record
from recognition.errors import SettingsError
from tools.demo_faces import features
from tools.demo_faces.crew import draw
from tools.demo_faces.geometry import View
from tools.demo_faces.identity import PARAMETERS, SPLITS, make_identity
from tools.demo_faces.picture import Request, make_pictures, render
from tools.demo_faces.quality import QUALITIES, degrade
from tools.demo_faces.scene import OCCLUSIONS, Variation, make_scene
from tools.demo_faces.sets import FOLDS
from tools.make_demo_data import MADE_FROM, DemoSettings, main, make_demo_data

ROOT = Path(__file__).resolve().parents[2]
PLAIN = Variation(yaw=0, pitch=0, roll=0, misalignment=0, light=0, expression=0, occlusion=0)
SMALL = DemoSettings(
    seed=3, identities=7, images_per_identity=4, verification_identities=20, verification_pairs=20,
    degraded_identities=20, degraded_pairs=20, ijb_identities=4,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo data") / "small"
    assert make_demo_data(out, SMALL, workers=1)
    return out


def decode(jpeg: bytes | np.ndarray) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    head, *rows = [line.split(",") for line in path.read_text().splitlines()]
    return head, rows


def test_same_bytes_with_one_process_and_with_two(made: Path, tmp_path: Path) -> None:
    make_demo_data(tmp_path / "two", SMALL, workers=2)

    def names(folder: Path) -> list[Path]:
        return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())

    assert names(made) == names(tmp_path / "two")
    for name in names(made):
        assert (made / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_another_seed_gives_other_people() -> None:
    first, second = make_identity(0, "train", 5), make_identity(1, "train", 5)
    assert all(first[name] != second[name] for name in PARAMETERS)


def test_a_picture_depends_on_nothing_but_its_request() -> None:
    request = Request("train", 8, 2, "mixed")
    alone = make_pictures(0, Variation(), [request])[0]
    among = make_pictures(0, Variation(), [Request("train", 8, 0, "mixed"), Request("ijb", 8, 2, "mixed"), request])
    assert among[2].jpeg == alone.jpeg
    assert len({picture.jpeg for picture in among}) == 3


def test_no_person_is_in_two_splits() -> None:
    people = [make_identity(0, split, number).value["cheek_width"] for split in SPLITS for number in range(50)]
    assert len(set(people)) == len(people)


def test_the_training_set_is_in_the_common_face_layout(made: Path) -> None:
    dataset = open_dataset(made)
    assert (dataset.num_images, dataset.num_classes) == (28, 7)
    assert dataset.labels.tolist() == [number // 4 for number in range(28)]
    assert all(decode(dataset.encoded(sample)).shape == (SIZE, SIZE, 3) for sample in range(28))
    assert (made / "property").read_text().splitlines()[0] == "7,112,112"
    reader = RecordReader(made / "train.rec")
    keys, offsets = read_index(made / "train.idx")
    assert keys.tolist() == list(range(1 + 28 + 7))
    header, _ = unpack_record(reader.read(offsets[0]))
    assert (header.flag, header.labels.tolist()) == (2, [29, 36])
    identity, image = unpack_record(reader.read(offsets[29 + 3]))
    assert (identity.labels.tolist(), len(image)) == ([13, 17], 0)


def test_the_truth_is_beside_every_set(made: Path) -> None:
    head, rows = read_csv(made / "quality.csv")
    assert head == ["key", "identity", "quality", "yaw", "pitch", "roll", "occlusion"]
    assert [(int(row[0]), int(row[1])) for row in rows] == [(key, (key - 1) // 4) for key in range(1, 29)]
    assert all(0 <= float(row[2]) <= 1 and row[6] in OCCLUSIONS for row in rows)
    for name, kind in (("demo", "recognisable"), ("demo_degraded", "degraded")):
        _, rows = read_csv(made / f"{name}_quality.csv")
        (_, low, high), = QUALITIES[kind]
        assert len(rows) == 40
        assert all(low <= float(row[2]) <= high for row in rows)


@pytest.mark.parametrize("name", ["demo", "demo_degraded"])
def test_every_fold_has_its_own_people_and_half_its_pairs_positive(made: Path, name: str) -> None:
    content = (made / f"{name}.bin").read_bytes()
    images, issame = pickle.loads(content)
    assert content[:2] == b"\x80\x02"  # protocol 2
    assert len(images) == 2 * len(issame) == 40
    assert len(set(images)) == 40
    assert load_bin(made / f"{name}.bin").issame.tolist() == issame
    people = np.array([int(row[1]) for row in read_csv(made / f"{name}_quality.csv")[1]]).reshape(FOLDS, -1, 2)
    assert (np.array(issame).reshape(FOLDS, -1).mean(axis=1) == 0.5).all()
    assert ((people[..., 0] == people[..., 1]).ravel() == issame).all()
    folds = [set(fold.ravel().tolist()) for fold in people]
    assert sum(len(fold) for fold in folds) == len(set.union(*folds))


def test_the_ijb_folder_is_consistent(made: Path) -> None:
    meta = made / "ijb" / "meta"
    members = [line.split() for line in (meta / "ijbc_face_tid_mid.txt").read_text().splitlines()]
    points = [line.split() for line in (meta / "ijbc_name_5pts_score.txt").read_text().splitlines()]
    assert [row[0] for row in members] == [row[0] for row in points] == [f"{n}.jpg" for n in range(1, len(members) + 1)]
    assert all(len(row) == 12 and 0 < float(row[11]) < 1 for row in points)
    subject = {}
    lists = {}
    for name in ("gallery_G1", "gallery_G2", "probe_mixed"):
        head, rows = read_csv(meta / f"ijbc_1N_{name}.csv")
        assert head == ["TEMPLATE_ID", "SUBJECT_ID"]
        lists[name] = dict(rows)
        subject |= lists[name]
    assert not set(lists["gallery_G1"].values()) & set(lists["gallery_G2"].values())
    assert {row[1] for row in members} == set(subject)
    truth = {f"{row[0]}.jpg": int(row[1]) + 1 for row in read_csv(made / "ijb" / "quality.csv")[1]}
    assert all(truth[image] == int(subject[template]) for image, template, _ in members)
    of_media = {(media, template) for _, template, media in members}
    assert len({media for media, _ in of_media}) == len(of_media)
    pairs = [line.split() for line in (meta / "ijbc_template_pair_label.txt").read_text().splitlines()]
    assert len(pairs) == 4 * 8
    assert all((subject[one] == subject[two]) == (label == "1") for one, two, label in pairs)


def test_loose_crops_are_bigger_and_align_by_their_landmarks(made: Path) -> None:
    for line in (made / "ijb" / "meta" / "ijbc_name_5pts_score.txt").read_text().splitlines():
        name, *numbers = line.split()
        crop = decode((made / "ijb" / "loose_crop" / name).read_bytes())
        landmarks = np.array(numbers[:10], float).reshape(5, 2)
        assert 160 <= crop.shape[0] == crop.shape[1] <= 250
        assert (landmarks > 0).all()
        assert (landmarks < crop.shape[0]).all()
        matrix = similarity_transform(landmarks)
        assert np.abs(landmarks @ matrix[:, :2].T + matrix[:, 2] - TEMPLATE).max() < 16
        assert align_face(crop, landmarks).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.5, 0.1, 0.25), (-0.5, -0.2, -0.3)])
def test_landmarks_are_where_the_eyes_are_drawn(angles: tuple[float, float, float]) -> None:
    face = make_identity(0, "train", 4)  # freckled, with wide open eyes
    scene = make_scene(np.random.default_rng(0), PLAIN)
    scene = replace(scene, gaze=(0.0, 0.0), lids=1.2)
    view = View(*angles, factor=4.0, offset=250 + 280j)
    picture = render(face, scene, view, 500)
    for eye in features.landmarks(face, scene, view)[:2]:
        x, y = np.rint(eye).astype(int)
        window = picture[y - 20 : y + 21, x - 20 : x + 21].max(axis=2)
        rows, columns = np.nonzero(window < window.min() + 12)  # the pupil
        assert np.hypot(rows.mean() - 20, columns.mean() - 20) < 6  # 1.5 pixels of the aligned picture


def test_turning_the_head_moves_the_nose_against_the_outline() -> None:
    nose, rim = np.array([[0.0, 0.0]]), np.array([[30.0, 0.0, 0.0]])
    straight, turned = View(0, 0, 0), View(0.5, 0, 0)
    assert straight.surface(nose, 10.0)[0].tolist() == [0.0, 0.0]
    assert turned.surface(nose, 10.0)[0, 0] == pytest.approx(40 * np.sin(0.5))
    assert turned.outline(rim)[0, 0] > 0.9 * 30


def test_worse_quality_leaves_less_of_the_picture() -> None:
    likeness = {0.95: [], 0.5: [], 0.1: []}
    for number in range(12):
        face = make_identity(0, "train", number)
        scene = make_scene(np.random.default_rng(number), PLAIN)
        (a, _, x), (b, _, y) = similarity_transform(features.landmarks(face, scene, View(0, 0, 0))).tolist()
        crisp = render(face, scene, View(0, 0, 0, complex(a, b), complex(x, y)), SIZE)
        inner = (slice(20, 100), slice(25, 87))

        def detail(picture: np.ndarray, inner: tuple[slice, slice] = inner) -> np.ndarray:
            grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
            return cv2.Laplacian(cv2.GaussianBlur(grey, (0, 0), 1.0), cv2.CV_32F)[inner].ravel()

        for quality, values in likeness.items():
            worse = degrade(crisp, quality, 1.0, np.random.default_rng(number))
            values.append(np.corrcoef(detail(crisp), detail(worse))[0, 1])
    best, middle, worst = (float(np.mean(values)) for values in likeness.values())
    assert best > 0.9
    assert 0.1 < middle < 0.75
    assert worst < 0.15


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Recognisable pictures uint8 [800, 112, 112, 3] of 400 pairs; five of every ten in a row are positive."""
    requests = []
    for pair in range(400):
        second = pair if pair % 10 < 5 else 400 + pair
        for number, person in enumerate((pair, second)):
            requests.append(Request("verification", person, number, "recognisable"))
    pictures = make_pictures(5, Variation(), requests)
    return np.stack([decode(picture.jpeg) for picture in pictures]), np.arange(400) % 10 < 5


def accuracy(vectors: np.ndarray, issame: np.ndarray) -> float:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float(fold_accuracy(((unit[::2] - unit[1::2]) ** 2).sum(axis=1), issame).mean())


def test_pixels_and_principal_components_do_not_solve_it(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    images, issame = pairs
    assert accuracy(images.reshape(len(images), -1) - 127.5, issame) < 0.75
    trained = make_pictures(5, Variation(), [Request("train", person, 0, "mixed") for person in range(600)])

    def small(picture: np.ndarray) -> np.ndarray:
        return cv2.resize(picture, (28, 28), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()

    training = np.stack([small(decode(picture.jpeg)) for picture in trained])
    mean = training.mean(axis=0)
    _, spread, axes = np.linalg.svd(training - mean, full_matrices=False)
    parts = (np.stack([small(image) for image in images]) - mean) @ axes[:128].T
    assert accuracy(parts, issame) < 0.75
    assert accuracy(parts / spread[:128], issame) < 0.75


def test_background_tells_nothing_of_the_person(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    images, issame = pairs
    corners = np.concatenate([images[:, :8, :8], images[:, :8, -8:]], axis=1).reshape(len(images), -1)
    assert accuracy(corners - 127.5, issame) < 0.58  # 400 pairs: chance is 0.5, its deviation 0.025


def test_requests_are_drawn_as_they_are_needed() -> None:
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield Request("train", asked // 10, asked % 10, "mixed")

    drawn = draw(0, Variation(), endless(), workers=2)
    first = [next(drawn) for _ in range(3)]
    drawn.close()
    assert [picture.request.number for picture in first] == [1, 2, 3]
    assert asked < 1000


def test_it_is_made_once_and_anew_for_other_settings(made: Path, tmp_path: Path) -> None:
    stamp = (made / "train.rec").stat().st_mtime_ns
    assert not make_demo_data(made, SMALL, workers=1)
    assert (made / "train.rec").stat().st_mtime_ns == stamp
    out = tmp_path / "other"
    out.mkdir()
    (out / MADE_FROM).write_text("{}")
    (out / "train.rec").write_text("of other settings")
    assert make_demo_data(out, SMALL, workers=1)
    assert (out / "train.rec").read_bytes() == (made / "train.rec").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SettingsError, match="not demo data"):
        make_demo_data(tmp_path, SMALL, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="30 pairs of 20 identities"):
        make_demo_data(tmp_path / "new", DemoSettings(verification_identities=20, verification_pairs=30), workers=1)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_contact_sheet(tmp_path: Path) -> None:
    command = [sys.executable, "tools/make_demo_data.py", "--sheet", str(tmp_path / "a sheet.png")]
    subprocess.run(command, cwd=ROOT, check=True)
    assert cv2.imread(str(tmp_path / "a sheet.png")).shape[2] == 3


def test_settings_that_make_no_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="identities = 1; expected at least 2"):
        main([str(tmp_path / "x"), "--identities", "1"])
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
