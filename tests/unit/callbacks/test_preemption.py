import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_rlhf.callbacks import IterationCheckpoint, Preemption
from lit_rlhf.callbacks.preemption import EXIT_CODE
from lit_rlhf.errors import ConfigurationError
from tests.unit.callbacks.standins import Data, Module, quiet_trainer


class Terminated(Module):
    """Gets a signal in the rollout of an iteration."""

    at: int | None = None
    signum = signal.SIGTERM

    def during_rollout(self) -> None:
        if self.iteration == self.at:
            os.kill(os.getpid(), self.signum)


class Validations(Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        self.count += 1


def fit(
    tmp: Path, at: int | None = None, ckpt_path: str | None = None, **options: Any
) -> tuple[Terminated, Trainer]:
    module = Terminated(options.pop("manual", True))
    module.at = at
    module.signum = options.pop("signum", signal.SIGTERM)
    callbacks = [
        Preemption(),
        IterationCheckpoint(str(tmp / "checkpoints"), every_n_iterations=100),
    ]
    trainer = quiet_trainer(tmp, callbacks + options.pop("callbacks", []), **options)
    if at is None:
        trainer.fit(module, datamodule=Data(), ckpt_path=ckpt_path)
    else:
        word = "SIGTERM" if module.signum == signal.SIGTERM else "SLURM's signal"
        said = rf"{word}: saved .*\.ckpt and ending with exit code {EXIT_CODE}"
        with pytest.warns(UserWarning, match=said), pytest.raises(SystemExit) as ended:
            trainer.fit(module, datamodule=Data())
        assert ended.value.code == EXIT_CODE == 143
    return module, trainer


def saved(tmp: Path) -> list[str]:
    return [path.name for path in (tmp / "checkpoints").iterdir()]


def test_the_iteration_is_finished_and_saved(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    whole, _ = fit(tmp_path / "whole")
    first, _ = fit(tmp_path, at=4)
    assert saved(tmp_path) == ["iteration-00000005.ckpt"]
    assert first.iteration == 5
    second, _ = fit(tmp_path, ckpt_path="last")
    assert first.seen + second.seen == whole.seen
    assert all((a == b).all() for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_validation_is_added_and_a_due_one_comes_first(tmp_path: Path) -> None:
    validations = Validations()
    fit(tmp_path / "not due", at=3, callbacks=[validations], limit_val_batches=1)
    assert validations.count == 0
    fit(tmp_path / "due", at=5, callbacks=[validations], limit_val_batches=1)
    assert validations.count == 1
    assert saved(tmp_path / "due") == ["iteration-00000006.ckpt"]


def test_accumulated_gradients_are_applied_first(tmp_path: Path) -> None:
    fit(tmp_path, at=1, manual=False, accumulate_grad_batches=4)
    assert saved(tmp_path) == ["iteration-00000004.ckpt"]


def test_it_needs_a_checkpoint_callback(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, [Preemption()], enable_checkpointing=False)
    with pytest.raises(ConfigurationError, match=r"add one to trainer\.callbacks"):
        trainer.fit(Module(), datamodule=Data())


def test_lightnings_own_checkpoints_will_do(tmp_path: Path) -> None:
    module = Terminated(False)
    step = module.training_step

    def terminated(batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch, batch_idx)

    module.training_step = terminated  # type: ignore[method-assign]
    callbacks = [Preemption(), ModelCheckpoint(dirpath=tmp_path / "kept")]
    trainer = quiet_trainer(tmp_path, callbacks)
    with (
        pytest.warns(UserWarning, match=r"SIGTERM: saved .*last\.ckpt"),
        pytest.raises(SystemExit) as ended,
    ):
        trainer.fit(module, datamodule=Data())
    assert ended.value.code == EXIT_CODE
    kept = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=False)
    assert kept["global_step"] == 2


# -- on SLURM ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's environment for one task, and a scontrol that writes down what it is asked: this is the file."""
    asked = tmp_path / "asked"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for name, value in {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    return asked


def test_slurm_starts_the_job_again_and_it_goes_on(requeued: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    whole, _ = fit(tmp_path / "whole")
    assert not requeued.exists()
    first, _ = fit(tmp_path, at=4, signum=signal.SIGUSR1)
    assert requeued.read_text() == "requeue 4711\n"
    assert saved(tmp_path) == ["iteration-00000005.ckpt"]
    assert not list(tmp_path.rglob("hpc_ckpt*")), "Lightning's own, within the iteration"
    second, _ = fit(tmp_path, ckpt_path="last")
    assert first.seen + second.seen == whole.seen
    assert all((a == b).all() for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    assert signal.getsignal(signal.SIGUSR1) == before


def test_tasks_of_arrays_and_refusals(
    requeued: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    fit(tmp_path / "array", at=1, signum=signal.SIGUSR1)
    assert requeued.read_text() == "requeue 12_3\n"
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho Access denied >&2; exit 1\n")
    with pytest.warns(UserWarning, match=r"\(Access denied\).*by hand: scontrol requeue 12_3"):
        fit(tmp_path / "refused", at=1, signum=signal.SIGUSR1)
    assert saved(tmp_path / "refused") == ["iteration-00000002.ckpt"]


def test_sigterm_on_slurm_requeues_nothing(requeued: Path, tmp_path: Path) -> None:
    fit(tmp_path, at=1)
    assert not requeued.exists(), "SLURM does so itself, where it is to"


def test_lightnings_own_requeueing_is_warned_of(requeued: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, [IterationCheckpoint(str(tmp_path / "checkpoints"))])
    with pytest.warns(UserWarning, match=r"no policy can go on\. Add Preemption"):
        trainer.fit(Module(), datamodule=Data())
