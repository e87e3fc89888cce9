"""From prompts to rollouts and from rollouts to minibatches: the steps that need no module state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.branches import pack_branches
from lit_rlhf.types import BranchedBatch, PromptBatch, Rollout

Gather = Callable[[Tensor], Tensor]
"""(ranks, ...) from (...): collects a tensor from all ranks."""


def rollout_batch(rollout: Rollout, pad_token_id: int) -> BranchedBatch:
    """Lay a rollout out as branched rows, each prompt with all of its samples."""
    packed = pack_branches(
        rollout.prompt_ids,
        rollout.prompt_mask,
        rollout.tokens,
        rollout.response_mask,
        pad_token_id=pad_token_id,
    )
    return BranchedBatch(
        input_ids=packed.input_ids, branch_ids=packed.branch_ids, position_ids=packed.position_ids
    )


def row_lengths(rollout: Rollout) -> Tensor:
    """(B,) tokens of each prompt and all of its samples."""
    responses = rollout.response_mask.sum(-1).view(rollout.num_prompts, -1).sum(-1)
    return rollout.prompt_mask.sum(-1) + responses


def gather_rollout(rollout: Rollout, gather: Gather) -> Rollout:
    """The rollouts of all ranks, ordered so that prompt i of rank r is row i * ranks + r.

    Rollouts are small (a few numbers per token); with all of them on each rank, whitening and minibatches are those of
    one process with the same global batch, and need no further collectives.
    """
    shape = torch.tensor(
        [rollout.prompt_ids.shape[1], rollout.tokens.shape[1]], device=rollout.tokens.device
    )
    width, length = gather(shape).amax(0).tolist()
    gathered: dict[str, Tensor] = {}
    for item in fields(rollout):
        value = getattr(rollout, item.name)
        if value is None:
            continue
        per_prompt = (
            value
            if item.name.startswith("prompt")
            else value.view(rollout.num_prompts, -1, *value.shape[1:])
        )
        if value.dim() == 2:
            per_prompt = pad(
                per_prompt,
                (0, (width if item.name.startswith("prompt") else length) - value.shape[-1]),
            )
        ranks = gather(per_prompt.to(torch.uint8) if value.dtype == torch.bool else per_prompt)
        merged = ranks.transpose(0, 1).flatten(
            0, 1
        )  # prompts of one index next to each other, ranks innermost
        merged = merged if item.name.startswith("prompt") else merged.flatten(0, 1)
        gathered[item.name] = merged.to(value.dtype)
    return replace(rollout, **gathered)


def join_rollouts(rollouts: Sequence[Rollout]) -> Rollout:
    """One rollout of prompts that were sampled from the same batch in several parts; fields are those of the first."""
    length = max(rollout.tokens.shape[1] for rollout in rollouts)
    joined: dict[str, Tensor] = {}
    for item in fields(Rollout):
        values = [getattr(rollout, item.name) for rollout in rollouts]
        if values[0] is not None:
            padded = values[0].dim() == 2 and not item.name.startswith("prompt")
            joined[item.name] = torch.cat(
                [pad(v, (0, length - v.shape[1])) if padded else v for v in values]
            )
    return replace(rollouts[0], **joined)


def select_prompts(batch: PromptBatch, rows: slice) -> PromptBatch:
    """Some rows of a batch of prompts, with their columns."""
    return PromptBatch(
        input_ids=batch["input_ids"][rows],
        branch_ids=batch["branch_ids"][rows],
        position_ids=batch["position_ids"][rows],
        index=batch["index"][rows],
        columns={name: values[rows] for name, values in batch.get("columns", {}).items()},
    )


def minibatch_indices(
    num_prompts: int, num_minibatches: int, order: torch.Generator, ranks: int
) -> list[Tensor]:
    """A random partition of the prompts of all ranks; each part divides evenly over ranks.

    Raises:
        ConfigurationError: The prompts do not divide.
    """
    if num_prompts < num_minibatches or (ranks > 1 and num_prompts % (num_minibatches * ranks)):
        raise ConfigurationError(
            f"{num_prompts} prompts an iteration (all {ranks} processes together) can't be divided into "
            f"num_minibatches={num_minibatches} for each process. Choose data.init_args.batch_size "
            "a multiple of num_minibatches."
        )
    return list(torch.randperm(num_prompts, generator=order).tensor_split(num_minibatches))


def microbatch_indices(
    lengths: Tensor, share: Tensor, budget: int, at_least: int = 1
) -> list[Tensor]:
    """Divide a process's share of a minibatch by length, so that each part's padded size stays within a token budget.

    Args:
        lengths: (B,) tokens of all rows.
        share: (m,) indices of the rows to divide.
        budget: Padded tokens of one part; a single row may exceed it.
        at_least: The least number of parts: sharded strategies need the same number on every process.
    """
    ordered = share[lengths[share].argsort(descending=True, stable=True)]
    count = min(max(at_least, 1), len(ordered))
    while count < len(ordered):
        parts = ordered.tensor_split(count)
        if all(len(part) * int(lengths[part[0]]) <= budget for part in parts):
            break
        count += 1
    return list(ordered.tensor_split(count))


def repeat_columns(columns: Mapping[str, list[Any]], num_samples: int) -> dict[str, list[Any]]:
    """Each entry of each column once per sample."""
    return {
        name: [value for value in values for _ in range(num_samples)]
        for name, values in columns.items()
    }
