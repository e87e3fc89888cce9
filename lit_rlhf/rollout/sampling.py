r"""Drawing tokens from logits by inverse CDF: one uniform number a row instead of noise for the whole vocabulary."""

import torch
from torch import Tensor

from lit_rlhf.functional.numerics import cumulative_sum
from lit_rlhf.rollout.base import Sampling

_BLOCK = 128
_CANDIDATES = 1024


def draw_tokens(
    logits: Tensor, uniforms: Tensor, sampling: Sampling, banned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Draw one token a row and say how likely it was.

    Args:
        logits: (n, V) float32, of the model; may be overwritten.
        uniforms: (n,) float64 in [0, 1).
        sampling: Temperature, top-k, top-p; with temperature 0 the likeliest token is taken.
        banned: (m,) ids that can't be drawn now.

    Returns:
        Tokens (n,) int64, and their log-probs (n,) float32 under the distribution they were drawn from: tempered,
        truncated and renormalised. Greedy choices are given the log-probs of the model at temperature 1, for those of
        the distribution they come from are all 0.

    Example:
        >>> logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
        >>> tokens, logprobs = draw_tokens(
        ...     logits, torch.tensor([0.6], dtype=torch.float64), Sampling()
        ... )
        >>> tokens.item(), round(logprobs.exp().item(), 4)
        (1, 0.25)
    """
    if banned is not None and banned.numel():
        logits[:, banned] = -torch.inf
    if sampling.greedy:
        tokens = logits.argmax(-1)
        weights = _weights(logits)
    else:
        weights = _weights(truncate_logits(logits, sampling))
        tokens = inverse_cdf(weights, uniforms)
    return tokens, (weights.gather(-1, tokens[:, None]) / weights.sum(-1, keepdim=True))[:, 0].log()


def _weights(logits: Tensor) -> Tensor:
    # In place: another array of the batch's size costs more than the passes over it. It is softmax but for the
    # division.
    return logits.sub_(logits.amax(-1, keepdim=True)).exp_()


def truncate_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Divide by the temperature, then cut what top-k and after it top-p leave out to -inf.

    Tokens as likely as the last one kept are kept too, so that the result doesn't depend on how a sort breaks ties.

    Args:
        logits: (n, V) float32; may be overwritten.
        sampling: With a temperature above 0.
    """
    if sampling.temperature != 1:
        logits = logits.div_(sampling.temperature)
    if 0 < sampling.top_k < logits.shape[-1]:
        floor = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill_(logits < floor, -torch.inf)
    if sampling.top_p < 1:
        logits = logits.masked_fill_(logits < _nucleus_floor(logits, sampling.top_p), -torch.inf)
    return logits


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    r"""The index $i$ with $\sum_{j<i} w_j \le u \sum_j w_j < \sum_{j \le i} w_j$, for each row.

    The sum over the vocabulary runs in two levels, both cumulated in float64: in a cumulative sum of float32, tokens of
    a probability below 6e-8 fall together, and where likely tokens stand before them most could never be drawn. An
    index of weight 0 is never returned.

    Args:
        weights: (n, V) float32, not negative; they needn't sum to 1.
        uniforms: (n,) float64 in [0, 1).

    Example:
        >>> weights = torch.tensor([[1.0, 0.0, 3.0]]).expand(3, -1)
        >>> inverse_cdf(weights, torch.tensor([0.0, 0.24, 0.26], dtype=torch.float64)).tolist()
        [0, 0, 2]
    """
    size = weights.shape[-1]
    whole = size - size % _BLOCK
    sums = weights.new_zeros(len(weights), 0)
    if whole:
        sums = weights[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1)
    if whole < size:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=-1)
    sums = sums.double()
    outer = cumulative_sum(sums)
    target = uniforms[:, None] * outer[:, -1:]
    block = _first_above(outer, target)
    index = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inner = cumulative_sum(weights.gather(-1, index.clamp_max(size - 1)).double() * (index < size))
    # As a share of the block, whose sum was rounded to float32; not below 0, where a token of weight 0 may stand.
    share = ((target - outer.gather(-1, block)) / sums.gather(-1, block) + 1).clamp_min(0)
    return (block * _BLOCK + _first_above(inner, share * inner[:, -1:]))[:, 0].clamp_max(size - 1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    # Where rounding puts the target at or past the end, the last index that has any weight; of NaNs, the last index.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    last = last.clamp_max(cumulative.shape[-1] - 1)
    return torch.searchsorted(cumulative, target, right=True).minimum(last)


def _nucleus_floor(logits: Tensor, top_p: float) -> Tensor:
    log_total = logits.logsumexp(-1, keepdim=True)
    size = logits.shape[-1]
    # Nuclei are small as a rule; sorting the whole vocabulary costs fifty times as much.
    for count in (min(_CANDIDATES, size), size):
        top = logits.topk(count, dim=-1).values
        cumulative = cumulative_sum((top - log_total).double().exp())
        if count == size or bool((cumulative[:, -1] >= top_p).all()):
            break
    kept = (cumulative < top_p).sum(-1, keepdim=True).clamp_max(size - 1)
    return top.gather(-1, kept)
