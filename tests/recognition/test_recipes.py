"""The recipes build and train, and docs/recipes.md says of each what its config holds."""

import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from recognition.assembly import assemble
from recognition.backbones import BackboneSettings, build
from recognition.config import Config, EvaluationSettings, read_file
from recognition.data.plan import Augmentation
from recognition.distributed import Ranks
from recognition.heads.margins import ArcFace, CosFace
from recognition.memory import QAFace
from recognition.recipes import SETS
from recognition.train import train_step

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "configs").glob("wf4m*.py"), *(ROOT / "configs" / "ablations").glob("*.py"),
                *(ROOT / "configs" / "published").glob("*.py")])
PUBLISHED = [path for path in FILES if path.parent.name == "published"]
IDS = {"ids": lambda path: path.stem}


@cache
def _config(path: Path) -> Config:
    return read_file(path).config()


@cache
def _docstring(path: Path) -> str:
    return " ".join((read_file(path).__doc__ or "").split())


def _table() -> dict[str, dict[str, str]]:
    """The rows of docs/recipes.md's tables, by the config that each links to, as {column: text}."""
    rows: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line in (ROOT / "docs" / "recipes.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells and cells[0] == "config":
            columns = cells
        elif cells and (link := re.search(r"\]\(\.\./(configs/[\w/]+\.py)\)", cells[0])):
            assert link[1] not in rows, f"{link[1]} twice"
            rows[link[1]] = dict(zip(columns, cells, strict=True))
        elif not cells:
            columns = []
    return rows


def _margin(config: Config) -> str:
    kinds = {ArcFace: "arcface", CosFace: "cosface"}
    assert config.head.margin.s == 64
    return f"{kinds[type(config.head.margin)]} {config.head.margin.m:g}"


def _sampling(config: Config) -> str:
    left_out = config.head.ignore_above
    return f"{config.head.sample_rate:g}" + (f", ≤ {left_out:g}" if left_out is not None else "")


def _batch(config: Config) -> str:
    return f"{config.batch_size:,}" + (f" in {config.micro_batches}" if config.micro_batches > 1 else "")


def _epochs(config: Config) -> str:
    schedule = config.schedule
    steps = "; ÷10 at " + ", ".join(f"{epoch:g}" for epoch in schedule.milestones) if schedule.milestones else ""
    return f"{config.epochs:g}" + (f", {schedule.warmup_epochs:g} up" if schedule.warmup_epochs else "") + steps


def _injection(config: Config) -> str:
    inject = config.head.inject
    kind = type(inject).__name__.lower() if inject.is_on else "none"
    return kind + (f", Δt {inject.max_age}" if inject.is_on else "") + (
        f", τ {inject.tau:g}" if isinstance(inject, QAFace) else "")


def _augmentation(config: Config) -> str:
    return f"{config.data.augmentation.crop:g}, {config.data.augmentation.downsample:g}"


def test_the_table_has_every_recipe():
    assert sorted(_table()) == [str(path.relative_to(ROOT)) for path in FILES]


@pytest.mark.parametrize("path", FILES, **IDS)
def test_the_table_says_what_the_config_holds(path):
    row, config = _table()[str(path.relative_to(ROOT))], _config(path)
    expected = {
        "set": Path(config.data.root).name, "backbone": config.backbone.name, "margin": _margin(config),
        "sampling": _sampling(config), "batch": _batch(config),
        "lr": f"{config.optimizer.kind} {config.optimizer.lr:g}", "decay": f"{config.optimizer.weight_decay:g}",
        "epochs": _epochs(config), "injection": _injection(config), "crop, down": _augmentation(config),
    }
    columns = row.keys() - {"config", "published"}
    assert columns <= expected.keys()
    assert {name: row[name] for name in columns} == {name: expected[name] for name in columns}
    # What a table has no column for, all of it shares.
    shared = {"set": "webface4m", "backbone": "iresnet100", "sampling": "1", "injection": "none", "crop, down": "0, 0"}
    assert all(expected[name] == shared[name] for name in expected.keys() - columns)
    score = row["published"]
    assert score in _docstring(path) if score != "–" else "Expected: none was published." in _docstring(path)


@pytest.mark.parametrize("path", PUBLISHED, **IDS)
def test_the_docstring_says_what_the_recipe_costs(path):
    """Steps and images of the source's set, and its GPUs × images."""
    config = _config(path)
    data = next(data for data in SETS.values() if data.folder == config.data.root)
    steps = data.images // config.batch_size * round(config.epochs)
    cost = re.search(r"Cost: ([\d.]+) epochs, ([\d,]+) steps of ([\d,]+) images? \(([^)]*) there\)", _docstring(path))
    assert cost is not None
    assert cost.groups()[:3] == (f"{config.epochs:g}", f"{steps:,}", f"{config.batch_size:,}")
    product = 1
    for factor in re.findall(r"\d+", cost[4]):
        product *= int(factor)
    assert product == config.batch_size


@pytest.mark.parametrize("path", PUBLISHED, **IDS)
def test_centres_decay_and_learn_as_the_backbone_does(path):
    """The source has one optimiser for both."""
    config = _config(path)
    head, backbone = config.head.optimizer, config.optimizer
    assert (head.weight_decay, config.head.lr_scale) == (backbone.weight_decay, 1.0)
    assert type(head).__name__.lower() == f"row{backbone.kind}"
    assert backbone.kind == "adamw" or head.momentum == backbone.momentum == 0.9


def _backbones() -> list[BackboneSettings]:
    return sorted({_config(path).backbone for path in FILES}, key=lambda backbone: str(backbone))


@pytest.mark.parametrize("backbone", _backbones(), ids=lambda b: f"{b.name} {b.mask}")
def test_every_backbone_of_a_recipe_is_one(backbone):
    with torch.device("meta"):
        module = build(backbone)
    assert sum(parameter.numel() for parameter in module.parameters()) > 1e6
    assert module.state_dict()


def _kind(config: Config) -> tuple:
    """What decides which code a step runs."""
    head = config.head
    return (head.margin, type(head.optimizer), config.optimizer.kind, config.schedule.kind, head.sample_rate < 1,
            head.ignore_above, config.backbone.norm, type(head.inject), config.backbone.name.startswith("vit"))


def _kinds() -> list[Path]:
    """One file of each kind: where there is a choice, not the slow MobileFaceNet, and one with micro-batches."""

    def preference(path: Path) -> tuple[bool, bool]:
        return _config(path).backbone.name != "mobilefacenet", _config(path).micro_batches > 1

    return list({_kind(_config(path)): path for path in sorted(FILES, key=preference)}.values())


def _reduced(config: Config, root: Path) -> Config:
    """The recipe on a dozen classes with the smallest backbone of its family, injecting from the first step on."""
    small = {"vit": "vit_t", "mob": "mobilefacenet"}.get(config.backbone.name[:3], "tiny")
    head = config.head
    if head.inject.is_on:
        head = dataclasses.replace(head, inject=dataclasses.replace(head.inject, start_epoch=0.0))
    return dataclasses.replace(
        config, batch_size=4, micro_batches=min(config.micro_batches, 2), head=head,
        data=dataclasses.replace(config.data, root=str(root), reader="fallback", threads=1),
        backbone=dataclasses.replace(config.backbone, name=small, embedding_size=16),
        evaluation=EvaluationSettings(every_epochs=0),
    )


def _steps(path: Path, small_set: Path, count: int) -> Iterator[tuple[float, bool, float]]:
    """Loss, whether the step was taken, and how far the backbone moved."""
    run = assemble(_reduced(_config(path), small_set), Ranks())
    for number, batch in enumerate(run.loader.batches(0, count)):
        before = [parameter.detach().clone() for parameter in run.backbone.parameters()]
        figures = train_step(run, batch, max(float(run.rates[number]), 1e-3))
        moved = max(
            (after - old).abs().max().item() for after, old in zip(run.backbone.parameters(), before, strict=True)
        )
        yield figures.loss.item(), not figures.bad.item(), moved


@pytest.mark.parametrize("path", _kinds(), **IDS)
def test_a_step_of_each_kind_of_recipe(path, small_set):
    count = 2 if _config(path).head.inject.is_on else 1  # the second one reads what the first one remembered
    for loss, taken, moved in _steps(path, small_set, count):
        assert taken
        assert 0 < loss < 100
        assert moved > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, **IDS)
def test_a_step_of_every_recipe(path, small_set):
    for loss, taken, moved in _steps(path, small_set, 1):
        assert taken
        assert 0 < loss < 100
        assert moved > 0


def test_the_sets_are_those_of_the_published_facts():
    """Identities and images of the sets, as their papers and the source's configs state them."""
    sizes = {name: (data.identities, data.images) for name, data in SETS.items()}
    assert sizes["ms1mv2"] == (85_742, 5_822_653)
    assert sizes["ms1mv3"] == (93_431, 5_179_510)
    assert sizes["glint360k"] == (360_232, 17_091_657)
    assert sizes["webface4m"] == (205_990, 4_235_242)
    assert sizes["webface12m"] == (617_970, 12_720_066)
    assert sizes["webface42m"] == (2_059_906, 42_474_557)


def test_published_recipes_augment_by_mirror_images_alone():
    assert {_config(path).data.augmentation for path in PUBLISHED} == {Augmentation()}
    assert all(value == 0.5 if name == "flip" else value in (0, 0.0) for name, value in vars(Augmentation()).items()
               if isinstance(value, float))
