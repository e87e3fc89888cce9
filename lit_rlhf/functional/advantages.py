"""Advantage estimates: with a critic, from a group of samples of one prompt, or from a baseline; no gradient flows."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.masking import masked_sum
from lit_rlhf.functional.numerics import at_least_float32
from lit_rlhf.functional.shapes import Counted, Mask, Sequences, Tokens


class AdvantageEstimate(NamedTuple):
    """Advantages, and the returns that values are fitted to."""

    advantages: Tokens
    returns: Tokens


def gae(
    rewards: Tokens, values: Tokens, mask: Mask, gamma: float = 1.0, lam: float = 0.95
) -> AdvantageEstimate:
    r"""Generalized advantage estimation (arXiv:1506.02438).

    $\delta_t=R_t+\gamma V_{t+1}-V_t,\quad A_t=\sum_k(\gamma\lambda)^k\delta_{t+k},\quad \text{returns}=A+V$, where
    t + 1 is the next token that counts and the value after the last is 0. Whiten the advantages afterwards, not the
    returns.

    Args:
        rewards: (N, T).
        values: (N, T): of the state *before* each token.
        mask: (N, T), any pattern: padding is left out, and so are tokens in between that the policy did not write.
        gamma: Discount in [0, 1]; below 1 changes the objective.
        lam: In [0, 1]: 1 = returns minus values (unbiased), 0 = one-step errors (low variance, biased by the critic).

    Returns:
        Advantages and returns, (N, T), 0 where masked.

    Example:
        >>> rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
        >>> gae(rewards, values, torch.tensor([[True, True]]), lam=1.0).advantages
        tensor([[0.5000, 0.5000]])
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0])
    running = torch.zeros_like(next_value)
    for t in reversed(range(rewards.shape[1])):
        counts = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(counts, delta + gamma * lam * running, running)
        next_value = torch.where(counts, values[:, t], next_value)
        advantages[:, t] = torch.where(counts, running, 0.0)
    return AdvantageEstimate(advantages, advantages + values)


def discounted_returns(rewards: Tokens, mask: Mask, gamma: float = 1.0) -> Tokens:
    r"""Reward to go, $G_t=\sum_{s\ge t}\gamma^{s-t}R_s$ over the tokens that count; 0 where masked.

    Args:
        rewards: (N, T).
        mask: (N, T).
        gamma: Discount per token that counts, in [0, 1]; below 1 changes the objective.

    Example:
        >>> discounted_returns(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, True]]), gamma=0.5)
        tensor([[2., 2.]])
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, lam=1.0).returns


def group_centered(
    scores: Sequences, num_samples: int, counted: Counted | None = None
) -> Sequences:
    r"""$A_i = R_i - \frac1G\sum_j R_j$, without dividing by the standard deviation (Dr. GRPO, arXiv:2503.20783).

    The mean includes the sample itself, so the expected gradient is (G - 1)/G of the true one: with a KL term in the
    *loss* the effective coefficient is beta * G / (G - 1).

    Args:
        scores: (N,), samples of a prompt as neighbours.
        num_samples: G, 2 or more.
        counted: (N,) which samples there are; the mean is over these, and others get 0. None: all.

    Raises:
        ConfigurationError: G is below 2 or does not divide N.

    Example:
        >>> group_centered(torch.tensor([1.0, 0.0]), 2)
        tensor([ 0.5000, -0.5000])
    """
    groups = _groups(scores, num_samples, at_least=2)
    if counted is None or bool(counted.all()):
        return (groups - groups.mean(-1, keepdim=True)).flatten()
    there = counted.view(-1, num_samples)
    mean = masked_sum(groups, there, dim=-1) / there.sum(-1).clamp_min(1)  # (B,)
    return torch.where(there, groups - mean[:, None], 0.0).flatten()


def group_sizes(counted: Counted, num_samples: int) -> Int[Tensor, " sequences"]:
    """How many samples of its prompt count, for each sequence.

    Example:
        >>> group_sizes(torch.tensor([True, True, False, True]), 2)
        tensor([2, 2, 1, 1])
    """
    return counted.view(-1, num_samples).sum(-1).repeat_interleave(num_samples)


def greedy_baseline(returns: Tokens, greedy_scores: Sequences, mask: Mask) -> Tokens:
    """Reward to go minus the score of the prompt's greedy completion; 0 where masked (ReMax, arXiv:2310.10505).

    Unbiased with a token sum; with losses divided by each sequence's length it is not, since the length depends on
    later actions and this baseline is not the mean.

    Args:
        returns: (N, T) rewards to go.
        greedy_scores: (N,): of the greedy completion of each sequence's prompt.
        mask: (N, T).

    Example:
        >>> greedy_baseline(
        ...     torch.tensor([[1.0, 0.0]]), torch.tensor([0.25]), torch.tensor([[True, True]])
        ... )
        tensor([[ 0.7500, -0.2500]])
    """
    return torch.where(mask, returns - greedy_scores[:, None], 0.0)


def spread_over_tokens(advantages: Sequences, mask: Mask) -> Tokens:
    """Give every token of a sequence the sequence's advantage; 0 where masked."""
    return torch.where(mask, advantages[:, None], 0.0)


def equal_groups(
    scores: Sequences, num_samples: int, counted: Counted | None = None
) -> Bool[Tensor, " prompts"]:
    """Whether all samples of a prompt have the same score, so that the prompt teaches nothing (DAPO drops those).

    Args:
        scores: (N,), samples of a prompt as neighbours.
        num_samples: G, 1 or more.
        counted: (N,) which samples there are. None: all.

    Example:
        >>> equal_groups(torch.tensor([1.0, 1.0, 0.0, 1.0]), 2)
        tensor([ True, False])
    """
    groups = _groups(scores, num_samples, at_least=1)
    if counted is None:
        return groups.amax(-1) == groups.amin(-1)
    missing = ~counted.view(-1, num_samples)
    highest = groups.masked_fill(missing, -torch.inf).amax(-1)
    return highest <= groups.masked_fill(missing, torch.inf).amin(-1)


def _groups(scores: Tensor, num_samples: int, at_least: int) -> Tensor:
    """(B, G) from (N,), at least float32."""
    if num_samples < at_least:
        raise ConfigurationError(
            f"num_samples={num_samples}: an advantage within a group needs {at_least} or more samples of each prompt."
        )
    if len(scores) % num_samples:
        raise ConfigurationError(
            f"{len(scores)} scores can't be divided into groups of num_samples={num_samples}."
        )
    return at_least_float32(scores).view(-1, num_samples)
