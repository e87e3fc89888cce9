"""An end of training by number of steps or iterations, from which a run can be resumed exactly."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.internals.lightning import is_accumulating, iterations_done
from lit_rlhf.options import check_option, is_whole


class StopAfter(Callback):
    """Ends training after so many optimizer steps or iterations, wherever in an epoch that is.

    It takes the place of the trainer's `max_steps`, from whose end no run goes on with the rows in the same order
    (Lightning issue 19617). A last validation follows and `IterationCheckpoint` saves; with a larger number and
    `--ckpt_path last` the run goes on as if it had never ended. `trainer.max_epochs` ends it as before; -1 leaves the
    end to this callback.

    Args:
        steps: Optimizer steps. A policy finishes the iteration in which it reaches them.
        iterations: Training batches; of policies rollouts with their updates. Gradients that accumulate are applied
            first. Exactly one of the two is given.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(self, steps: int | None = None, iterations: int | None = None) -> None:
        if (steps is None) == (iterations is None):
            raise ConfigurationError(
                f"StopAfter(steps={steps}, iterations={iterations}): give exactly one of them."
            )
        for name, value in (("steps", steps), ("iterations", iterations)):
            check_option(value is None or is_whole(value, 1), self, name, value, "1 or more")
        self.steps = steps
        self.iterations = iterations

    def _stop_if_due(self, trainer: Trainer) -> None:
        done = trainer.global_step if self.iterations is None else iterations_done(trainer)
        if done >= (self.steps or self.iterations or 0) and not is_accumulating(trainer):
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that has come so far before has nothing left to do."""
        self._stop_if_due(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look whether this was the last one."""
        self._stop_if_due(trainer)
