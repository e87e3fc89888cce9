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
    """Gets SIGTERM in the rollout of an iteration."""

    at: int | None = None

    def during_rollout(self) -> None:
        if self.iteration == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


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
    callbacks = [
        Preemption(),
        IterationCheckpoint(str(tmp / "checkpoints"), every_n_iterations=100),
    ]
    trainer = quiet_trainer(tmp, callbacks + options.pop("callbacks", []), **options)
    if at is None:
        trainer.fit(module, datamodule=Data(), ckpt_path=ckpt_path)
    else:
        said = rf"SIGTERM: saved .*\.ckpt and ending with exit code {EXIT_CODE}"
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
