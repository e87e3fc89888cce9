"""Loaders of tokenized rows: which batches, in what order, on which process; under a Trainer and without one."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from lit_rlhf.data.collate import BranchedCollator
from lit_rlhf.data.mixture import Shares
from lit_rlhf.data.rows import TokenizedRows
from lit_rlhf.data.samplers import (
    EvaluationSampler,
    LengthBucketSampler,
    Position,
    ResumableLoader,
    even_batch_size,
)
from lit_rlhf.seeding import generator


def replicas(trainer: Trainer | None) -> tuple[int, int]:
    """Among how many processes batches are divided, and which of them this is."""
    options = None if trainer is None else trainer.distributed_sampler_kwargs
    return (1, 0) if options is None else (int(options["num_replicas"]), int(options["rank"]))


def overfits(trainer: Trainer | None) -> bool:
    """Whether Lightning wants sequential loaders, and spreads them over processes itself."""
    return getattr(trainer, "overfit_batches", 0) > 0


@dataclass(frozen=True)
class Loaders:
    """Makes loaders of rows.

    Attributes:
        trainer: Of the run, if there is one.
        collator: Makes batches.
        num_workers: Processes that load them.
        seed: Of the order.
    """

    trainer: Trainer | None
    collator: BranchedCollator
    num_workers: int
    seed: int

    def training(
        self,
        rows: TokenizedRows,
        batch_size: int,
        *,
        bucket_batches: int,
        drop_last: bool,
        position: Position,
        shares: Shares | None,
    ) -> DataLoader[Any]:
        """Shuffled batches from a position.

        Args:
            rows: To train on.
            batch_size: Of one process.
            bucket_batches: Among how many batches rows are sorted by length.
            drop_last: Leave out the rows that fill no batch.
            position: To begin at.
            shares: Of a mixture, as `LengthBucketSampler` takes them.
        """
        if overfits(self.trainer):
            return DataLoader(rows, batch_size=batch_size, **self._options())
        count, rank = replicas(self.trainer)
        sampler = LengthBucketSampler(
            rows.lengths,
            batch_size,
            num_replicas=count,
            rank=rank,
            seed=self.seed,
            bucket_batches=bucket_batches,
            drop_last=drop_last,
            position=position,
            shares=shares,
        )
        return ResumableLoader(rows, batch_size=batch_size, sampler=sampler, **self._options())

    def evaluation(
        self, rows: TokenizedRows, batch_size: int, *, by_length: bool
    ) -> DataLoader[Any]:
        """All rows once, those of similar length together or in order."""
        count, rank = replicas(self.trainer)
        size = even_batch_size(len(rows), batch_size, count)
        if overfits(self.trainer):
            return DataLoader(rows, batch_size=size, **self._options())
        sampler = EvaluationSampler(
            rows.lengths, size, num_replicas=count, rank=rank, by_length=by_length
        )
        return DataLoader(rows, batch_size=size, sampler=sampler, **self._options())

    def _options(self) -> dict[str, Any]:
        if self.num_workers > 0:
            # Workers only pad; without this, tokenizers warn at each fork that their threads are gone.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        cuda = torch.cuda.is_available()
        if self.trainer is not None:
            cuda = isinstance(self.trainer.accelerator, CUDAAccelerator)
        return {
            "collate_fn": self.collator,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": cuda,
            # At each pass a loader draws a seed for its workers: from a generator of its own, not from the global one.
            "generator": generator(self.seed, "loader"),
        }
