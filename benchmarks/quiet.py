"""The trainer of benchmarks: one process on a device, one pass, and nothing written or shown."""

from typing import Any

from lightning.pytorch import Callback, Trainer


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
