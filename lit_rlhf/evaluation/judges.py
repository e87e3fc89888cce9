"""Judges that score answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from lit_rlhf.data import InvalidRowError
from lit_rlhf.evaluation.comparisons import Comparison
from lit_rlhf.evaluation.scorers import Scored, Scorer
from lit_rlhf.judges import Judge, PairwiseJudge
from lit_rlhf.judges.pairwise import clipped_logit

_NO_VERDICT = InvalidRowError("the judge gave no verdict", "it failed or abstained")


@dataclass(eq=False)
class JudgeScorer(Scorer):
    r"""A judge as a reward model.

    One that compares two answers is asked about each pair in both orders, and $s_i = \frac1K\sum_j \operatorname{logit}
    p_{ij}$, as `JudgeReward` has it: of a pair, the difference of scores is the logit of its verdict. One that scores
    single answers gives the value of its verdict.

    Args:
        judge: The judge.
        name: What reports call it.
        clip: Probabilities are held within [clip, 1 - clip].
    """

    judge: Judge
    name: str = "judge"
    clip: float = 0.01

    def __post_init__(self) -> None:
        self.probabilistic = self.judge.pairwise

    def score(
        self, comparisons: Sequence[Comparison], tell: Callable[[int], None] = lambda _: None
    ) -> list[Scored | InvalidRowError]:
        """Scores by the judge's verdicts; of what it fails at there are none."""
        found = self._compare(comparisons) if self.judge.pairwise else self._rate(comparisons)
        tell(len(comparisons))
        return found

    def _rate(self, comparisons: Sequence[Comparison]) -> list[Scored | InvalidRowError]:
        answers = [(each.prompt, answer) for each in comparisons for answer in each.answers]
        cases = [{"prompt": prompt, "response": answer} for prompt, answer in answers]
        values = iter(self.judge.judge(cases))
        found: list[Scored | InvalidRowError] = []
        for each in comparisons:
            own = [next(values) for _ in each.answers]
            known = [value for value in own if value is not None]
            whole = len(known) == len(own)
            found.append(Scored(torch.tensor(known)) if whole else _NO_VERDICT)
        return found

    def _compare(self, comparisons: Sequence[Comparison]) -> list[Scored | InvalidRowError]:
        places = [
            (n, i, j)
            for n, each in enumerate(comparisons)
            for i, j in combinations(range(len(each.answers)), 2)
            if each.answers[i] != each.answers[j]
        ]
        given = ((comparisons[n], i, j) for n, i, j in places)
        asked = [(each.prompt, each.answers[i], each.answers[j]) for each, i, j in given]
        opinions = PairwiseJudge(self.judge).compare(asked)
        totals = [torch.zeros(len(each.answers)) for each in comparisons]
        favors: list[list[float]] = [[] for _ in comparisons]
        failed: set[int] = set()
        for (n, i, j), opinion in zip(places, opinions, strict=True):
            if opinion is None:
                failed.add(n)
                continue
            favors[n].append(opinion.bias)
            share = clipped_logit(opinion.p_first, self.clip) / len(totals[n])
            totals[n][i] += share
            totals[n][j] -= share
        return [
            _NO_VERDICT
            if n in failed
            else Scored(total, favor=sum(favors[n]) / len(favors[n]) if favors[n] else None)
            for n, total in enumerate(totals)
        ]
