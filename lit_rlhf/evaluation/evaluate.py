"""A reward model on comparisons: all the numbers of its report."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_rlhf.data import InvalidRowError
from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.comparisons import Comparison, Comparisons, share_sketched, text_of
from lit_rlhf.evaluation.measures import (
    BestOf,
    Calibration,
    Doubt,
    Subset,
    best_of,
    calibrate,
    correlation,
    doubt,
    subset_accuracies,
)
from lit_rlhf.evaluation.rewardbench import section_scores, ties_score
from lit_rlhf.evaluation.robustness import Turned, perturb
from lit_rlhf.evaluation.scorers import Scored, Scorer
from lit_rlhf.evaluation.texts import FEATURES
from lit_rlhf.metrics import (
    Bias,
    Ceiling,
    Estimate,
    agreement,
    best_of_credit,
    bootstrap_mean,
    feature_bias,
    rater_ceiling,
    wilson_mean,
)


@dataclass(frozen=True)
class ScoredComparison:
    """A comparison, its scores, and what they are worth.

    Attributes:
        comparison: The answers.
        scores: (K,) float32.
        cluster: Which prompt it is of; comparisons of one prompt depend on each other.
        credit: How far the scores agree with the raters, in [0, 1]: for a pair see `agreement`; for a ranking the share
            of its pairs in order; for sets see `best_of_credit`.
        right: Whether the answer that scores highest is one that raters hold best, alone at the top.
    """

    comparison: Comparison
    scores: Tensor
    cluster: int
    credit: float
    right: bool

    @property
    def key(self) -> tuple[int, int]:
        """Which comparison of the data it is, whoever scores it."""
        return self.comparison.row, self.comparison.part


@dataclass(frozen=True)
class Pairs:
    """All pairs of answers whose values differ, (n,) each.

    Attributes:
        margins: Score of the better answer less that of the worse.
        p_chosen: Probability that a rater prefers the better one.
        clusters: Which prompt.
        differences: By feature, how much more of it the better answer has.
    """

    margins: Tensor
    p_chosen: Tensor
    clusters: Tensor
    differences: Mapping[str, Tensor]

    @classmethod
    def of(cls, scored: Sequence[ScoredComparison]) -> "Pairs":
        """Of scored comparisons."""
        places = [(one, i, j) for one in scored for i, j in one.comparison.pairs()]
        texts = [[text_of(one.comparison.answers[k]) for k in pair] for one, *pair in places]
        counts = {
            name: torch.tensor([count(a) - count(b) for a, b in texts], dtype=torch.float64)
            for name, count in FEATURES.items()
        }
        return cls(
            torch.stack([one.scores[i] - one.scores[j] for one, i, j in places]).double(),
            torch.tensor([one.comparison.p_chosen for one, _, _ in places], dtype=torch.float64),
            torch.tensor([one.cluster for one, _, _ in places]),
            counts,
        )


@dataclass(frozen=True)
class RewardEvaluation:
    """What comparisons tell of a reward model. Shares have Wilson intervals, means those of a bootstrap over prompts.

    Attributes:
        model: Its name.
        data: Where the comparisons come from, and how the rows were read.
        left_out: Rows and comparisons that were not scored, by reason.
        scored: The comparisons with their scores.
        pairs: Their pairs of answers.
        accuracy: Mean credit.
        chance: What scores drawn at random would get.
        ceiling: What raters reach, where the data say how sure they are.
        subsets: Accuracy by subset.
        sections: RewardBench's sections, where the subsets are its.
        ties: Share of pairs that the model scores alike.
        margin: Mean margin.
        margin_std: Standard deviation of the margins: the unit to compare models by.
        length_difference: Mean characters that the better answer is longer.
        length_correlation: Spearman's, of margins and differences in length.
        calibration: Of the sigmoid of margins; None of what scores no probabilities.
        fitted: Share of the pairs that the temperature of the model was fitted on: its calibration then judges itself.
        biases: By feature.
        position: Of a judge, how far it favors what is shown first, in [-1/2, 1/2].
        doubt: Of an ensemble, what the disagreement of its members tells.
        turned: How often small changes turn its verdict.
        best_of: What choosing among answers gains, where there are three or more.
    """

    model: str
    data: Comparisons
    left_out: Mapping[str, int]
    scored: Sequence[ScoredComparison]
    pairs: Pairs
    accuracy: Estimate
    chance: float
    ceiling: Ceiling | None
    subsets: Sequence[Subset]
    sections: Mapping[str, float]
    ties: float
    margin: Estimate
    margin_std: float
    length_difference: Estimate
    length_correlation: float
    calibration: Calibration | None
    fitted: float
    biases: Mapping[str, Bias]
    position: Estimate | None
    doubt: Doubt | None
    turned: Sequence[Turned]
    best_of: BestOf | None


def evaluate_reward(
    scorer: Scorer,
    data: Comparisons,
    *,
    perturbed: int = 200,
    seed: int = 0,
    tell: Callable[[int], None] = lambda _: None,
) -> RewardEvaluation:
    """Score comparisons and look at the scores from all sides.

    Args:
        scorer: The reward model, or a judge.
        data: The comparisons.
        perturbed: How many of them are scored again after small changes; 0: none.
        seed: Of the bootstrap, and of which these are.
        tell: Is told how many comparisons are scored.

    Raises:
        DataError: None could be scored.
    """
    scored, given, left_out = _score(scorer, data, tell)
    pairs = Pairs.of(scored)
    worth = torch.tensor([one.credit for one in scored], dtype=torch.float64)
    clusters = torch.tensor([one.cluster for one in scored])
    subsets = subset_accuracies([one.comparison.subset for one in scored], worth, clusters)
    lengths = pairs.differences["characters"]
    rated = [one.comparison for one in scored if one.comparison.kind == "pair"]
    votes = [each.votes for each in rated if each.votes is not None]
    ceiling = rater_ceiling(
        torch.tensor([each.p_chosen for each in rated]),
        torch.tensor(votes) if len(votes) == len(rated) else None,
    )
    biases = {
        name: bias
        for name, more in pairs.differences.items()
        if (bias := feature_bias(pairs.margins, pairs.p_chosen, more, pairs.clusters)) is not None
    }
    favors = [each.favor for each in given if each.favor is not None]
    favored = clusters[torch.tensor([each.favor is not None for each in given])]
    judged = [(one.comparison, one.scores, one.cluster) for one in scored]
    calibration = None
    if scorer.probabilistic:
        calibration = calibrate(pairs.margins, pairs.p_chosen, pairs.clusters)
    return RewardEvaluation(
        model=scorer.name,
        data=data,
        left_out=left_out,
        scored=scored,
        pairs=pairs,
        accuracy=wilson_mean(worth, clusters),
        chance=sum(one.comparison.chance for one in scored) / len(scored),
        ceiling=ceiling if data.soft else None,
        subsets=subsets,
        sections=_sections(scored, subsets),
        ties=float((pairs.margins == 0).double().mean()),
        margin=bootstrap_mean(pairs.margins, pairs.clusters, seed=seed),
        margin_std=float(pairs.margins.std(correction=0)),
        length_difference=bootstrap_mean(lengths, pairs.clusters, seed=seed),
        length_correlation=correlation(pairs.margins, lengths),
        calibration=calibration,
        fitted=share_sketched(scorer.fitted_pairs, [one.comparison for one in scored]),
        biases=biases,
        position=bootstrap_mean(torch.tensor(favors), favored, seed=seed) if favors else None,
        doubt=doubt(
            [each.members for each in given],
            [one.comparison.pairs() for one in scored],
            torch.tensor([one.right for one in scored]),
            clusters,
        ),
        turned=perturb(scorer, judged, perturbed, seed) if perturbed else [],
        best_of=best_of([(one.scores, one.comparison.values) for one in scored], clusters, seed),
    )


def _score(
    scorer: Scorer, data: Comparisons, tell: Callable[[int], None]
) -> tuple[list[ScoredComparison], list[Scored], Counter[str]]:
    """What could be scored, judged and as it was given, and how many were left out, by reason.

    Comparisons of one prompt are one cluster. Where there is no other prompt each is one by itself: intervals then hold
    for that prompt, of which all are examples.
    """
    left_out: Counter[str] = Counter(data.left_out)
    clusters: dict[str, int] = {}
    scored: list[ScoredComparison] = []
    given: list[Scored] = []
    for comparison, found in zip(data.items, scorer.score(data.items, tell), strict=True):
        if isinstance(found, InvalidRowError):
            left_out[found.reason] += 1
            continue
        if not bool(found.total.isfinite().all()):
            left_out["scores that are not finite"] += 1
            continue
        cluster = clusters.setdefault(comparison.record().prompt_key(), len(clusters))
        scored.append(judge_scores(comparison, found.total, cluster))
        given.append(found)
    if not scored:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise DataError(f"{scorer.name} could score nothing of {data.source}: {reasons}.")
    if len(clusters) == 1:
        scored = [replace(one, cluster=place) for place, one in enumerate(scored)]
    return scored, given, left_out


def judge_scores(comparison: Comparison, scores: Tensor, cluster: int) -> ScoredComparison:
    """What scores are worth; see `ScoredComparison`.

    Args:
        comparison: The answers.
        scores: (K,).
        cluster: Which prompt it is of.
    """
    values = torch.tensor(comparison.values)
    margins = torch.stack([scores[i] - scores[j] for i, j in comparison.pairs()]).double()
    if comparison.kind == "sets":
        credit = best_of_credit(scores, values > 0)
    else:
        p = torch.full_like(margins, comparison.p_chosen)
        credit = float(agreement(margins, p).mean())
    top, best = scores == scores.max(), values == values.max()
    right = bool(best[top].all()) and int(top.sum()) <= int(best.sum())
    return ScoredComparison(comparison, scores, cluster, credit, right)


def _sections(scored: Sequence[ScoredComparison], subsets: Sequence[Subset]) -> dict[str, float]:
    accuracies = {subset.name: subset.accuracy.value for subset in subsets}
    rows = [
        (one.comparison.name, one.scores, torch.tensor(one.comparison.values) > 0)
        for one in scored
        if one.comparison.subset == "Ties"
    ]
    if (score := ties_score(rows)) is not None:
        accuracies["Ties"] = score
    return section_scores(accuracies)
