"""Numbers of an evaluation that are made of several metrics; plain functions of tensors."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.regression import spearman_corrcoef

from lit_rlhf.metrics import (
    CalibrationError,
    Estimate,
    best_of_n_curve,
    best_temperature,
    bootstrap_mean,
    brier_score,
    wilson_mean,
)


@dataclass(frozen=True)
class Subset:
    """Accuracy on a part of the data.

    Attributes:
        name: Of the subset.
        rows: Comparisons in it.
        accuracy: Mean credit with Wilson's interval.
    """

    name: str
    rows: int
    accuracy: Estimate


def subset_accuracies(names: Sequence[str], worth: Tensor, clusters: Tensor) -> list[Subset]:
    """Accuracy by subset, in the order in which they come; none where rows name no subset.

    Args:
        names: (n) of subsets.
        worth: (n,) credit of each.
        clusters: (n,) which prompt.
    """
    found = []
    for name in dict.fromkeys(names):
        own = torch.tensor([each == name for each in names])
        found.append(Subset(name, int(own.sum()), wilson_mean(worth[own], clusters[own])))
    return [] if len(found) == 1 and not found[0].name else found


@dataclass(frozen=True)
class Calibration:
    """Whether the sigmoid of a margin is the probability that it claims to be.

    Attributes:
        error: Expected calibration error, see `CalibrationError`.
        brier: Brier score; a coin has 0.25.
        temperature: What margins are best divided by; above 1 the model is too sure.
        error_divided: The calibration error of each half of the prompts, its margins divided by what fits the other
            half best: nothing is judged on what was fitted. nan of one prompt.
        bins: Mean confidence, mean agreement and pairs of each bin.
    """

    error: float
    brier: float
    temperature: float
    error_divided: float
    bins: Sequence[tuple[float, float, int]]


def calibrate(margins: Tensor, p_chosen: Tensor, clusters: Tensor | None = None) -> Calibration:
    """How well calibrated margins are.

    Args:
        margins: (n,).
        p_chosen: (n,) probability that a rater prefers the better answer.
        clusters: (n,) which prompt. None: each of its own.
    """
    nothing = torch.zeros_like(margins)
    plain, divided = CalibrationError(), CalibrationError()
    plain.update(margins, nothing, p_chosen)
    prompts = torch.arange(len(margins)) if clusters is None else clusters
    odd = prompts.unique(return_inverse=True)[1] % 2 == 1
    both = bool(odd.any())
    for own in (odd, ~odd) if both else ():
        other = best_temperature(margins[~own], p_chosen[~own])
        divided.update(margins[own] / other, nothing[own], p_chosen[own])
    return Calibration(
        error=float(plain.compute()),
        brier=brier_score(margins, p_chosen),
        temperature=best_temperature(margins, p_chosen),
        error_divided=float(divided.compute()) if both else float("nan"),
        bins=plain.bins(),
    )


def correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's correlation of ranks; nan where one of them does not vary.

    Args:
        first: (n,).
        second: (n,).
    """
    if len(first) < 2 or not bool(first.std() > 0) or not bool(second.std() > 0):
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it keeps all numbers, which are few
        return float(spearman_corrcoef(first, second))


@dataclass(frozen=True)
class BestOf:
    """What choosing the best-scored of n answers is worth to raters.

    Attributes:
        rows: Comparisons with at least as many answers as the curve has points.
        picked: For n = 1 to K, by the model, with bootstrap intervals.
        best: By the raters themselves.
    """

    rows: int
    picked: Sequence[Estimate]
    best: Sequence[float]


def best_of(
    rows: Sequence[tuple[Tensor, Sequence[float]]], clusters: Tensor, seed: int = 0
) -> BestOf | None:
    """The curve over rows with as many answers as most have, or more; None where that are fewer than three.

    Args:
        rows: Scores (K,) and values (K) of each.
        clusters: (n,) as for `bootstrap_mean`.
        seed: Of the bootstrap.
    """
    most = Counter(len(values) for _, values in rows).most_common(1)[0][0]
    if most < 3:
        return None
    enough = torch.tensor([len(values) >= most for _, values in rows])
    used = [(scores, torch.tensor(values)) for scores, values in rows if len(values) >= most]
    picked = torch.stack([best_of_n_curve(scores, values)[:most] for scores, values in used])
    best = torch.stack([best_of_n_curve(values, values)[:most] for _, values in used])
    estimates = [bootstrap_mean(column, clusters[enough], seed=seed) for column in picked.T]
    return BestOf(len(used), estimates, best.mean(0).tolist())


@dataclass(frozen=True)
class Doubt:
    """Whether an ensemble is unsure where it is wrong.

    Attributes:
        members: How many there are.
        auroc: How probably the members disagree more on a comparison that is wrong than on one that is right. At 1/2
            their disagreement tells nothing; nan where all are right, or all wrong.
        quarters: Accuracy of the comparisons by disagreement, from the least to the most, a quarter of them each.
        spread: Mean standard deviation of the members' margins.
    """

    members: int
    auroc: float
    quarters: Sequence[Estimate]
    spread: float


def margin_deviation(members: Tensor, first: int = 0, second: int = 1) -> Tensor:
    """Standard deviation, over the members of an ensemble, of how much better one answer is than another: a scalar.

    Args:
        members: (M, K) scores of K answers.
        first: Number of an answer.
        second: Of another.
    """
    return (members[:, first] - members[:, second]).std(correction=0)


def doubt(
    members: Sequence[Tensor | None],
    pairs: Sequence[Sequence[tuple[int, int]]],
    right: Tensor,
    clusters: Tensor | None = None,
) -> Doubt | None:
    """What the members of an ensemble say by disagreeing; None where there are none.

    Args:
        members: (M, K) scores of each comparison.
        pairs: Its pairs of answers, whose margins' deviation over members is averaged.
        right: (n,) bool, whether the mean of members is right.
        clusters: (n,) as for `wilson_mean`.
    """
    known = [each for each in members if each is not None]
    if not known or len(known) < len(members):
        return None
    spreads = torch.stack(
        [
            torch.stack([margin_deviation(scores, *pair) for pair in own]).mean()
            for scores, own in zip(known, pairs, strict=True)
        ]
    )
    order = spreads.argsort(stable=True)
    both = bool(right.any()) and not bool(right.all())
    return Doubt(
        members=len(known[0]),
        auroc=float(binary_auroc(spreads, (~right).long())) if both else float("nan"),
        quarters=[
            wilson_mean(right[part].double(), None if clusters is None else clusters[part])
            for part in order.chunk(4)
        ],
        spread=float(spreads.mean()),
    )
