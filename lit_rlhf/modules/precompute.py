"""The reference's log-probs of a whole data set, computed once, before the first step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_rlhf.distributed import stack_over_ranks, sum_over_ranks
from lit_rlhf.models import Backbone, shard
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.types import BranchedBatch


class LogprobStore(Protocol):
    """Where the log-probs of a split are kept; a DataModule gives one for each from `logprob_stores(reference)`."""

    num_rows: int
    num_branches: int  # the largest K of its rows

    def load(self) -> bool:
        """Give rows their log-probs, if they were saved once."""
        ...

    def save(self, logprobs: Tensor) -> None:
        """Keep log-probs (rows, K), and give them to the rows."""
        ...

    def batches(self, rank: int, world_size: int) -> Iterator[BranchedBatch]:
        """All rows, shared among processes in equal numbers of batches."""
        ...


def precompute_reference(
    module: RLHFModule,
    fingerprint: str,
    logprobs_of: Callable[[BranchedBatch], Tensor],
    dtype: DTypeName | None,
) -> None:
    """Fill the stores of the Trainer's DataModule; all processes compute a share, and each node writes once.

    Other loaders have no stores: their batches bring the log-probs, or the first step says that they are missing.

    Args:
        module: Which trains.
        fingerprint: Of the reference.
        logprobs_of: The branches' log-probs under it, (B, K).
        dtype: Of a copy of the initial policy; default: the policy's.
    """
    trainer = module.trainer
    offered = getattr(getattr(trainer, "datamodule", None), "logprob_stores", None)
    if offered is None:
        return
    stores: list[LogprobStore] = offered(fingerprint)
    lacking = [float(not store.load()) for store in stores]
    absent = sum_over_ranks(torch.tensor(lacking, device=module.device)).tolist()
    missing = [store for store, ranks in zip(stores, absent, strict=True) if ranks]
    if not missing:
        return
    with _initial_policy(module, dtype):
        for store in missing:
            logprobs = _compute(module, store, logprobs_of)
            if trainer.local_rank == 0:
                store.save(logprobs)
            trainer.strategy.barrier("precompute_reference")
            store.load()


def _compute(
    module: RLHFModule, store: LogprobStore, logprobs_of: Callable[[BranchedBatch], Tensor]
) -> Tensor:
    world_size, rank = module.trainer.world_size, module.global_rank
    found, rows = [], []
    for batch in store.batches(rank, world_size):
        moved: Any = module.transfer_batch_to_device(batch, module.device, 0)
        logprobs = logprobs_of(moved)
        found.append(torch.nn.functional.pad(logprobs, (0, store.num_branches - logprobs.shape[1])))
        rows.append(moved["index"])
    values, index = torch.cat(found), torch.cat(rows)
    values, index = (stack_over_ranks(part).flatten(0, 1) for part in (values, index))
    result = values.new_zeros(store.num_rows, store.num_branches)
    result[index] = values
    return result.cpu()


@contextmanager
def _initial_policy(module: RLHFModule, dtype: DTypeName | None) -> Iterator[None]:
    """In full fine-tuning, a fresh copy of the initial policy for the time of a `with`; a resumed policy is none."""
    if module.backbone.has_lora:
        yield
        return
    spec = replace(module.spec, dtype=dtype or module.spec.dtype)
    module.reference.model = Backbone.load(spec, trainable=False).eval().to(module.device)
    if module.device_mesh is not None:
        shard(module.reference.model, module.device_mesh["data_parallel"])
    try:
        yield
    finally:
        del module.reference.model
