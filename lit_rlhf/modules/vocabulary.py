"""Statistics over the whole vocabulary at each token of a batch's branches, in chunks computed anew in backward."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_rlhf.functional.kl import full_kl
from lit_rlhf.functional.logprobs import token_logprobs
from lit_rlhf.functional.numerics import log_collision
from lit_rlhf.models import Backbone
from lit_rlhf.models.branched import BranchStates

_CHUNK_ELEMENTS = 1 << 24


class VocabularyStats(NamedTuple):
    """(N, T) each, 0 where masked; the policy's with gradient, but for the collision."""

    logprobs: Tensor
    ref_logprobs: Tensor
    kl: Tensor  # KL(reference || policy) of the next token
    collision: Tensor  # log sum_v pi(v)^2


def vocabulary_statistics(
    policy: Backbone, states: BranchStates, reference: Backbone, ref_states: BranchStates
) -> VocabularyStats:
    """Compare two models' next-token distributions at each token.

    Args:
        policy: Whose LM head turns `states` into logits.
        states: The policy's hidden states, with gradient.
        reference: Whose LM head turns `ref_states` into logits.
        ref_states: The reference's, of the same batch.
    """
    tokens, mask = states.tokens.flatten(), states.mask.flatten()
    hidden, ref_hidden = (part.hidden[part.source.flatten()] for part in (states, ref_states))

    def compare(hidden: Tensor, ref_hidden: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        logits = policy.logits(hidden)
        with torch.no_grad():
            ref_logits = reference.logits(ref_hidden)
            collision = log_collision(logits)
        kl = full_kl(ref_logits, logits)
        return token_logprobs(logits, tokens), token_logprobs(ref_logits, tokens), kl, collision

    size = max(_CHUNK_ELEMENTS // len(policy.tokenizer), 1)
    rows = zip(hidden.split(size), ref_hidden.split(size), tokens.split(size), strict=True)
    chunks = [checkpoint(compare, *row, use_reentrant=False) for row in rows]
    columns = (
        torch.where(mask, torch.cat(column), 0.0).view(states.mask.shape)
        for column in zip(*chunks, strict=True)
    )
    return VocabularyStats(*columns)
