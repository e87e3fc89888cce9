"""From the rollouts of all processes to minibatches, from those to what fits into memory, and its forwards."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rlhf.distributed import num_ranks, stack_over_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, in_step
from lit_rlhf.models.branched import pack
from lit_rlhf.types import BranchedBatch, BranchOutput, PromptBatch, Rollout, Stage, asked


def rollout_batch(rollout: Rollout, pad_token_id: int) -> BranchedBatch:
    """Lay a rollout out as branched rows, each prompt with all of its samples."""
    prompts, completions = rollout.prompts, rollout.completions
    rows = prompts.ids, prompts.mask, completions.tokens, completions.mask
    return pack(*rows, pad_token_id, rollout.lengths)


def gather_rollout(rollout: Stage) -> Stage:
    """The rollouts of all processes, ordered so that prompt i of process r is row i * processes + r.

    Rollouts are small (a few numbers per token); with all of them on each process, whitening and minibatches are those
    of one process with the same global batch, and need no further collectives.
    """
    if num_ranks() == 1:
        return rollout
    count, samples = rollout.num_prompts, rollout.num_samples
    shape = torch.tensor([rollout.prompts.ids.shape[1], rollout.response_mask.shape[1]])
    width, length = stack_over_ranks(shape.to(rollout.response_mask.device)).amax(0).tolist()

    def gather(rows: Tensor) -> Tensor:  # (B, ...) to (B * processes, ...)
        ranks = stack_over_ranks(rows.to(torch.uint8) if rows.dtype == torch.bool else rows)
        return ranks.transpose(0, 1).flatten(0, 1).to(rows.dtype)

    def gather_samples(tensor: Tensor) -> Tensor:
        wide = pad(tensor, (0, length - tensor.shape[1])) if tensor.dim() == 2 else tensor
        return gather(wide.view(count, samples, *wide.shape[1:])).flatten(0, 1)

    return rollout.map(
        lambda tensor: gather(pad(tensor, (0, width - tensor.shape[1]))), gather_samples
    )


def join_rollouts(rollouts: Sequence[Stage]) -> Stage:
    """One rollout of prompts that were sampled from the same batch in several parts."""
    length = max(rollout.response_mask.shape[1] for rollout in rollouts)

    def join(*parts: Tensor) -> Tensor:
        wide = [pad(t, (0, length - t.shape[1])) if t.dim() == 2 else t for t in parts]
        return torch.cat(wide)

    return rollouts[0].map(lambda *parts: torch.cat(parts), join, *rollouts[1:])


def select_prompts(batch: PromptBatch, rows: slice) -> PromptBatch:
    """Some rows of a batch of prompts, with their columns."""
    part = PromptBatch(
        input_ids=batch["input_ids"][rows],
        branch_ids=batch["branch_ids"][rows],
        position_ids=batch["position_ids"][rows],
        index=batch["index"][rows],
        columns={name: values[rows] for name, values in batch.get("columns", {}).items()},
    )
    if "given" in batch:
        part["given"] = batch["given"][rows]
    return part


def minibatch_indices(
    num_prompts: int, num_minibatches: int, order: torch.Generator, ranks: int
) -> list[Tensor]:
    """A random partition of the prompts of all processes; each part divides evenly over processes.

    Raises:
        ConfigurationError: The prompts do not divide.
    """
    if num_prompts < num_minibatches or (ranks > 1 and num_prompts % (num_minibatches * ranks)):
        raise ConfigurationError(
            f"{num_prompts} prompts an iteration (all {ranks} processes together) can't be divided into "
            f"updates.minibatches={num_minibatches} for each process. Choose data.init_args.batch_size "
            "a multiple of updates.minibatches."
        )
    return list(torch.randperm(num_prompts, generator=order).tensor_split(num_minibatches))


def microbatch_indices(
    lengths: Tensor, share: Tensor, budget: int, at_least: int = 1
) -> list[Tensor]:
    """Divide a process's share of a minibatch by length, so that each part's padded size stays within a token budget.

    Args:
        lengths: (B,) tokens of all rows, on the CPU, for they decide how much is computed.
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


def microbatches(minibatch: Stage, budget: int, rank: int, ranks: int) -> list[Stage]:
    """This process's share of a minibatch of all, in parts within a token budget; as many on each process."""
    lengths = minibatch.lengths.sum(-1)
    everything = torch.arange(minibatch.num_prompts)
    shares = [everything[each::ranks] for each in range(ranks)]
    most = max(len(microbatch_indices(lengths, share, budget)) for share in shares)
    mine = microbatch_indices(lengths, shares[rank], budget, at_least=most)
    return [minibatch.select(rows) for rows in mine]


def repeat_columns(columns: Mapping[str, list[Any]], num_samples: int) -> dict[str, list[Any]]:
    """Each entry of each column once per sample."""
    return {
        name: [value for value in values for _ in range(num_samples)]
        for name, values in columns.items()
    }


def rollout_forward(
    model: Backbone, role: str | None, temperature: float, rollout: Rollout, **more: Any
) -> BranchOutput:
    """Log-probs of a rollout's responses, and what else is asked for.

    Args:
        model: Computes them.
        role: Whose adapter is on.
        temperature: Of the sampling.
        rollout: Its completions are the branches.
        more: As for `Backbone.forward`.
    """
    batch, count = rollout_batch(rollout, model.pad_token_id), rollout.num_samples
    out: BranchOutput = model(
        batch, num_branches=count, role=role, logprobs=True, temperature=temperature, **more
    )
    return out


def rollout_logprobs(
    model: Backbone, role: str | None, temperature: float, rollout: Rollout, budget: int
) -> Tensor:
    """(N, T): log-probs of a rollout's tokens without gradient; `budget` as for `by_parts`."""
    forward = partial(rollout_forward, model, role, temperature)
    return by_parts(rollout, model, budget, lambda part: asked(forward(part).logprobs))


@torch.no_grad()
def by_parts(
    rollout: Rollout, weights: torch.nn.Module, budget: int, compute: Callable[[Rollout], Tensor]
) -> Tensor:
    """(N, T), computed of parts of similar length within a budget of tokens, without gradient; 0 where masked.

    Args:
        rollout: This process's; others may have other numbers of parts.
        weights: Through which the parts pass.
        budget: Padded tokens of one part.
        compute: From a part to (n, t).
    """
    device, shape = rollout.response_mask.device, rollout.response_mask.shape
    samples = torch.arange(rollout.num_samples, device=device)
    result = torch.zeros(shape, device=device)
    lengths = rollout.lengths.sum(-1)
    shares = microbatch_indices(lengths, torch.arange(rollout.num_prompts), budget)
    for share in in_step(weights, shares):
        chosen = share.to(device, non_blocking=True)
        found = compute(rollout.select(share))
        # Never less than float32, whatever autocast gives; float64 stays.
        result = result.to(torch.promote_types(found.dtype, result.dtype))
        rows = (chosen[:, None] * rollout.num_samples + samples).flatten()
        result[rows, : found.shape[1]] = found.to(result.dtype)
    return result
