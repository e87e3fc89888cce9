import errno
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_rlhf.callbacks import ExportModel, IterationCheckpoint
from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.files import whole_directory
from lit_rlhf.models.cards import RECORD
from tests.unit.callbacks.standins import Data, Module, quiet_trainer


class Exporting(Module):
    fails = False

    def export(self, path: Path, merge: bool = True) -> None:
        with whole_directory(path, RECORD, "The export", kind=CheckpointError) as directory:
            (directory / RECORD).write_text(f"merge={merge} iteration={self.iteration}")
            if self.fails:
                raise OSError(errno.ENOSPC, "No space left on device")


def fit(tmp: Path, fails: bool = False, ckpt_path: str | None = None, **options: Any) -> Path:
    target = tmp / "export"
    module = Exporting()
    module.fails = fails
    callbacks = [
        ExportModel(str(target), merge=False),
        IterationCheckpoint(str(tmp / "checkpoints")),
    ]
    quiet_trainer(tmp, callbacks, **options).fit(module, datamodule=Data(), ckpt_path=ckpt_path)
    return target


def content(tmp: Path) -> list[str]:
    return sorted(path.name for path in tmp.iterdir())


def test_export_is_written_when_training_is_over(tmp_path: Path) -> None:
    target = fit(tmp_path)
    assert (target / RECORD).read_text() == "merge=False iteration=12"
    assert content(tmp_path) == ["checkpoints", "export"]


def test_a_former_export_is_replaced_and_other_directories_are_not(tmp_path: Path) -> None:
    target = tmp_path / "export"
    target.mkdir()
    (target / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="exists and is no earlier one"):
        fit(tmp_path)
    (target / RECORD).touch()
    fit(tmp_path)
    assert content(target) == [RECORD]


def test_a_failed_export_loses_nothing_and_is_made_up_for(tmp_path: Path) -> None:
    target = tmp_path / "export"
    target.mkdir()
    (target / RECORD).write_text("former")
    with pytest.raises(
        CheckpointError, match=rf"The export {target} can't be written: No space left .*untouched"
    ):
        fit(tmp_path, fails=True)
    assert (target / RECORD).read_text() == "former"
    assert content(tmp_path) == ["checkpoints", "export"]
    fit(tmp_path, ckpt_path="last")
    assert (target / RECORD).read_text() == "merge=False iteration=12"


def test_a_dry_run_exports_nothing(tmp_path: Path) -> None:
    assert not fit(tmp_path, fast_dev_run=1).exists()


@pytest.mark.parametrize("options", [{"max_epochs": 0}, {"limit_train_batches": 0}])
def test_what_was_not_trained_is_not_exported(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="nothing is exported, for no iteration was done"):
        fit(tmp_path, **options)
    assert "export" not in content(tmp_path)


def test_modules_and_strategies_that_cannot_export_are_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, [ExportModel(str(tmp_path / "export"))])
    with pytest.raises(ConfigurationError, match="Module has no export method"):
        trainer.fit(Module(), datamodule=Data())
    trainer._accelerator_connector.strategy = ModelParallelStrategy()
    with pytest.raises(ConfigurationError, match="ModelParallelStrategy shards weights"):
        ExportModel("x").setup(trainer, Exporting(), "fit")


def test_weights_that_are_no_numbers_are_not_exported(tmp_path: Path) -> None:
    module = Exporting()
    module.net[0].weight.data.fill_(float("inf"))
    trainer = quiet_trainer(tmp_path, [ExportModel()], enable_checkpointing=False, max_epochs=1)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        trainer.fit(module, datamodule=Data())
    assert not (tmp_path / "export").exists()
