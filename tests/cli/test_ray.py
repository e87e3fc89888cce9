"""The script of docs/howto/ray.md on a local Ray cluster: `LIT_RLHF_RAY_PYTHON=/path/to/python pytest -m ray`."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from lit_rlhf.testing.tiny import write_tiny_world
from tests.docs.pages import ROOT, blocks_of
from tests.invariants.resume_plans import difference

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
PYTHON = os.environ.get("LIT_RLHF_RAY_PYTHON", "")
FIT = [
    *("fit", "-c", "configs/reward/lora.yaml", "-c", "configs/overlays/tiny.yaml"),
    *("--trainer.accelerator", "cpu", "--trainer.max_epochs", "3"),
    *("--data.batch_size", "8", "--data.cache_dir", "cache"),
]
DIES = """
import os
import signal
from pathlib import Path

from lightning.pytorch import Callback

from lit_rlhf.callbacks import IterationCheckpoint


class Dies(Callback):
    \"\"\"One worker of two, once, in the second epoch.\"\"\"

    def setup(self, trainer, pl_module, stage):
        for callback in trainer.callbacks:
            if isinstance(callback, IterationCheckpoint):
                callback.every_n_iterations = 1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        died = Path("died")
        if trainer.current_epoch == 1 and batch_idx == 1 and trainer.global_rank == 1:
            if not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
"""


def prepared(where: Path) -> Path:
    write_tiny_world(where / "data")
    (where / "configs").symlink_to(ROOT / "configs")
    (where / "dies.py").write_text(DIES)
    (script,) = (each for each in blocks_of("howto/ray.md") if each.title)
    (where / str(script.title)).write_text(script.text)
    return where


def run(where: Path, *words: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": f"{where}:{ROOT}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    done = subprocess.run(
        [PYTHON, *words], cwd=where, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout + done.stderr


def state(where: Path) -> dict[str, object]:
    """The newest checkpoint's weights, optimizer and iterations."""
    newest = max((where / "runs/reward/lora/checkpoints").glob("iteration-*.ckpt"))
    found = torch.load(newest, weights_only=True)
    return {"name": newest.name, **{key: found[key] for key in ("state_dict", "optimizer_states")}}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Of two processes under DDP, without Ray."""
    if not PYTHON:
        pytest.skip("LIT_RLHF_RAY_PYTHON names no interpreter that has Ray")
    where = prepared(tmp_path_factory.mktemp("ddp"))
    run(where, "-m", "lit_rlhf", *FIT, "-c", "configs/overlays/ddp.yaml", "--trainer.devices", "2")
    return state(where)


def test_two_workers_are_two_processes(expected: dict[str, object], tmp_path: Path) -> None:
    run(prepared(tmp_path), "ray_fit.py", "2", *FIT)
    assert difference(state(tmp_path), expected) is None


def test_a_worker_that_is_killed_changes_nothing(
    expected: dict[str, object], tmp_path: Path
) -> None:
    said = run(prepared(tmp_path), "ray_fit.py", "2", *FIT, "--trainer.callbacks+=dies.Dies")
    assert (tmp_path / "died").exists()
    assert "Going on after iteration" in said
    assert difference(state(tmp_path), expected) is None
