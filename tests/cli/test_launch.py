"""What `python -m lit_rlhf.launch.ray` refuses before it starts Ray; `test_ray.py` starts it."""

import importlib.util
import subprocess
import sys

import pytest

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.launch import launch
from lit_rlhf.launch.ray import main


@pytest.mark.parametrize(
    ("words", "workers", "message"),
    [
        (["demo"], 2, "'demo' can't be run on a Ray cluster; fit, validate, test, predict can"),
        ([], 2, "'' can't be run"),
        (["fit"], 0, "--workers 0 must be 1 or more"),
        (["fit", "--trainer.devices", "2"], 2, r"leave out --trainer\.devices"),
        (["fit", "--trainer.num_nodes=2"], 2, "and say --workers"),
    ],
)
def test_what_cannot_be_launched(words: list[str], workers: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        launch(words, workers)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")
def test_a_missing_ray_is_named_with_its_extra(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "-c", "configs/reward/lora.yaml", "--workers", "2"])
    assert ended.value.code == 2
    assert (
        "needs ray, which isn't installed: pip install 'lit-rlhf[ray]'" in capsys.readouterr().err
    )


def test_it_starts_without_a_warning() -> None:
    command = [sys.executable, "-m", "lit_rlhf.launch.ray", "--help"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert "--workers" in done.stdout
    assert not done.stderr
