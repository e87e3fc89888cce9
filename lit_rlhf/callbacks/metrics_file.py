"""The metrics of a run as JSON lines: whole after a kill, without repetitions after a resume."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lit_rlhf.callbacks.records import RecordingCallback, json_line
from lit_rlhf.internals.lightning import current_metrics, iterations_done


class MetricsFile(RecordingCallback):
    """Writes what is logged to `metrics.jsonl`, one line per iteration, per epoch and per validation.

    Loggers get an iteration's metrics after its checkpoint is written, and most of them buffer: a kill loses lines, and
    those of iterations that are done again come twice. This file has each line once, in order, on disk before the
    checkpoint. Each line has `iteration` (iterations done), `epoch` and `stage` (`train`, `epoch` or `validation`).

    Put it behind callbacks that log (`PhaseTimer`) in `trainer.callbacks`.

    Args:
        dirpath: Directory of the file; fixed, if runs are to be resumed. Default: the trainer's `default_root_dir`.
        every_n_iterations: Write the line of every n-th iteration only.
        filename: Name of the file.
        echo: Write each line to standard output too, for who collects logs (`lit-rlhf fit --log_json`).
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_iterations: int = 1,
        filename: str = "metrics.jsonl",
        echo: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        self.every_n_iterations = every_n_iterations
        self.echo = echo

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the iteration's line."""
        if iterations_done(trainer) % self.every_n_iterations == 0:
            self._write(trainer, "train")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's line, where something is logged per epoch."""
        self._write(trainer, "epoch")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation's line."""
        if not trainer.sanity_checking:
            self._write(trainer, "validation")

    def write(self, trainer: Trainer, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, and echo them, on rank 0."""
        lines = list(rows)
        super().write(trainer, lines)
        if self.echo and self.lines is not None and trainer.is_global_zero:
            sys.stdout.writelines(map(json_line, lines))
            sys.stdout.flush()

    def _write(self, trainer: Trainer, stage: str) -> None:
        metrics = current_metrics(trainer)  # on all ranks: it may reduce
        if metrics:
            where = {"iteration": iterations_done(trainer), "epoch": trainer.current_epoch}
            self.write(trainer, [{**where, "stage": stage, **metrics}])
