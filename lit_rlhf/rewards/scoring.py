"""Scores of rows of tokens by a reward model's head."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.models import Backbone, evaluating, in_step
from lit_rlhf.models.branched import pack
from lit_rlhf.rewards.retokenize import TokenRows


@torch.no_grad()
def score_rows(
    backbone: Backbone, rows: TokenRows, role: str, batch_tokens: int, path: str
) -> Tensor:
    """Score the completions of prompts, all samples of a prompt in one row, rows of similar length together.

    Args:
        backbone: Of the reward model.
        rows: B prompts, and their N = B * K completions.
        role: The reward model's adapter and head.
        batch_tokens: Most tokens at a time, padding included; a single prompt with its samples may exceed it.
        path: The reward model's name in errors.

    Returns:
        (B, K) float32.

    Raises:
        ConfigurationError: A prompt with its completion is longer than the model's context.
        DataError: A completion without tokens.
    """
    prompt_lengths, lengths = _check_lengths(rows, backbone, path)
    count, samples = lengths.shape
    scores = torch.empty(count, samples, device=rows.tokens.device)
    totals = prompt_lengths + lengths.sum(-1)
    with evaluating(backbone):
        for part in in_step(backbone, list(_batches(totals, batch_tokens))):
            width, longest = int(prompt_lengths[part].max()), int(lengths[part].max())
            prompts = rows.prompt_ids[part, :width], rows.prompt_mask[part, :width]
            tokens, taken = (
                x.view(count, samples, -1)[part, :, :longest].flatten(0, 1)
                for x in (rows.tokens, rows.mask)
            )
            batch = pack(*prompts, tokens, taken, backbone.pad_token_id)
            found = backbone(batch, num_branches=samples, role=role, scores=role).scores
            scores[part] = found.view(len(part), samples).float()
    return scores


def context_length(backbone: Backbone) -> int | None:
    """Most tokens that the model reads; None where its config doesn't say."""
    found: int | None = getattr(
        backbone.model.config.get_text_config(), "max_position_embeddings", None
    )
    return found


def _check_lengths(rows: TokenRows, backbone: Backbone, path: str) -> tuple[Tensor, Tensor]:
    """(B,) and (B, K) tokens, which must not be none nor too many."""
    prompts, completions = rows.prompt_mask.sum(-1), rows.mask.sum(-1)
    if bool((completions == 0).any()):
        raise DataError(
            f"Completion {int(completions.argmin())} of the batch has no tokens, so there is nothing to score."
        )
    completions = completions.view(len(prompts), -1)
    longest = int((prompts[:, None] + completions).max())
    context = context_length(backbone)
    if context is not None and longest > context:
        raise ConfigurationError(
            f"A prompt with its completion has {longest} tokens; the reward model {path!r} reads {context}. Shorten "
            "prompts (max_prompt_length of the data) or sampling.max_new_tokens."
        )
    return prompts, completions


def _batches(totals: Tensor, budget: int) -> Iterator[Tensor]:
    """Indices of prompts of similar length, the longest of a batch times their number within the budget."""
    order = totals.argsort(descending=True, stable=True)
    lengths = totals[order].tolist()
    start = 0
    while start < len(lengths):
        size = max(budget // lengths[start], 1)
        yield order[start : start + size]
        start += size
