"""What callbacks watch, held to what a module logs, before a run has spent much on it."""

import warnings
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lit_rlhf.errors import ConfigurationError, near
from lit_rlhf.internals.lightning import callbacks_of, logged_in_training

_POSITION = ("epoch", "step")  # which ModelCheckpoint adds itself
_HIGHER = (
    *("accuracy", "rewards/accuracies", "reward"),
    *("objective/scores", "objective/rlhf_reward"),
)
_KNOWN = ("lightning", "lit_rlhf")


class MonitorCheck(Callback):
    """Compares what `EarlyStopping` and `ModelCheckpoint` watch with what is logged; modules bring it along.

    Lightning asks for a metric where it first needs it: after an epoch whose work is lost, or never, and then nothing
    is saved. Here the sanity check's validation says before training which metrics validation has, the first batch
    which ones training has. Where callbacks or modules from elsewhere may log more, it warns only.

    Raises:
        ConfigurationError: A metric that is watched is never logged; those that are, are named.
    """

    def __init__(self) -> None:
        self._validated: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what another module logged that this Trainer had before."""
        self._validated = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where what is in eval mode is frozen (a reference, a reward), keep Lightning from wondering at it."""
        resting = [part for part in pl_module.modules() if not part.training]
        weights = (weight for part in resting for weight in part.parameters(recurse=False))
        if not any(weight.requires_grad for weight in weights):
            said = r"Found \d+ module\(s\) in eval mode at the start of training"
            warnings.filterwarnings("ignore", message=said)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what validation logs."""
        self._validated = set(trainer.callback_metrics)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge what validation would log."""
        self._first = True
        validates = sum(trainer.num_val_batches) > 0
        logged = self._validated | getattr(pl_module, "of_no_row", set())
        for callback, name in watched(trainer):
            warn_of_mode(callback, name)
            if not name.startswith("val"):
                continue
            if not validates:
                tell(
                    f"{_watching(callback, name)}, and nothing is validated: give the data a `val` or `val_fraction` "
                    "(and leave trainer.limit_val_batches above 0), or watch a metric of training.",
                    trainer,
                )
            elif self._validated or (is_all_known(trainer) and not name.startswith("val/")):
                refuse_unknown(callback, name, logged, trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the others after the first batch."""
        if not self._first:
            return
        self._first = False
        logged = self._validated | logged_in_training(trainer)
        logged |= getattr(pl_module, "of_no_row", set())
        for callback, name in watched(trainer):
            if not name.startswith("val"):
                refuse_unknown(callback, name, logged, trainer)


def watched(trainer: Trainer) -> Iterator[tuple[Callback, str]]:
    """Callbacks that can't do without a metric, and its name."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, EarlyStopping) and callback.strict:
            yield callback, callback.monitor
        if isinstance(callback, ModelCheckpoint) and callback.monitor not in (None, *_POSITION):
            yield callback, str(callback.monitor)


def refuse_unknown(callback: Callback, name: str, logged: set[str], trainer: Trainer) -> None:
    """Refuse a metric that isn't logged; subsets of one that is may come later."""
    if name in logged or any(name.startswith(f"{known}/") for known in logged):
        return
    stage = sorted(known for known in logged if known[:3] == name[:3]) or sorted(logged)
    there = ", ".join(stage) or "val/loss and others, all of which begin with val/"
    meant = near(name, logged, most=1, cutoff=0.3, form=repr)
    tell(
        f"{_watching(callback, name)}, which is not logged.{meant} There are: {there}.",
        trainer,
    )


def warn_of_mode(callback: Any, name: str) -> None:
    """Warn of the best being taken for the worst: Lightning's `mode` is "min" where it isn't set."""
    metric = name.removeprefix("train/").removeprefix("val/")
    best = "max" if metric in _HIGHER else "min" if metric.endswith("loss") else callback.mode
    if callback.mode != best:
        rank_zero_warn(
            f"{_watching(callback, name)} with mode={callback.mode!r}, which takes its worst value for the best one. "
            f"Set mode={best!r}."
        )


def is_all_known(trainer: Trainer) -> bool:
    """Whether all that may log is Lightning's or this library's."""
    parts = [trainer.lightning_module, *callbacks_of(trainer)]
    return all(type(part).__module__.partition(".")[0] in _KNOWN for part in parts)


def tell(said: str, trainer: Trainer) -> None:
    """Refuse, or warn where something from elsewhere may log more."""
    if is_all_known(trainer):
        raise ConfigurationError(said)
    rank_zero_warn(f"{said} Unless a part of your own logs it later, the run will fail there.")


def _watching(callback: Callback, name: str) -> str:
    return f"{type(callback).__name__} of trainer.callbacks watches monitor={name!r}"
