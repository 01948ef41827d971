"""The demo's sets on disk: RecordIO for training, `.bin` pairs for verification, and an IJB-shaped folder.

Each writer takes the pictures one at a time and has the truth about them (quality, pose, occlusion) in a CSV beside the
set. Proven by tests/tools/test_make_demo_data.py.
"""

import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from recognition.data.align import SIZE
from recognition.data.shard_writer import ShardWriter
from recognition.errors import SettingsError
from tools.demo_faces.identity import SPLITS
from tools.demo_faces.picture import Picture, Request

FOLDS = 10
_TRUTH = "identity,quality,yaw,pitch,roll,occlusion"


def training_requests(identities: int, images_per_identity: int) -> Iterator[Request]:
    """All training pictures, person by person."""
    for identity in range(identities):
        for number in range(images_per_identity):
            yield Request("train", identity, number, "mixed")


def write_training(folder: Path, pictures: Iterable[Picture], identities: int) -> None:
    """Write train.rec, train.idx, train.lst, property and quality.csv, in the order of the pictures."""
    with ShardWriter(folder / "train.rec") as shard, open(folder / "quality.csv", "w", newline="\n") as truth:
        truth.write(f"key,{_TRUTH}\n")
        for key, picture in enumerate(pictures, start=1):
            person, number = picture.request.identity, picture.request.number
            shard.add(person, picture.jpeg, f"{person:06d}/{number:04d}.jpg")
            _write_truth(truth, key, picture)
    (folder / "property").write_text(f"{identities},{SIZE},{SIZE}\n{shard.num_images}\n")


def pair_requests(split: str, quality: str, identities: int, pairs: int, seed: int) -> list[Request]:
    """The pictures of verification pairs, two a pair: per fold its own people, first the same, then different ones.

    No picture is used twice, and the person of a negative pair's second picture is any other of the fold.
    """
    if pairs % (2 * FOLDS) or identities < 2 * FOLDS:
        raise SettingsError(
            f"{pairs} pairs of {identities} identities; expected a multiple of {2 * FOLDS} pairs and "
            f"at least {2 * FOLDS} identities, as {FOLDS} folds have their own people and half their pairs are positive"
        )
    random = np.random.default_rng((seed, SPLITS[split]))
    used = np.zeros(identities, np.int64)
    requests = []
    for people in np.array_split(np.arange(identities), FOLDS):
        for pair in range(pairs // FOLDS):
            first = int(people[pair % len(people)])
            others = people[people != first]
            second = first if pair < pairs // FOLDS // 2 else int(random.choice(others))
            for identity in (first, second):
                requests.append(Request(split, identity, int(used[identity]), quality))
                used[identity] += 1
    return requests


def write_pairs(path: Path, pictures: Iterable[Picture]) -> None:
    """Write a verification set (pickle of JPEGs and booleans) and, beside it, NAME_quality.csv over its images."""
    images, people = [], []
    with open(path.with_name(path.stem + "_quality.csv"), "w", newline="\n") as truth:
        truth.write(f"image,{_TRUTH}\n")
        for number, picture in enumerate(pictures):
            images.append(picture.jpeg)
            people.append(picture.request.identity)
            _write_truth(truth, number, picture)
    issame = [first == second for first, second in zip(people[::2], people[1::2], strict=True)]
    path.write_bytes(pickle.dumps((images, issame), protocol=2))


class TemplatePlan(NamedTuple):
    """One template: its number, its person, whether a gallery's, and (image number, media) of its pictures."""

    template: int
    identity: int
    gallery: bool
    images: list[tuple[int, int]]


def plan_templates(identities: int, seed: int) -> list[TemplatePlan]:
    """A gallery template and two probes a person, each of one to three media with one to three pictures."""
    random = np.random.default_rng((seed, SPLITS["ijb"]))
    plans: list[TemplatePlan] = []
    image, media = 1, 5001
    for identity in range(identities):
        for position in range(3):
            gallery = position == 0
            members = []
            for _ in range(int(random.integers(2 if gallery else 1, 4))):
                frames = int(random.integers(1, 4))
                members += [(image + frame, media) for frame in range(frames)]
                image, media = image + frames, media + 1
            plans.append(TemplatePlan(101 + len(plans), identity, gallery, members))
    return plans


def template_requests(plans: list[TemplatePlan]) -> list[Request]:
    """The loose crops of the templates, in the order of their image numbers."""
    return [Request("ijb", plan.identity, image, "unconstrained", True) for plan in plans for image, _ in plan.images]


def write_ijb(folder: Path, pictures: Iterable[Picture], plans: list[TemplatePlan], seed: int) -> None:
    """Write loose_crop/, meta/ and quality.csv as IJB-C lays them out; the detector's score follows the quality."""
    (folder / "loose_crop").mkdir(parents=True)
    meta = folder / "meta"
    meta.mkdir()
    random = np.random.default_rng((seed, SPLITS["ijb"], 1))
    members = [(image, plan.template, media) for plan in plans for image, media in plan.images]
    with (
        open(meta / "ijbc_face_tid_mid.txt", "w", newline="\n") as templates,
        open(meta / "ijbc_name_5pts_score.txt", "w", newline="\n") as points,
        open(folder / "quality.csv", "w", newline="\n") as truth,
    ):
        truth.write(f"image,{_TRUTH}\n")
        for (image, template, media), picture in zip(members, pictures, strict=True):
            (folder / "loose_crop" / f"{image}.jpg").write_bytes(picture.jpeg)
            score = np.clip(0.45 + 0.5 * picture.quality + random.normal(0, 0.05), 0.2, 0.999)
            templates.write(f"{image}.jpg {template} {media}\n")
            places = " ".join(f"{value:.3f}" for value in picture.landmarks.ravel())
            points.write(f"{image}.jpg {places} {score:.3f}\n")
            _write_truth(truth, image, picture)
    _write_protocol(meta, plans)


def _write_protocol(meta: Path, plans: list[TemplatePlan]) -> None:
    """Who is enrolled in which gallery, who probes, and all gallery-probe pairs of the 1:1 protocol."""
    galleries = [plan for plan in plans if plan.gallery]
    probes = [plan for plan in plans if not plan.gallery]
    lists = {"gallery_G1": galleries[::2], "gallery_G2": galleries[1::2], "probe_mixed": probes}
    for name, members in lists.items():
        lines = ["TEMPLATE_ID,SUBJECT_ID", *(f"{plan.template},{plan.identity + 1}" for plan in members)]
        (meta / f"ijbc_1N_{name}.csv").write_text("\n".join(lines) + "\n")
    with open(meta / "ijbc_template_pair_label.txt", "w", newline="\n") as pairs:
        for gallery in galleries:
            for probe in probes:
                pairs.write(f"{gallery.template} {probe.template} {int(gallery.identity == probe.identity)}\n")


def _write_truth(file: TextIO, key: int, picture: Picture) -> None:
    angles = ",".join(f"{angle:.4f}" for angle in picture.pose)
    file.write(f"{key},{picture.request.identity},{picture.quality:.4f},{angles},{picture.occlusion}\n")
