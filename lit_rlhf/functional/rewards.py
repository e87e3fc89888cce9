"""From scores of sequences to rewards of tokens: where the score sits, the KL penalty, an end that is missing or late.

In order: the reward model's score is normalized and clipped, penalties are subtracted, and the KL term comes last, on
top of what was clipped. Clipping or scaling after the KL term would change the objective that is optimized.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.kl import k1
from lit_rlhf.functional.masking import Moments, last_index, masked_sum
from lit_rlhf.functional.shapes import Counted, Mask, Sequences, Tokens


def place_at_end(scores: Sequences, mask: Mask) -> Tokens:
    """Put each score at the last token of its response, which is EOS where there is one; 0 elsewhere.

    A response without tokens has no place for its score: its row is 0.

    Example:
        >>> place_at_end(torch.tensor([3.0]), torch.tensor([[True, True, False]]))
        tensor([[0., 3., 0.]])
    """
    steps = torch.arange(mask.shape[-1], device=mask.device)
    at_end = (steps == last_index(mask)[:, None]) & mask
    return torch.where(at_end, scores[:, None], 0.0)


def kl_shaped_rewards(
    scores: Sequences, old_logprobs: Tokens, ref_logprobs: Tokens, mask: Mask, coef: float
) -> Tokens:
    r"""$R_t = -\beta(\log\pi_{old,t} - \log\pi_{ref,t}) + [t = \text{last}]\, r$ (arXiv:1909.08593).

    The KL is that of the policy that sampled, estimated by k1 per token: the optimum of the expected return is then
    $\pi_{ref}e^{r/\beta}/Z$. With k3 in its place it would be another one, or none.

    Args:
        scores: (N,).
        old_logprobs: (N, T), without gradient.
        ref_logprobs: (N, T).
        mask: (N, T).
        coef: beta, in units of reward per nat; 0 or more. Larger stays closer to the reference.

    Returns:
        (N, T), 0 where masked.

    Example:
        >>> logprobs, ref = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, -1.0]])
        >>> kl_shaped_rewards(torch.tensor([1.0]), logprobs, ref, torch.tensor([[True, True]]), 0.1)
        tensor([[-0.1000,  1.0000]])
    """
    penalty = torch.where(mask, k1(old_logprobs, ref_logprobs), 0.0)
    return place_at_end(scores, mask) - coef * penalty


def kl_penalized_scores(
    scores: Sequences, old_logprobs: Tokens, ref_logprobs: Tokens, mask: Mask, coef: float
) -> Sequences:
    r"""$r - \beta\sum_t(\log\pi_{old,t} - \log\pi_{ref,t})$: the same KL term, on whole sequences.

    Args:
        scores: (N,).
        old_logprobs: (N, T), without gradient.
        ref_logprobs: (N, T).
        mask: (N, T).
        coef: beta, 0 or more.
    """
    return scores - coef * masked_sum(k1(old_logprobs, ref_logprobs), mask, dim=-1)


def missing_eos_penalty(scores: Sequences, finished: Counted, penalty: float) -> Sequences:
    """Subtract a penalty, in units of reward, from the score of each response that was cut at the length limit.

    Example:
        >>> missing_eos_penalty(torch.tensor([1.0, 1.0]), torch.tensor([True, False]), 0.5)
        tensor([1.0000, 0.5000])
    """
    return torch.where(finished, scores, scores - penalty)


def no_moments(like: Float[Tensor, "..."]) -> Moments:
    """Running statistics of nothing seen so far, of the dtype and on the device of a tensor."""
    zero = like.new_zeros(())
    return Moments(zero, zero, zero)


def overlong_penalty(lengths: Int[Tensor, " sequences"], max_length: int, buffer: int) -> Sequences:
    r"""DAPO's soft punishment, to add to scores: 0 up to $L_{max}-L_{cache}$ tokens, then linear to -1 at $L_{max}$.

    See arXiv:2503.14476.

    Args:
        lengths: (N,) tokens of each response.
        max_length: $L_{max}$; longer responses get -1.
        buffer: $L_{cache}$, in (0, max_length]; a longer one punishes earlier and more gently.

    Raises:
        ConfigurationError: The buffer is out of range.

    Example:
        >>> overlong_penalty(torch.tensor([6, 9, 10, 12]), max_length=10, buffer=4)
        tensor([ 0.0000, -0.7500, -1.0000, -1.0000])
    """
    if not 0 < buffer <= max_length:
        raise ConfigurationError(
            f"buffer={buffer} must be above 0 and no more than max_length={max_length}."
        )
    room = (max_length - buffer - lengths).float() / buffer
    return room.clamp(-1.0, 0.0)
