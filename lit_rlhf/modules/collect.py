"""Collecting: from prompts to what an engine is asked for, and from what it generated to texts and scores."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rlhf.errors import ConfigurationError, DataError, ServiceError
from lit_rlhf.rewards import Reward
from lit_rlhf.rewards.base import scores_of
from lit_rlhf.types import (
    Completions,
    Generation,
    PromptBatch,
    Prompts,
    Scores,
)

_RESUME = " The run goes on from its last checkpoint with --ckpt_path last."


def read_completions(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    generation: Generation,
    batch: PromptBatch,
) -> Completions:
    """Tokens and texts as rewards see them, with what the batch says of its prompts."""
    num_samples = len(generation.tokens) // len(prompts.ids)

    def each(values: list[Any]) -> list[Any]:  # of each prompt, for each of its samples
        return [value for value in values for _ in range(num_samples)]

    texts = [str(tokenizer.decode(ids[mask])) for ids, mask in on_host(prompts.ids, prompts.mask)]
    plain = partial(tokenizer.decode, skip_special_tokens=True)
    tokens, taken = generation.tokens.cpu(), generation.mask.cpu()
    if bool((taken[:, 1:] > taken[:, :-1]).any()):
        raise ConfigurationError(
            "The engine gave completions with padding before or between their tokens (Generation.mask): a row must be "
            "a completion's tokens, then padding."
        )
    return Completions(
        prompt_ids=prompts.ids,
        prompt_mask=prompts.mask,
        tokens=generation.tokens,
        response_mask=generation.mask,
        finished=generation.finished,
        prompts=each(texts),
        responses=[str(plain(ids[mask])) for ids, mask in zip(tokens, taken, strict=True)],
        columns={name: each(values) for name, values in batch.get("columns", {}).items()},
        given=each(batch["given"]) if "given" in batch else None,
    )


def on_host(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows that stand beside each other, after one transfer of each tensor rather than one of each row."""
    return zip(*(tensor.cpu() for tensor in tensors), strict=True)


@torch.no_grad()
def score_completions(reward: Reward, completions: Completions, iteration: int | None) -> Scores:
    """Scores of completions, in float32.

    Args:
        reward: What scores.
        completions: What is scored.
        iteration: Of the run, for messages; None where nothing is trained.

    Raises:
        ConfigurationError: They aren't `Scores`, or not one for each completion.
        DataError: A score is not finite; its sample is named.
    """
    name = type(reward).__name__
    within = "" if iteration is None else f" in iteration {iteration}"
    resume = "" if iteration is None else _RESUME
    try:
        scores = scores_of(reward, completions)
    except Exception as error:
        error.add_note(
            f"Raised by {name}{within}, while it scored {len(completions.responses)} completions, the first to the "
            f"prompt {completions.prompts[0]!r}.{resume}"
        )
        raise
    total = scores.total
    bad = (~torch.isfinite(total)).nonzero().flatten().tolist()
    if bad:
        first = bad[0]
        parts = [
            f"{name!r} {float(part[first])}"
            for name, part in scores.parts.items()
            if not math.isfinite(float(part[first]))
        ]
        of = f" (of its parts {', '.join(parts)})" if parts else ""
        raise DataError(
            f"{name} gave {float(total[first])}{of} for {len(bad)} of {len(total)} completions{within}; the first: "
            f"prompt {completions.prompts[first]!r}, response {completions.responses[first]!r}. A reward must be "
            f"finite; clip or replace such scores in the reward.{resume}"
        )
    if bool(scores.left_out.all()):
        raise ServiceError(
            f"{name}{within} scored none of {len(total)} completions: there is nothing to learn from.{resume}"
        )
    return replace(scores, failed=scores.left_out)
