"""Slow independent references of `lit_rlhf.metrics`: plain Python over lists of floats."""

import math
from collections.abc import Sequence
from itertools import combinations, permutations


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


def best_of_n(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Over all subsets of n answers, one after the other."""
    found = []
    for subset in combinations(range(len(scores)), n):
        top = max(scores[i] for i in subset)
        best = [values[i] for i in subset if scores[i] == top]
        found.append(math.fsum(best) / len(best))
    return math.fsum(found) / len(found)


def rater_agreement(chose_first: Sequence[Sequence[bool]]) -> float:
    """How often two different raters of a pair say the same, over pairs of answers that have two raters."""
    shares = []
    for votes in chose_first:
        pairs = [a == b for a, b in permutations(votes, 2)]
        if pairs:
            shares.append(sum(pairs) / len(pairs))
    return math.fsum(shares) / len(shares)


def ties_score(rows: Sequence[tuple[str, Sequence[float], Sequence[bool]]]) -> float:
    """RewardBench 2's subset Ties, question by question."""
    right: dict[tuple[str, str], list[float]] = {}
    wrong: dict[tuple[str, str], list[float]] = {}
    for name, scores, good in rows:
        way, question = name.split(":")
        for score, is_right in zip(scores, good, strict=True):
            (right if is_right else wrong).setdefault((way, question), []).append(score)
    gap = {key: min(right[key]) - max(wrong[key]) for key in right}
    questions = sorted({q for _, q in right if ("ref", q) in right and ("tied", q) in right})
    preferred = hard = margin = 0.0
    for q in questions:
        spread = max(right["tied", q]) - min(right["tied", q])
        least = min(gap["ref", q], gap["tied", q])
        preferred += (gap["tied", q] > spread) / len(questions)
        hard += (least > spread) / len(questions)
        margin += math.tanh(least / spread - 1) / len(questions)
    ref = [value > 0 for (way, _), value in gap.items() if way == "ref"]
    tied = [value > 0 for (way, _), value in gap.items() if way == "tied"]
    accuracy = 0.3 * sum(ref) / len(ref) + 0.3 * sum(tied) / len(tied)
    return accuracy + 0.2 * preferred + 0.2 * hard + 0.01 * margin
