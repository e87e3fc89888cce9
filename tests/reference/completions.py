"""Completions as a policy module hands them to a reward, made from texts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rlhf.types import Completions


def make_completions(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    finished: Sequence[bool] | None = None,
    **columns: list[Any],
) -> Completions:
    """`responses` of each prompt are neighbours; finished ones end in EOS."""
    ended = [True] * len(responses) if finished is None else list(finished)
    samples = len(responses) // len(prompts)
    heads = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]
    tails = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        + ([tokenizer.eos_token_id] if end else [])
        for text, end in zip(responses, ended, strict=True)
    ]
    prompt_ids, prompt_mask = _pad(heads)
    tokens, mask = _pad(tails)
    return Completions(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        tokens=tokens,
        response_mask=mask,
        finished=torch.tensor(ended),
        prompts=[text for text in prompts for _ in range(samples)],
        responses=list(responses),
        columns=columns,
    )


def _pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ids, torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
