"""Slow references of `functional.policy_losses` and `functional.reduction`: one token at a time, by `math`."""

import math
from collections.abc import Sequence


def clipped(ratio: float, advantage: float, low: float, high: float, dual: float | None) -> float:
    if advantage >= 0:
        objective = advantage * min(ratio, 1 + high)
    else:
        objective = advantage * max(ratio, 1 - low)
        if dual is not None:
            objective = max(objective, dual * advantage)
    return -objective


def weight_clipped(
    ratio: float, logprob: float, advantage: float, low: float | None, high: float
) -> float:
    weight = min(ratio, 1 + high)
    if low is not None:
        weight = max(weight, 1 - low)
    return -weight * advantage * logprob


def value_loss(value: float, old_value: float, target: float, clip: float | None) -> float:
    loss = (value - target) ** 2
    if clip is not None:
        moved = old_value + math.copysign(min(abs(value - old_value), clip), value - old_value)
        loss = max(loss, (moved - target) ** 2)
    return loss / 2


def geometric_mean_ratio(logprobs: Sequence[float], old_logprobs: Sequence[float]) -> float:
    product = 1.0
    for new, old in zip(logprobs, old_logprobs, strict=True):
        product *= math.exp(new) / math.exp(old)
    return product ** (1 / max(len(logprobs), 1))


def token_mean(losses: Sequence[Sequence[float]]) -> float:
    flat = [loss for row in losses for loss in row]
    return sum(flat) / len(flat)


def sequence_mean(losses: Sequence[Sequence[float]]) -> float:
    full = [row for row in losses if row]
    return sum(sum(row) / len(row) for row in full) / len(full)


def sequence_sum(losses: Sequence[Sequence[float]]) -> float:
    full = [row for row in losses if row]
    return sum(sum(row) for row in full) / len(full)
