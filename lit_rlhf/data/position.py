"""Where a run stands in its data: what checkpoints keep, the loader that counts, checks before going on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lit_rlhf.errors import CheckpointError
from lit_rlhf.internals.lightning import batches_peeked

STATE_VERSION = 1
T = TypeVar("T")


@dataclass
class Position:
    """How far a run through the data has come.

    Args:
        epoch: Which permutation is used.
        batches_done: Batches of the epoch that were handed out, the same on each process.
        start: The batch that the next pass begins at, once: set when a position is restored.
        restored: Whether a DataModule restored it; a loader's own state then doesn't count.
    """

    epoch: int = 0
    batches_done: int = 0
    start: int = 0
    restored: bool = False

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; going to the one that is under way changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.batches_done, self.start = epoch, 0, 0

    def restore(self, epoch: int, batches_done: int) -> None:
        """Go to a batch of an epoch."""
        self.epoch, self.batches_done, self.start = epoch, batches_done, batches_done

    def begin(self) -> int:
        """The batch that a pass begins at; the pass after it begins at 0."""
        start, self.start = self.start, 0
        return start


class ResumableLoader(DataLoader[T]):
    """A `DataLoader` over a `LengthBucketSampler` that counts batches as they are handed out, not as they are fetched.

    Each pass over it is one epoch; the next pass has the next epoch's order, unless a trainer sets the epoch. A pass
    that is broken off starts over.
    """

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        """Go through the rest of the epoch.

        A generator: workers are started and the sampler is asked for rows at the first `next`, not at `iter`. Lightning
        calls `iter` before it sets the epoch of a resumed run, and workers would fetch batches of another permutation
        (its issue 21938).
        """
        position = self._position
        if position is None:  # Lightning has put another sampler here, as `overfit_batches` does
            yield from super().__iter__()
            return
        epoch, position.batches_done = position.epoch, position.start
        for batch in super().__iter__():
            position.batches_done += 1
            yield batch
        if position.epoch == epoch:
            position.set_epoch(epoch + 1)

    def state_dict(self) -> dict[str, int]:
        """Where the pass stands. Lightning keeps this in checkpoints, and warns of loaders without it."""
        position = self._position
        if position is None:
            return {}
        return {"epoch": position.epoch, "batches_done": position.batches_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; where a DataModule has restored the position, it has the last word."""
        position = self._position
        if state and position is not None and not position.restored:
            position.restore(int(state["epoch"]), int(state["batches_done"]))

    @property
    def _position(self) -> Position | None:
        found = getattr(self.sampler, "position", None)
        return found if isinstance(found, Position) else None


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
    """How many batches were handed out whose training step has not ended: 1 within a step, and 1 that was looked at.

    A checkpoint of an interruption is written inside a step, and Lightning repeats that step's batch.
    """
    if trainer is None:
        return 0
    peeked = batches_peeked(trainer)
    if not trainer.training:
        return peeked
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return peeked + int(max(progress.ready - progress.processed, 0))
