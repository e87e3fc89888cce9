"""The package as users get it: a wheel, built from the sdist, installed and used in an empty directory."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the package and its script, and nothing of the checkout."""
    sdist = pytest.importorskip("hatchling.builders.sdist")
    wheel = pytest.importorskip("hatchling.builders.wheel")
    work = tmp_path_factory.mktemp("wheel")
    (archive,) = sdist.SdistBuilder(str(ROOT)).build(directory=str(work), versions=["standard"])
    with tarfile.open(archive) as file:
        file.extractall(work / "source", filter="data")
    (source,) = (work / "source").iterdir()
    (built,) = wheel.WheelBuilder(str(source)).build(directory=str(work), versions=["standard"])
    place = work / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(place), built], check=True)
    return place


def test_in_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    script = str(installed / "bin" / "lit-rlhf")
    where = run("-c", "import lit_rlhf; print(lit_rlhf.__file__)").strip()
    assert Path(where).is_relative_to(installed)
    assert "train:" in run(script, "--help")
    assert "class_path: PPOPolicyModule" in run(script, "init", "ppo")
    assert "units of reward per nat" in run(script, "help", "metrics", "train/kl_coef")
    run("-m", "lit_rlhf.testing.tiny", "data")
    said = run(script, "fit", "-c", "reward/lora", "-c", "overlays/tiny")
    assert "Done after 2 iterations" in said
    assert (tmp_path / "runs/reward/lora/export/config.json").is_file()
