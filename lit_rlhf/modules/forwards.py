"""Forwards of rollouts: of a microbatch with gradient, or of a whole one in parts without."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.models import Backbone, gathered
from lit_rlhf.modules.minibatches import microbatch_indices, rollout_batch
from lit_rlhf.types import BranchOutput, Rollout, asked


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
        weights: Whose sharded weights are gathered once for all parts.
        budget: Padded tokens of one part.
        compute: From a part to (n, t).
    """
    device, shape = rollout.response_mask.device, rollout.response_mask.shape
    samples = torch.arange(rollout.num_samples, device=device)
    result = torch.zeros(shape, device=device)
    lengths = rollout.lengths.sum(-1)
    with gathered(weights):
        for share in microbatch_indices(lengths, torch.arange(rollout.num_prompts), budget):
            chosen = share.to(device, non_blocking=True)
            found = compute(rollout.select(share))
            # Never less than float32, whatever autocast gives; float64 stays.
            result = result.to(torch.promote_types(found.dtype, result.dtype))
            rows = (chosen[:, None] * rollout.num_samples + samples).flatten()
            result[rows, : found.shape[1]] = found.to(result.dtype)
    return result
