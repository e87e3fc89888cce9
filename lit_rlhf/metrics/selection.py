"""What becomes of choosing among several answers by their scores."""

from itertools import accumulate
from math import comb

import torch
from torch import Tensor


def best_of_n_curve(scores: Tensor, values: Tensor) -> Tensor:
    r"""The value of the answer with the highest score among n, for n = 1 to K, over all subsets of K answers.

    $$V_n = \sum_{i=1}^K \frac{\binom{i-1}{n-1}}{\binom{K}{n}}\, v_{(i)}$$

    with the answers in ascending order of score: exact, nothing is drawn. Among equal scores each is chosen alike.

    Args:
        scores: (K,) by which is chosen.
        values: (K,) what the answers are worth to raters.

    Returns:
        (K,) float64; entry n - 1 is best-of-n. The first is the mean, the last the value of the best-scored answer.

    Example:
        >>> best_of_n_curve(torch.tensor([0.1, 0.9]), torch.tensor([0.0, 1.0]))
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    count = len(scores)
    order = scores.argsort(stable=True)
    sizes = scores[order].unique_consecutive(return_counts=True)[1]
    ends = list(accumulate(sizes.tolist()))
    sorted_values = values[order].double()
    parts = zip([0, *ends], ends, strict=False)
    means = torch.cat([sorted_values[a:b].mean().expand(b - a) for a, b in parts])
    weights = [[comb(i, n) / comb(count, n + 1) for i in range(count)] for n in range(count)]
    return torch.tensor(weights, dtype=torch.float64) @ means


def best_of_credit(scores: Tensor, good: Tensor) -> float:
    """The share of good answers among those with the highest score: what a best-of-K choice is right by.

    A model that scores one good answer and three bad ones alike gets 1/4, as in RewardBench 2 (arXiv:2506.01937).

    Args:
        scores: (K,).
        good: (K,) bool.

    Example:
        >>> best_of_credit(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([True, False, False]))
        0.5
    """
    return float(good[scores == scores.max()].double().mean())
