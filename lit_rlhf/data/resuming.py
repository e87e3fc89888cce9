"""The position in the data that checkpoints keep, and the checks before going on from one."""

from typing import Any

from lightning.pytorch import Trainer

from lit_rlhf.errors import CheckpointError

STATE_VERSION = 1


def check_state(state: dict[str, Any], *, dataset_hash: str, order: str, source: str) -> None:
    """Refuse a position that means something else in this run.

    Args:
        state: What `BranchedDataModule.state_dict` gave.
        dataset_hash: Of this run's training rows.
        order: What decides this run's order of them.
        source: What messages call this run's data.

    Raises:
        CheckpointError: The version, the data or, within an epoch, the order differ.
    """
    if state.get("version") != STATE_VERSION:
        raise CheckpointError(
            f"The checkpoint holds a data position of version {state.get('version')}, this release reads version "
            f"{STATE_VERSION}. Resume with the release that wrote it."
        )
    if state["dataset_hash"] != dataset_hash:
        raise CheckpointError(
            f"The checkpoint was made with the data set {state['dataset_hash'][:16]}, this run has {dataset_hash[:16]} "
            f"({source}). Resume with the same rows, format, tokenizer, limits and split. To train on other data from "
            "these weights, start a new run from them instead of resuming."
        )
    if state["batches_done"] > 0 and state["order"] != order:
        raise CheckpointError(
            f"The checkpoint lies within an epoch with the order ({state['order']}), this run has ({order}). Set these "
            "options as they were; the rows per step are batch_size times the number of processes."
        )


def batches_in_flight(trainer: Trainer | None) -> int:
    """How many batches were handed out whose training step has not ended: 1 within a step, else 0.

    A checkpoint of an interruption is written inside a step, and Lightning repeats that step's batch.
    """
    if trainer is None or not trainer.training:
        return 0
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return int(max(progress.ready - progress.processed, 0))
