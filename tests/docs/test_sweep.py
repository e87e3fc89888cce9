"""The W&B sweep of the page: its command as W&B's agent makes it, for two trials."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import warm
from tests.docs.pages import ROOT, blocks_of
from tests.docs.test_blocks import workplace, world

pytestmark = pytest.mark.docs
__all__ = ["workplace", "world"]  # fixtures


def test_trials_run_beside_each_other(workplace: Path) -> None:
    (block,) = [each for each in blocks_of("howto/sweeps.md") if each.title == "sweep.yaml"]
    sweep = yaml.safe_load(block.text)
    (shell,) = [word for word in sweep["command"] if "$WANDB_RUN_ID" in word]
    # The agent is W&B's, which isn't installed here; nor is its logger.
    words = [
        word if word != shell else shell.replace("WandbLogger", "false")
        for word in sweep["command"]
    ]
    assert "WandbLogger" in shell
    places = [f"{warm.commands()}", os.environ["PATH"]]
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(":")]
    env = {**os.environ, "PATH": ":".join(places), "PYTHONPATH": ":".join(paths)}
    for trial, lr in (("one", 1e-5), ("two", 1e-3)):
        given = [f"--{name}={lr if name.endswith('lr') else 0.2}" for name in sweep["parameters"]]
        at = words.index("${args}")
        command = [*words[:at], *given, *words[at + 1 :]]
        subprocess.run(command, env={**env, "WANDB_RUN_ID": trial}, check=True, timeout=120)
        config = yaml.safe_load((workplace / "runs" / "wandb" / trial / "config.yaml").read_text())
        model = config["model"]["init_args"]
        assert model["optimizer"]["init_args"]["lr"] == lr
        assert model["loss"]["init_args"]["beta"] == 0.2
        measured = (workplace / "runs" / "wandb" / trial / "metrics.jsonl").read_text()
        assert f'"{sweep["metric"]["name"]}"' in measured
