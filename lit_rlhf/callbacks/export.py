"""The model in the format of other tools, when training is over."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn

from lit_rlhf.callbacks.checkpoint_io import refuse_non_finite
from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.files import refuse_foreign
from lit_rlhf.internals.lightning import is_dry_run, iterations_done
from lit_rlhf.models.cards import RECORD
from lit_rlhf.modules.base import RLHFModule


@runtime_checkable
class Exports(Protocol):
    """A module that writes itself for other tools."""

    def export(self, path: Path, merge: bool = True) -> None:
        """Write the model to a directory, whole or not at all: `lit_rlhf.files.whole_directory`."""
        ...


class ExportModel(Callback):
    """Writes the trained model as a `transformers` model or a peft adapter when training is over.

    It is written beside its place and then moved over, so that a kill or a full disk never leaves half an export. The
    last checkpoint is written before: a run that is killed or runs out of disk while exporting is started again with
    `--ckpt_path last`, finds itself done, and exports. An interrupted run exports nothing; `lit-rlhf export` makes one
    from any checkpoint.

    Args:
        dirpath: Directory of the export. One from an earlier run is replaced. Default: `export` in the trainer's
            `default_root_dir` (on the command line, `--run_dir`).
        merge: Merge LoRA into the weights; otherwise the adapter alone is written.

    Raises:
        ConfigurationError: The module can't be exported, or its weights are sharded over processes.
        CheckpointError: `dirpath` holds something that is no export, or the disk is full.
    """

    def __init__(self, dirpath: str | None = None, merge: bool = True) -> None:
        self.dirpath = dirpath
        self.merge = merge

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what would fail, or destroy something, at the end."""
        if stage != "fit":
            return
        if isinstance(pl_module, RLHFModule):
            pl_module.check_export()
        if not isinstance(pl_module, Exports):
            raise ConfigurationError(
                f"ExportModel: {type(pl_module).__name__} has no export method. Remove the callback."
            )
        if isinstance(trainer.strategy, ModelParallelStrategy | FSDPStrategy | DeepSpeedStrategy):
            raise ConfigurationError(
                f"ExportModel writes from one process, and {type(trainer.strategy).__name__} shards weights over all. "
                "Remove the callback and run `lit-rlhf export` on a checkpoint afterwards."
            )
        refuse_foreign(self.directory(trainer), RECORD, "The export", CheckpointError)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export; a module of this library writes on rank 0, and has the others wait."""
        if is_dry_run(trainer):
            return
        if iterations_done(trainer) == 0:
            rank_zero_warn(
                "ExportModel: nothing is exported, for no iteration was done. Are max_epochs, max_steps or "
                "limit_train_batches 0?"
            )
            return
        refuse_non_finite(trainer, pl_module)
        if not (trainer.is_global_zero or isinstance(pl_module, RLHFModule)):
            return
        assert isinstance(pl_module, Exports)
        pl_module.export(self.directory(trainer), merge=self.merge)

    def directory(self, trainer: Trainer) -> Path:
        """Where the export is."""
        return Path(self.dirpath or Path(trainer.default_root_dir) / "export")
