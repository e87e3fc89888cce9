"""From the stages' results to the numbers of the summary."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from lit_rlhf.demo.stages import PolicyResult, RewardResult, Rows
from lit_rlhf.demo.world import World
from lit_rlhf.demo.world_data import bayes_accuracy
from lit_rlhf.metrics import CalibrationError, PreferenceAccuracy


@dataclass(frozen=True)
class Judged:
    """Samples with their scores: the proxy's and the truth.

    Attributes:
        samples: Rows with `prompt` and `response`.
        proxy: The reward model's scores, with mean 0 and deviation 1 on held-out human texts.
        gold: The world's utilities.
    """

    samples: Rows
    proxy: list[float]
    gold: list[float]


def judge(samples: Rows, world: World) -> Judged:
    """Look up the utilities of samples."""
    gold = world.utilities((row["prompt"] for row in samples), (row["response"] for row in samples))
    return Judged(samples, [row["score"] for row in samples], gold)


def reward_summary(result: RewardResult) -> dict[str, float]:
    """Accuracy of the reward model, of perfect knowledge, and the calibration error."""
    accuracy, calibration = PreferenceAccuracy(), CalibrationError()
    zeros = torch.zeros_like(result.margins)
    accuracy.update(result.margins, zeros)
    calibration.update(result.margins, zeros)
    found, best = float(accuracy.compute()), bayes_accuracy(result.pairs)
    return {
        "accuracy": found,
        "bayes_accuracy": best,
        "accuracy_ratio": found / best,
        "calibration_error": float(calibration.compute()),
    }


def policy_summary(result: PolicyResult, world: World) -> dict[str, float]:
    """Proxy and gold before and after, the best gold there is, the share of the gap closed, KL, and variety."""
    before, after = judge(result.before, world), judge(result.after, world)
    best = world.gold_max([row["prompt"] for row in result.after])
    gold_before, gold_after = fmean(before.gold), fmean(after.gold)
    return {
        "reward_before": fmean(before.proxy),
        "reward_after": fmean(after.proxy),
        "gold_before": gold_before,
        "gold_after": gold_after,
        "gold_max": best,
        "gap_closed": (gold_after - gold_before) / (best - gold_before),
        "kl": result.kl_after,
        "distinct_2_before": distinct_n((row["response"] for row in before.samples), 2),
        "distinct_2_after": distinct_n((row["response"] for row in after.samples), 2),
        "words_before": fmean(len(row["response"].split()) for row in before.samples),
        "words_after": fmean(len(row["response"].split()) for row in after.samples),
    }


def curves(result: PolicyResult, world: World) -> dict[str, list[float]]:
    """Per iteration: mean proxy and gold of its samples, and KL."""
    groups: dict[int, Rows] = {}
    for row in result.rollouts:
        groups.setdefault(row["iteration"], []).append(row)
    judged = [judge(groups[iteration], world) for iteration in sorted(groups)]
    return {
        "proxy": [fmean(group.proxy) for group in judged],
        "gold": [fmean(group.gold) for group in judged],
        "kl": [row["train/objective/kl"] for row in result.metrics],
    }


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Share of different n-grams among all n-grams of the texts (arXiv:1510.03055): low where a policy repeats itself.

    It falls with the number of texts, so compare equal numbers.

    Example:
        >>> distinct_n(["a b a b"], 2)
        0.66...
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.split()
        counts.update(zip(*(words[i:] for i in range(n)), strict=False))
    return len(counts) / max(counts.total(), 1)


def examples(before: Judged, after: Judged, number: int) -> Sequence[dict[str, Any]]:
    """Samples for the same prompts before and after, for people to read; the first of each different prompt."""
    rows: dict[str, dict[str, Any]] = {}
    for i, (old, new) in enumerate(zip(before.samples, after.samples, strict=True)):
        row = {"prompt": old["prompt"], "before": old["response"], "after": new["response"]}
        row |= {"gold_before": before.gold[i], "gold_after": after.gold[i]}
        rows.setdefault(row["prompt"], row)
    return list(rows.values())[:number]
