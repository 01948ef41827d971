"""The cluster files of docs/operations.md: as far as they can be checked without a cluster."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "operations.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_every_script_parses():
    blocks = _blocks("bash")
    assert any("#SBATCH" in block for block in blocks)
    for block in blocks:
        checked = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_slurm_script_has_no_complaints():
    (script,) = (block for block in _blocks("bash") if "#SBATCH" in block)
    checked = subprocess.run(["shellcheck", "-e", "SC2016", "-"], input=script, text=True, capture_output=True,
                             check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_pytorchjob_is_yaml_of_the_expected_shape():
    yaml = pytest.importorskip("yaml")
    (block,) = _blocks("yaml")
    job = yaml.safe_load(block)
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    roles = job["spec"]["pytorchReplicaSpecs"]
    assert roles["Worker"]["template"] == roles["Master"]["template"]
    (container,) = roles["Worker"]["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"  # the operator looks for this name
    script = container["args"][0]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
