"""The order of rows, how far in it training has come and what checkpoints keep of that; loaders that deal them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader, DistributedSampler

from lit_rlhf.data.mixture import Shares
from lit_rlhf.distributed import num_ranks, rank
from lit_rlhf.errors import CheckpointError, ConfigurationError
from lit_rlhf.internals.lightning import batches_peeked, is_last_batch, is_within_iteration
from lit_rlhf.seeding import generator

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


def is_epoch_over(trainer: Trainer | None) -> bool:
    """Whether the last batch of the trainer's epoch is done, which `limit_train_batches` may end before the data do."""
    if trainer is None or not trainer.training:
        return False
    return is_last_batch(trainer) and not is_within_iteration(trainer)


class LengthBucketSampler(DistributedSampler[int]):
    """Shuffles rows, brings rows of like length together, and deals global batches to processes.

    An epoch's rows are permuted and cut into buckets of `bucket_batches` global batches; each bucket is sorted by
    length and cut into global batches; these are shuffled. Of each global batch (`batch_size * num_replicas` rows)
    rank r takes every `num_replicas`-th row from r on: all ranks have equally many batches, and their b-th batches
    together are the b-th batch of one process with the global batch size.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows per batch and process.
        num_replicas: Processes.
        rank: Which of them this is.
        seed: Other seeds, other orders.
        bucket_batches: Global batches per bucket. More: less padding, less random batches. 1: no sorting by length.
        drop_last: Leave out the rows that fill no global batch, other ones in each epoch. False: deal them as a last,
            smaller batch, if there is one for each process.
        position: Shared with whoever restores it.
        shares: Which of the rows an epoch has, of a mixture. None: all of them.

    Raises:
        ConfigurationError: There are too few rows for one batch.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        bucket_batches: int = 50,
        drop_last: bool = True,
        position: Position | None = None,
        shares: Shares | None = None,
    ) -> None:
        # DistributedSampler's own __init__ would set an epoch of its own beside the position's.
        self.lengths = np.asarray(lengths)
        self.batch_size, self.num_replicas, self.rank = batch_size, num_replicas, rank
        self.seed, self.bucket_batches, self.drop_last = seed, bucket_batches, drop_last
        self.position = position if position is not None else Position()
        self.global_batch_size = batch_size * num_replicas
        self.shares = shares
        self.epoch_rows = len(self.lengths) if shares is None else sum(shares.counts)
        self.full_batches, rest = divmod(self.epoch_rows, self.global_batch_size)
        self.left_over = 0 if drop_last or rest < num_replicas else rest
        if self.num_batches == 0:
            raise ConfigurationError(
                f"{self.epoch_rows} rows don't fill one batch: batch_size {batch_size} on {num_replicas} process(es) "
                f"takes {self.global_batch_size}. Lower batch_size, set drop_last: false, or give more rows."
            )

    @property
    def num_batches(self) -> int:
        """Batches per epoch and process."""
        return self.full_batches + (self.left_over > 0)

    def __len__(self) -> int:
        """Rows per epoch of this process, those before a restored position included."""
        mine_left_over = len(range(self.rank, self.left_over, self.num_replicas))
        return self.full_batches * self.batch_size + mine_left_over

    def __iter__(self) -> Iterator[int]:
        """This process's rows of the current epoch, from the position on."""
        rows = self.order(self.position.epoch)
        return map(int, rows[self.position.begin() * self.batch_size :])

    def order(self, epoch: int) -> np.ndarray:
        """This process's rows of an epoch. Of a row of the epoch 8 bytes are held, 16 while the order is made."""
        rng = generator(self.seed, "order", epoch)
        permutation = torch.randperm(self.epoch_rows, generator=rng).numpy()
        if self.shares is not None:
            permutation = self.shares.rows(self.seed, epoch)[permutation]
        used = self.full_batches * self.global_batch_size
        rows, rest = permutation[:used], permutation[used : used + self.left_over]
        span = self.bucket_batches * self.global_batch_size
        if self.bucket_batches > 1:
            for start in range(0, used, span):
                bucket = rows[start : start + span]
                # Stable: ties stay in the order of the permutation, on every platform.
                bucket[:] = bucket[np.argsort(-self.lengths[bucket], kind="stable")]
        batches = rows.reshape(self.full_batches, self.global_batch_size)
        shuffled = torch.randperm(self.full_batches, generator=rng).numpy()
        mine = batches[shuffled, self.rank :: self.num_replicas].ravel()
        mine_left_over = rest[self.rank :: self.num_replicas]
        return np.concatenate([mine, mine_left_over]) if len(mine_left_over) else mine

    def set_epoch(self, epoch: int) -> None:
        """Called by trainers at the start of an epoch."""
        self.position.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Where the pass stands; the same on each process."""
        return {"epoch": self.position.epoch, "batches_done": self.position.batches_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.position.restore(int(state["epoch"]), int(state["batches_done"]))


class EvaluationSampler(DistributedSampler[int]):
    """All rows once, in one order for ever; rank r takes every `num_replicas`-th from r on.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows per batch and process.
        num_replicas: Processes.
        rank: Which of them this is.
        by_length: Rows of like length make a batch, and the batches are shuffled, so that the first of them are a fair
            sample. False: in the order of the rows.

    Raises:
        ConfigurationError: There are fewer rows than processes.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        by_length: bool = False,
    ) -> None:
        if len(lengths) < num_replicas:
            raise ConfigurationError(
                f"{len(lengths)} row(s) can't be evaluated by {num_replicas} processes. Give more rows (where they "
                "are held out, a larger val_fraction), or use fewer processes."
            )
        self.lengths, self.batch_size, self.by_length = lengths, batch_size, by_length
        self.num_replicas, self.rank = num_replicas, rank

    def __iter__(self) -> Iterator[int]:
        """This process's rows."""
        rows = np.arange(len(self.lengths))
        if self.by_length:
            rows = np.argsort(-self.lengths, kind="stable")
            full, rest = divmod(len(rows), self.batch_size * self.num_replicas)
            batches, last = np.split(rows, [len(rows) - rest])
            order = torch.randperm(full, generator=generator("evaluation")).numpy()
            rows = np.concatenate(
                [batches.reshape(full, len(batches) // max(full, 1))[order].ravel(), last]
            )
        return map(int, rows[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        return len(range(self.rank, len(self.lengths), self.num_replicas))

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the order never changes."""


def even_batch_size(num_rows: int, batch_size: int, num_replicas: int) -> int:
    """The batch size nearest to the one asked for with which all processes have equally many evaluation batches.

    No row is repeated and none left out, so metrics are exact; with unequal counts the process with more batches
    would wait for the others for ever where a forward pass talks to them (FSDP2).

    Example:
        >>> even_batch_size(
        ...     9, batch_size=4, num_replicas=2
        ... )  # with 4, ranks of 5 and 4 rows have 2 and 1 batches
        3
    """
    sizes = chain(range(batch_size, 0, -1), range(batch_size + 1, num_rows + 1))
    rests = ((size, num_rows % (size * num_replicas)) for size in sizes)
    fitting = (size for size, rest in rests if rest == 0 or rest >= num_replicas)
    return next(fitting, batch_size)  # of fewer rows than processes none is, which the sampler says


def replicas(trainer: Trainer | None) -> tuple[int, int]:
    """Among how many processes batches are divided, and which of them this is."""
    if trainer is None:  # a loop of one's own, as Fabric's, which leaves our samplers as they are
        return num_ranks(), rank()
    options = trainer.distributed_sampler_kwargs
    return (1, 0) if options is None else (int(options["num_replicas"]), int(options["rank"]))


def overfits(trainer: Trainer | None) -> bool:
    """Whether Lightning wants sequential loaders, and spreads them over processes itself."""
    return getattr(trainer, "overfit_batches", 0) > 0


def loader_options(trainer: Trainer | None, num_workers: int, seed: int) -> dict[str, Any]:
    """What all loaders are made with, beside their rows and the collator.

    Args:
        trainer: Of the run, if there is one.
        num_workers: Processes that load batches.
        seed: Of the order.
    """
    if num_workers > 0:
        # Workers only pad; without this, tokenizers warn at each fork that their threads are gone.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cuda = torch.cuda.is_available()
    if trainer is not None:
        cuda = isinstance(trainer.accelerator, CUDAAccelerator)
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": cuda,
        # At each pass a loader draws a seed for its workers: from a generator of its own, not from the global one.
        "generator": generator(seed, "loader"),
    }
