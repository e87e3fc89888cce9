"""`python -m lit_rlhf.launch.ray` on a local Ray cluster: `LIT_RLHF_RAY_PYTHON=/path/to/python pytest -m ray`."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from lit_rlhf.testing.tiny import write_tiny_world
from tests.docs.pages import ROOT
from tests.invariants.resume_plans import difference

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
PYTHON = os.environ.get("LIT_RLHF_RAY_PYTHON", "")
TINY = [
    *("-c", "configs/overlays/tiny.yaml", "--trainer.accelerator", "cpu"),
    *("--trainer.max_epochs", "3", "--data.batch_size", "8", "--data.cache_dir", "cache"),
]
RUNS = {
    "ddp": ["-c", "configs/reward/lora.yaml", *TINY, "-c", "configs/overlays/ddp.yaml"],
    "fsdp2": [
        *("-c", "configs/policy/grpo_lora.yaml", *TINY, "--model.reward", "LengthReward"),
        *("-c", "configs/overlays/fsdp2.yaml"),
    ],
}
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
    where.mkdir()
    write_tiny_world(where / "data")
    (where / "configs").symlink_to(ROOT / "configs")
    (where / "dies.py").write_text(DIES)
    return where


def run(where: Path, *words: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": f"{where}:{ROOT}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    done = subprocess.run(
        [PYTHON, "-m", *words],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout + done.stderr


def state(where: Path) -> dict[str, object]:
    """The newest checkpoint's weights, optimizer and iterations."""
    newest = max(where.glob("runs/*/*/checkpoints/iteration-*.ckpt"))
    found = torch.load(newest, weights_only=True)
    return {"name": newest.name, **{key: found[key] for key in ("state_dict", "optimizer_states")}}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_workers_of_which_one_is_killed_are_two_processes(strategy: str, tmp_path: Path) -> None:
    if not PYTHON:
        pytest.skip("LIT_RLHF_RAY_PYTHON names no interpreter that has Ray")
    words = ["fit", *RUNS[strategy]]
    plain, killed = (tmp_path / name for name in ("plain", "killed"))
    run(prepared(plain), "lit_rlhf", *words, "--trainer.devices", "2")
    said = run(
        prepared(killed),
        *("lit_rlhf.launch.ray", *words, "--trainer.callbacks+=dies.Dies", "--workers", "2"),
    )
    assert (killed / "died").exists()
    assert "Going on after iteration 3" in said
    assert difference(state(killed), state(plain)) is None
