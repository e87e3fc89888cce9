"""How sure a number is: intervals of shares and means, and tests of two models on the same examples."""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.seeding import generator

LEVEL = 0.95
_AT_ONCE = 2_000_000  # numbers drawn at a time


class Estimate(NamedTuple):
    """A number with the ends of its confidence interval."""

    value: float
    low: float
    high: float


def wilson_interval(share: float, count: int, level: float = LEVEL) -> Estimate:
    r"""A share of `count` independent cases with Wilson's score interval.

    $$\frac{\hat p + \frac{z^2}{2n} \pm z\sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4n^2}}}{1 + \frac{z^2}{n}}$$

    It stays within [0, 1] and has a width where the share is 0 or 1. Cases that are worth a fraction, such as soft
    labels, vary less than those worth 0 or 1: for their mean it is too wide, never too narrow.

    Args:
        share: In [0, 1].
        count: n, the number of cases.
        level: Of confidence, in (0, 1).

    Example:
        >>> [round(end, 3) for end in wilson_interval(0.9, 10)]
        [0.9, 0.596, 0.982]
    """
    if count < 1:
        return Estimate(math.nan, math.nan, math.nan)
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    half = z * spread / (1 + z * z / count)
    return Estimate(share, min(middle - half, share), max(middle + half, share))


def wilson_mean(values: Tensor, clusters: Tensor | None = None, level: float = LEVEL) -> Estimate:
    """Mean of values in [0, 1] with Wilson's interval, which counts all values of a cluster as one case.

    Args:
        values: (n,).
        clusters: (n,) int64; values of one cluster depend on each other, such as pairs of one prompt. None: none do.
        level: Of confidence, in (0, 1).
    """
    count = len(values) if clusters is None else len(clusters.unique())
    return wilson_interval(float(values.double().mean()) if count else math.nan, count, level)


def bootstrap_mean(
    values: Tensor,
    clusters: Tensor | None = None,
    *,
    resamples: int = 2000,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """A mean with the percentile interval of its bootstrap, which draws whole clusters (Efron, 1979).

    Of two models on the same examples give the differences: that is the paired bootstrap.

    Args:
        values: (n,).
        clusters: (n,) int64 from 0; see `wilson_mean`.
        resamples: How often is drawn; 2000 fix the ends to about a twentieth of the interval's width.
        level: Of confidence, in (0, 1).
        seed: Of the draws.

    Returns:
        Ends of nan where there is one cluster, or one value: drawn again it is always itself, which tells nothing of
        how far another would be from it.

    Example:
        >>> bootstrap_mean(torch.tensor([1.0, 1.0, 1.0]))
        Estimate(value=1.0, low=1.0, high=1.0)
    """
    values = values.double().flatten().cpu()
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan)
    if clusters is None:
        sums, counts = values, torch.ones_like(values)
    else:
        sums = torch.zeros(int(clusters.max()) + 1, dtype=torch.float64)
        counts = torch.zeros_like(sums).index_add_(0, clusters.cpu(), torch.ones_like(values))
        sums = sums.index_add_(0, clusters.cpu(), values)[counts > 0]
        counts = counts[counts > 0]
    if len(sums) == 1:
        return Estimate(float(values.mean()), math.nan, math.nan)
    draws = generator(seed, "bootstrap")
    step = max(_AT_ONCE // len(sums), 1)
    means = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start), len(sums)
        picked = torch.randint(len(sums), size, generator=draws)
        means.append(sums[picked].sum(-1) / counts[picked].sum(-1))
    tail = (1 - level) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return Estimate(float(values.mean()), low, high)


def mcnemar_test(first_only: int, second_only: int) -> float:
    r"""The exact two-sided p-value that two models are right equally often (McNemar, 1947).

    Of the examples on which one alone is right, half should be each one's: $2 P(X \le \min)$ with X binomial.

    Args:
        first_only: Examples on which the first is right and the second isn't.
        second_only: The other way round.

    Example:
        >>> mcnemar_test(1, 9)
        0.021484375
    """
    total, fewer = first_only + second_only, min(first_only, second_only)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return float(min(2 * tail / 2**total, 1.0)) if total else 1.0
