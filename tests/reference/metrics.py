"""Slow independent references of `lit_rlhf.metrics`: plain Python over lists of floats."""

import math
from collections.abc import Sequence


def preference_accuracy(
    chosen: Sequence[float], rejected: Sequence[float], p_chosen: Sequence[float]
) -> float:
    total = 0.0
    for c, r, p in zip(chosen, rejected, p_chosen, strict=True):
        if c > r:
            total += p
        elif c < r:
            total += 1 - p
    return total / len(chosen)


def calibration_error(
    chosen: Sequence[float], rejected: Sequence[float], p_chosen: Sequence[float], num_bins: int
) -> float:
    bins: list[list[tuple[float, float]]] = [[] for _ in range(num_bins)]
    for c, r, p in zip(chosen, rejected, p_chosen, strict=True):
        probability = 1 / (1 + math.exp(r - c))
        if probability < 0.5:
            # Write the pair the other way round, so that the predicted answer is the chosen one.
            probability, p = 1 - probability, 1 - p  # noqa: PLW2901
        which = min(int((probability - 0.5) / 0.5 * num_bins), num_bins - 1)
        bins[which].append((probability, p if c != r else 0.5))
    error = 0.0
    for members in bins:
        if members:
            confidence = sum(probability for probability, _ in members) / len(members)
            agreement = sum(p for _, p in members) / len(members)
            error += len(members) / len(chosen) * abs(confidence - agreement)
    return error


def explained_variance(
    values: Sequence[Sequence[float]],
    returns: Sequence[Sequence[float]],
    mask: Sequence[Sequence[int]],
) -> float:
    targets, errors = [], []
    for value_row, return_row, mask_row in zip(values, returns, mask, strict=True):
        for value, target, counts in zip(value_row, return_row, mask_row, strict=True):
            if counts:
                targets.append(target)
                errors.append(target - value)
    return 1 - _variance(errors) / _variance(targets)


def _variance(numbers: Sequence[float]) -> float:
    mean = math.fsum(numbers) / len(numbers)
    return math.fsum((number - mean) ** 2 for number in numbers) / len(numbers)
