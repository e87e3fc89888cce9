"""What the policy writes, for people to read."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lit_rlhf.callbacks.records import RecordingCallback
from lit_rlhf.callbacks.tables import log_table
from lit_rlhf.distributed import gather_objects
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.lightning import iterations_done
from lit_rlhf.options import check_option
from lit_rlhf.types import Sample

_COLUMNS = ("prompt", "response", "score", "finished")


class SampleTable(RecordingCallback):
    """Keeps prompts, responses and scores of rollouts and validations.

    All of them go to `samples.jsonl`: one line per sample with `iteration` (iterations done when it was drawn), `stage`
    (`train` or `validation`), `prompt`, `response`, `score` where something scores, and `finished`. The first few also
    go as a table to TensorBoard, Weights & Biases and MLflow, where such a logger is in use. With several processes the
    samples of all of them are gathered.

    Args:
        every_n_iterations: Show the training samples of every n-th iteration; validation is always shown.
        num_rows: Rows of a logger's table; the file has all.
        dirpath: Directory of the file; fixed, if runs are to be resumed. Default: the trainer's `default_root_dir`.
        filename: Name of the file.

    Raises:
        ConfigurationError: The module draws no samples.
    """

    def __init__(
        self,
        every_n_iterations: int = 1,
        num_rows: int = 8,
        dirpath: str | None = None,
        filename: str = "samples.jsonl",
    ) -> None:
        super().__init__(dirpath, filename)
        every = every_n_iterations
        check_option(every >= 1, self, "every_n_iterations", every, "at least 1")
        self.every_n_iterations = every_n_iterations
        self.num_rows = num_rows
        self._validation: list[Sample] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse modules that draw no samples."""
        super().setup(trainer, pl_module, stage)
        if not getattr(pl_module, "draws_samples", False):
            raise ConfigurationError(
                f"SampleTable shows what a policy samples, and {type(pl_module).__name__} samples nothing. Remove it "
                "from trainer.callbacks."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the iteration's rollout."""
        if iterations_done(trainer) % self.every_n_iterations == 0:
            self._keep(trainer, outputs["samples"], "train")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect this batch's samples."""
        if not trainer.sanity_checking:
            self._validation += outputs["samples"]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the samples of the whole validation."""
        samples, self._validation = self._validation, []
        if not trainer.sanity_checking:
            self._keep(trainer, samples, "validation")

    def _keep(self, trainer: Trainer, samples: Sequence[Sample], stage: str) -> None:
        gathered = [sample for part in gather_objects(list(samples)) for sample in part]
        if not gathered or not trainer.is_global_zero:
            return
        self.write(trainer, [{"stage": stage, **sample} for sample in gathered])
        columns = [column for column in _COLUMNS if any(column in sample for sample in gathered)]
        rows = [[sample.get(column) for column in columns] for sample in gathered[: self.num_rows]]
        for logger in trainer.loggers:
            step = iterations_done(trainer) - 1  # as loggers count
            log_table(logger, f"{stage}/samples", columns, rows, step)
