"""The trainer of benchmarks: one process on a device, one pass, nothing written or shown; and what is kept of it."""

import logging
import warnings
from typing import Any

from lightning.pytorch import Callback, Trainer


def silence() -> None:
    """Let libraries say nothing but errors."""
    warnings.filterwarnings("ignore")
    for library in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)


def quiet_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    """A Trainer on a CPU, unless the options say otherwise.

    Args:
        *callbacks: What watches it.
        **options: Further options of the Trainer, which go before these.
    """
    fixed: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=list(callbacks), **(fixed | options))


class History(Callback):
    """Keeps what each iteration logged: put it behind callbacks that log."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """An iteration has ended."""
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def of(self, name: str) -> list[float]:
        """A metric after each iteration."""
        return [row[name] for row in self.rows]
