"""Collecting: from prompts to what an engine is asked for, and from what it generated to texts and scores."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rlhf.errors import ConfigurationError, DataError, ServiceError
from lit_rlhf.internals.lightning import is_within_iteration
from lit_rlhf.modules.minibatches import repeat_columns
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import RolloutEngine, RolloutRequest, Sampling
from lit_rlhf.seeding import sample_seeds
from lit_rlhf.types import (
    Completions,
    Generation,
    PromptBatch,
    Prompts,
    Sample,
    ScoredRollout,
    Scores,
)

Scored = TypeVar("Scored", bound=ScoredRollout)

RESUME = "The run goes on from its last checkpoint with --ckpt_path last."


def rollout_request(
    batch: PromptBatch,
    sampling: Sampling,
    purpose: str,
    num_samples: int,
    *,
    seed: int,
    iteration: int,
    values: str | None = None,
) -> RolloutRequest:
    """What an engine is asked for: completions of a batch of prompts.

    Args:
        batch: Its `index` are the prompts' positions in the data set, on which their seeds depend.
        sampling: How tokens are drawn.
        purpose: What the samples are for, on which their seeds depend.
        num_samples: Samples of each prompt.
        seed: The module's.
        iteration: The module's; "validation" and "predict" draw the same samples at each.
        values: As `RolloutRequest` has it.
    """
    which = batch["index"].repeat_interleave(num_samples) * num_samples
    which = which + torch.arange(num_samples, device=which.device).repeat(len(batch["index"]))
    when = 0 if purpose in ("validation", "predict") else iteration
    seeds = sample_seeds(seed, when, purpose, which)
    return RolloutRequest(Prompts.of(batch), sampling, seeds, num_samples, values=values)


def engine_state(engine: RolloutEngine, trainer: Trainer | None) -> dict[str, Any]:
    """What a checkpoint holds of an engine; nothing within an iteration, which one process may save alone."""
    return {} if trainer is not None and is_within_iteration(trainer) else engine.state_dict()


def read_completions(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    generation: Generation,
    batch: PromptBatch,
) -> Completions:
    """Tokens and texts as rewards see them, with what the batch says of its prompts."""
    given = batch.get("given")
    num_samples = len(generation.tokens) // len(prompts.ids)
    texts = [str(tokenizer.decode(ids[mask])) for ids, mask in on_host(prompts.ids, prompts.mask)]
    plain = partial(tokenizer.decode, skip_special_tokens=True)
    pairs = on_host(generation.tokens, generation.mask)
    return Completions(
        prompt_ids=prompts.ids,
        prompt_mask=prompts.mask,
        tokens=generation.tokens,
        response_mask=generation.mask,
        finished=generation.finished,
        prompts=[text for text in texts for _ in range(num_samples)],
        responses=[str(plain(ids[mask])) for ids, mask in pairs],
        columns=repeat_columns(batch.get("columns", {}), num_samples),
        given=None if given is None else repeat_columns({"": given}, num_samples)[""],
    )


def on_host(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows that stand beside each other, after one transfer of each tensor rather than one of each row."""
    return zip(*(tensor.cpu() for tensor in tensors), strict=True)


@torch.no_grad()
def score_completions(reward: Reward, completions: Completions, iteration: int) -> Scores:
    """Scores of completions, in float32.

    Raises:
        DataError: A score is not finite; its sample is named.
    """
    where = f"{type(reward).__name__} in iteration {iteration}"
    try:
        scores = reward.score(completions)
    except Exception as error:
        error.add_note(
            f"raised by {where}, while it scored {len(completions.responses)} completions, the first to the prompt "
            f"{completions.prompts[0]!r}. {RESUME}"
        )
        raise
    if not isinstance(scores, Scores):
        raise ConfigurationError(
            f"{type(reward).__name__}.score returned a {type(scores).__name__}: return "
            "lit_rlhf.types.Scores(total), with the parts it is made of where it has any."
        )
    total = scores.total.float()
    bad = (~torch.isfinite(total)).nonzero().flatten().tolist()
    if bad:
        first = bad[0]
        raise DataError(
            f"{type(reward).__name__} gave {float(total[first])} for {len(bad)} of {len(total)} completions in "
            f"iteration {iteration}; the first: prompt {completions.prompts[first]!r}, response "
            f"{completions.responses[first]!r}. A reward must be finite; clip or replace such scores in the reward. "
            f"{RESUME}"
        )
    if bool(scores.left_out.all()):
        raise ServiceError(
            f"{where} scored none of {len(total)} completions: there is nothing to learn from. {RESUME}"
        )
    return Scores(total, scores.parts, scores.left_out)


def leave_out(rollout: Scored, failed: Tensor, *, pairs: bool = False) -> Scored:
    """The rollout without the tokens of some samples: nothing of them counts, as if they had none.

    Args:
        rollout: Scored, at this stage or a later one.
        failed: (N,) bool.
        pairs: Neighbours are compared: where one is left out, so is the other, for nobody knows which is better.
    """
    if pairs:
        failed = failed.view(-1, 2).any(-1).repeat_interleave(2)
    mask = rollout.response_mask & ~failed[:, None]
    scores = replace(rollout.scores, failed=failed)
    return replace(rollout, completions=replace(rollout.completions, mask=mask), scores=scores)


def list_samples(completions: Completions, scores: Scores, iteration: int) -> list[Sample]:
    """The completions for people to read; those that couldn't be scored have nan."""
    known = scores.total.masked_fill(scores.left_out, math.nan)
    columns = (completions.prompts, completions.responses, known.tolist())
    rows = zip(*columns, completions.finished.tolist(), strict=True)
    return [
        Sample(
            iteration=iteration, prompt=prompt, response=response, score=score, finished=finished
        )
        for prompt, response, score, finished in rows
    ]
