"""The layers of docs/architecture.md: a file imports nothing of a layer above its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# First match counts; a folder stands for all of its files.
LAYERS = [
    (0, ["recognition/errors.py", "recognition/cpus.py", "recognition/machine.py", "recognition/phases.py",
         "recognition/progress.py"]),
    (1, ["recognition/distributed.py", "recognition/schedule.py", "recognition/streams.py", "recognition/vectors.py",
         "recognition/heads/margins",
         "recognition/data/recordio.py", "eval/metrics", "eval/safe_pickle.py"]),
    (2, ["recognition/heads", "recognition/backbones", "recognition/data", "recognition/optimizer.py",
         "recognition/memory.py", "recognition/momentum.py", "recognition/batch_statistics.py",
         "recognition/micro_batches.py", "recognition/guard.py", "recognition/replicas.py",
         "recognition/bad_steps.py", "recognition/stopping.py",
         "recognition/folding.py", "recognition/graphs.py", "recognition/speed.py"]),
    (3, ["recognition/config.py", "recognition/limits.py", "recognition/setting_text.py"]),
    (5, ["recognition/train.py", "recognition/profiling.py", "recognition/assembly.py", "recognition/watch.py",
         "recognition/doctor", "recognition/state.py", "recognition/agent.py",
         "recognition/cause.py", "recognition/launch.py", "recognition/compare.py", "recognition/finish.py", "tools",
         "configs", "benchmarks"]),
    (4, ["recognition", "eval"]),
]


def _layer(path: str) -> int:
    return next(layer for layer, places in LAYERS if any(path == p or path.startswith(p + "/") for p in places))


def _imports(path: Path) -> set[str]:
    """Project files that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            place = name.replace(".", "/")
            if (ROOT / f"{place}.py").is_file():
                found.add(f"{place}.py")
            elif (ROOT / place / "__init__.py").is_file() and name == names[0]:
                found.add(f"{place}/__init__.py")
    return found - {"recognition/__init__.py", "eval/__init__.py", "tools/__init__.py", "recognition/data/__init__.py",
                    "recognition/heads/__init__.py"}


FOLDERS = ("recognition", "eval", "tools")
FILES = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_lower_never_imports_upper(file):
    above = {other for other in _imports(ROOT / file) if _layer(other) > _layer(file)}
    assert not above


def test_the_lowest_layers_stand_alone():
    for file in FILES:
        if _layer(file) <= 1:
            packages = ("recognition/heads/margins/", "eval/metrics/")
            beside = {other for other in FILES for package in packages if file.startswith(package) and package in other}
            allowed = {other for other in FILES if _layer(other) == 0} | beside
            assert _imports(ROOT / file) <= allowed, file


def test_only_one_file_calls_collectives():
    for file in FILES:
        if file != "recognition/distributed.py":
            text = (ROOT / file).read_text()
            assert "torch.distributed as dist" not in text or file == "recognition/agent.py"  # for its errors
            assert "dist.all_" not in text
