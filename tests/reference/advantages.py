"""Slow references of `functional.advantages` and `functional.rewards`: definitions as sums, token by token."""

import statistics
from collections.abc import Sequence


def gae(
    rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """Of one sequence without gaps, by the defining sum."""
    n = len(rewards)
    following = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(n)]
    advantages = [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def returns(rewards: Sequence[float], gamma: float) -> list[float]:
    return [
        sum(gamma ** (s - t) * rewards[s] for s in range(t, len(rewards)))
        for t in range(len(rewards))
    ]


def leave_one_out(scores: Sequence[float], num_samples: int) -> list[float]:
    out = []
    for start in range(0, len(scores), num_samples):
        group = list(scores[start : start + num_samples])
        for i, score in enumerate(group):
            others = group[:i] + group[i + 1 :]
            out.append(score - sum(others) / len(others))
    return out


def group_normalized(scores: Sequence[float], num_samples: int, eps: float) -> list[float]:
    out = []
    for start in range(0, len(scores), num_samples):
        group = scores[start : start + num_samples]
        mean, std = statistics.fmean(group), statistics.stdev(group)
        out += [(score - mean) / (std + eps) for score in group]
    return out


def batch_normalized(scores: Sequence[float], num_samples: int, eps: float) -> list[float]:
    out = []
    for i, score in enumerate(scores):
        start = i - i % num_samples
        group = scores[start : start + num_samples]
        out.append((score - statistics.fmean(group)) / (statistics.stdev(scores) + eps))
    return out


def kl_shaped(
    score: float, logprobs: Sequence[float], ref_logprobs: Sequence[float], coef: float
) -> list[float]:
    """Of one sequence: the penalty at each token, the score at the last."""
    out = [-coef * (p - q) for p, q in zip(logprobs, ref_logprobs, strict=True)]
    if out:
        out[-1] += score
    return out


def overlong(length: int, max_length: int, buffer: int) -> float:
    if length <= max_length - buffer:
        return 0.0
    if length > max_length:
        return -1.0
    return (max_length - buffer - length) / buffer
