"""Ratios, surrogates and value losses of policy optimization, unreduced: (N, T) in, (N, T) out.

Ratios take the mask and are 1 where it is not set. What has no mask (surrogates, value losses) is for a reduction that
has one; give it finite numbers everywhere, such as the zeros that advantages and returns hold where masked.
"""

import torch
from torch import Tensor

from lit_rlhf.functional.advantages import group_centered, group_sizes
from lit_rlhf.functional.masking import masked_mean, masked_sum
from lit_rlhf.functional.numerics import cumulative_sum
from lit_rlhf.functional.shapes import Mask, Sequences, Tokens

MAX_LOG_RATIO = 20.0
"""Log-ratios are held to this size, in nats, so that no ratio overflows; gradients beyond it are 0."""


def log_ratio(logprobs: Tokens, old_logprobs: Tokens, mask: Mask) -> Tokens:
    r"""$\log\pi_t - \log\pi_{old,t}$, 0 where masked, whatever stands there."""
    return torch.where(mask, logprobs - old_logprobs, 0.0)


def token_ratio(logprobs: Tokens, old_logprobs: Tokens, mask: Mask) -> Tokens:
    r"""Importance ratio $\rho_t=\pi_t/\pi_{old,t}$ of each token, 1 where masked (PPO, arXiv:1707.06347).

    Args:
        logprobs: (N, T) of the current policy, differentiable.
        old_logprobs: (N, T) of the policy that sampled.
        mask: (N, T).

    Example:
        >>> token_ratio(torch.tensor([[-1.0]]), torch.tensor([[-1.0]]), torch.tensor([[True]]))
        tensor([[1.]])
    """
    return _exp(log_ratio(logprobs, old_logprobs, mask))


def prefix_ratio(logprobs: Tokens, old_logprobs: Tokens, mask: Mask) -> Tokens:
    r"""Importance ratio $\rho_{\le t}=\prod_{s\le t}\pi_s/\pi_{old,s}$ of a sequence up to each token."""
    return _exp(cumulative_sum(log_ratio(logprobs, old_logprobs, mask)))


def sequence_ratio(
    logprobs: Tokens, old_logprobs: Tokens, mask: Mask, *, length_normalized: bool = True
) -> Tokens:
    r"""Importance ratio of whole sequences at each of their tokens (GSPO's token form, arXiv:2507.18071).

    The value is $s=(\prod_t \rho_t)^{1/n}$, or the product itself, everywhere; the gradient at token t is
    $s\nabla\log\pi_t$ (straight-through). So a token mean over each sequence has the gradient of s with normalization,
    a token sum without, and advantages may differ by token.

    Args:
        logprobs: (N, T), differentiable.
        old_logprobs: (N, T).
        mask: (N, T).
        length_normalized: The geometric mean over tokens (GSPO) instead of the product.
    """
    change = log_ratio(logprobs, old_logprobs, mask)
    pool = masked_mean if length_normalized else masked_sum
    ratio = _exp(pool(change, mask, dim=-1).detach())[:, None]
    return ratio * (change - change.detach()).exp()


def relative_reward_loss(
    logprobs: Tokens,
    old_logprobs: Tokens,
    rewards: Tokens,
    mask: Mask,
    num_samples: int,
    eta: float = 1.0,
) -> Sequences:
    r"""REBEL's squared error, shared out to the sequences of each prompt (arXiv:2404.16767).

    With $d_i = \frac1\eta\sum_t(\log\pi_{it} - \log\pi_{old,it}) - \sum_t R_{it}$ the mean of $(d_i - d_j)^2$ over the
    pairs of a prompt is the mean of $\frac{2G}{G-1}(d_i - \bar d)^2$ over its G sequences, which is what is returned.

    Args:
        logprobs: (N, T), differentiable; the samples of a prompt are neighbours.
        old_logprobs: (N, T) of the policy that sampled.
        rewards: (N, T).
        mask: (N, T); sequences without tokens are not there.
        num_samples: G, 2 or more.
        eta: Above 0: how far, in nats, a reward of 1 moves the log-ratio.

    Raises:
        ConfigurationError: G is below 2 or does not divide N.

    Example:
        >>> zeros, mask = torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool)
        >>> relative_reward_loss(zeros, zeros, torch.tensor([[1.0], [0.0]]), mask, 2)
        tensor([1., 1.])
    """
    moved = masked_sum(log_ratio(logprobs, old_logprobs, mask), mask, dim=-1)
    counted = mask.any(-1)
    errors = group_centered(moved / eta - masked_sum(rewards, mask, dim=-1), num_samples, counted)
    sizes = group_sizes(counted, num_samples).to(errors.dtype)
    return 2 * sizes / (sizes - 1).clamp_min(1) * errors.square()


def clipped_value_loss(
    values: Tokens, old_values: Tokens, returns: Tokens, clip: float | None = 0.2
) -> Tokens:
    r"""$\tfrac12\max((V-R)^2,\ (V_{old}+\mathrm{clip}(V-V_{old},\pm\epsilon)-R)^2)$, PPO's value loss.

    Args:
        values: (N, T), differentiable.
        old_values: (N, T) when the rollout was collected.
        returns: (N, T).
        clip: Above 0, in units of reward: a value moves no further than this per rollout, typically 0.2 for rewards of
            order 1. None: plain squared error.

    Example:
        >>> clipped_value_loss(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]))
        tensor([[0.3200]])
    """
    error = (values - returns).square()
    if clip is not None:
        error = torch.maximum(error, (_clip_value(values, old_values, clip) - returns).square())
    return 0.5 * error


def value_clip_fraction(values: Tokens, old_values: Tokens, returns: Tokens, clip: float) -> Tokens:
    """1 where the clipped error is the larger one, so that the value has no gradient; else 0."""
    clipped = (_clip_value(values, old_values, clip) - returns).square()
    return (clipped > (values - returns).square()).to(values.dtype)


def approx_kl(logprobs: Tokens, old_logprobs: Tokens, mask: Mask) -> Tokens:
    r"""$\rho_t - 1 - \log\rho_t$: how far the policy has moved since it sampled, in nats per token.

    An estimate of $KL(\pi_{old}\|\pi)$: unbiased and never negative. Some code logs the mean of $\tfrac12(\log\rho)^2$
    under this name.

    Returns:
        (N, T), 0 where masked.
    """
    change = log_ratio(logprobs, old_logprobs, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(change) - change


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _clip_value(values: Tensor, old_values: Tensor, clip: float) -> Tensor:
    moved = values - old_values
    # Within the range the value itself: old + (new - old) would differ from it by rounding, which clip fractions count.
    return torch.where(moved.abs() > clip, old_values + moved.clamp(-clip, clip), values)
