"""Slow references of `functional.reward_losses`: probabilities first, logarithms last, one row at a time."""

import itertools
import math
from collections.abc import Sequence


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(logit: float, label: float) -> float:
    return -label * math.log(sigmoid(logit)) - (1 - label) * math.log(1 - sigmoid(logit))


def bradley_terry(
    chosen: float,
    rejected: float,
    margin: float = 0.0,
    p_chosen: float = 1.0,
    label_smoothing: float = 0.0,
) -> float:
    probability = sigmoid(chosen - rejected - margin)
    label = p_chosen * (1 - label_smoothing) + (1 - p_chosen) * label_smoothing
    return -label * math.log(probability) - (1 - label) * math.log(1 - probability)


def all_pairs(scores: Sequence[float], targets: Sequence[float]) -> float:
    terms = [
        bradley_terry(scores[i], scores[j])
        for i, j in itertools.permutations(range(len(scores)), 2)
        if targets[i] > targets[j]
    ]
    return sum(terms) / len(terms) if terms else 0.0


def soft_pairs(scores: Sequence[float], targets: Sequence[float], temperature: float) -> float:
    terms = [
        bradley_terry(
            scores[i], scores[j], p_chosen=sigmoid((targets[i] - targets[j]) / temperature)
        )
        for i, j in itertools.combinations(range(len(scores)), 2)
    ]
    return sum(terms) / len(terms) if terms else 0.0


def pair_agreement(scores: Sequence[float], targets: Sequence[float]) -> float:
    pairs = [
        (i, j) for i, j in itertools.permutations(range(len(scores)), 2) if targets[i] > targets[j]
    ]
    return sum(scores[i] > scores[j] for i, j in pairs) / len(pairs) if pairs else 0.0


def plackett_luce(
    scores: Sequence[float], targets: Sequence[float], top: int | None = None
) -> float:
    """Draw the completions one after the other without replacement, best first (no ties)."""
    order = sorted(range(len(scores)), key=lambda i: -targets[i])
    probability = 1.0
    for k in range(len(order) if top is None else min(top, len(order))):
        weights = [math.exp(scores[i]) for i in order[k:]]
        probability *= weights[0] / sum(weights)
    return -math.log(probability)


def gaussian_nll(mean: float, log_std: float, target: float) -> float:
    std = math.exp(log_std)
    return -math.log(
        math.exp(-((target - mean) ** 2) / (2 * std**2)) / math.sqrt(2 * math.pi * std**2)
    )


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / math.sqrt(
        sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y)
    )


def squared_errors(scores: Sequence[Sequence[float]], targets: Sequence[Sequence[float]]) -> float:
    """Mean over completions and attributes."""
    pairs = [
        (s, t)
        for one, other in zip(scores, targets, strict=True)
        for s, t in zip(one, other, strict=True)
    ]
    return sum((s - t) ** 2 for s, t in pairs) / len(pairs)


def gated(scores: Sequence[float], gates: Sequence[float]) -> float:
    weights = [math.exp(gate) for gate in gates]
    return sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)
