"""Two reward models on the same comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.evaluate import RewardEvaluation, ScoredComparison
from lit_rlhf.metrics import Estimate, bootstrap_mean, mcnemar_test


@dataclass(frozen=True)
class Difference:
    """What tells two models apart; differences are the second less the first.

    Attributes:
        rows: Comparisons that both scored.
        accuracy: Difference in accuracy, by a paired bootstrap over prompts.
        margin: Difference of the mean margins, each in standard deviations of its model's, likewise.
        both: Comparisons that both get right.
        first_only: That the first alone does.
        second_only: That the second alone does.
        neither: That none does.
        p_value: McNemar's exact test that both are right equally often, two-sided.
        same: Share of comparisons with the same answer at the top.
        apart: The comparisons that one alone gets right, with both models' scores.
    """

    rows: int
    accuracy: Estimate
    margin: Estimate
    both: int
    first_only: int
    second_only: int
    neither: int
    p_value: float
    same: float
    apart: Sequence[tuple[ScoredComparison, ScoredComparison]]


def compare_rewards(first: RewardEvaluation, second: RewardEvaluation, seed: int = 0) -> Difference:
    """Compare two evaluations on the comparisons that both scored.

    Args:
        first: Of one model.
        second: Of another one, on the same data.
        seed: Of the bootstrap.

    Raises:
        DataError: They have no comparison in common.
    """
    theirs = {one.key: one for one in second.scored}
    shared = [(one, theirs[one.key]) for one in first.scored if one.key in theirs]
    if not shared:
        raise DataError(
            f"{first.model} and {second.model} scored no comparison in common, of {first.data.source} and "
            f"{second.data.source}."
        )
    clusters = torch.tensor([one.cluster for one, _ in shared])
    units = first.margin_std or 1.0, second.margin_std or 1.0
    margins = [_margin(other) / units[1] - _margin(one) / units[0] for one, other in shared]
    gained = [other.credit - one.credit for one, other in shared]
    right = [(one.right, other.right) for one, other in shared]
    first_only, second_only = right.count((True, False)), right.count((False, True))
    return Difference(
        rows=len(shared),
        accuracy=bootstrap_mean(torch.tensor(gained), clusters, seed=seed),
        margin=bootstrap_mean(torch.tensor(margins), clusters, seed=seed),
        both=right.count((True, True)),
        first_only=first_only,
        second_only=second_only,
        neither=right.count((False, False)),
        p_value=mcnemar_test(first_only, second_only),
        same=sum(int(a.scores.argmax()) == int(b.scores.argmax()) for a, b in shared) / len(shared),
        apart=[(one, other) for one, other in shared if one.right != other.right],
    )


def _margin(one: ScoredComparison) -> float:
    """Mean over the comparison's pairs."""
    pairs = one.comparison.pairs()
    return sum(float(one.scores[i] - one.scores[j]) for i, j in pairs) / len(pairs)
