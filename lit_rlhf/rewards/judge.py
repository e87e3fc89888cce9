"""Rewards by a judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Literal

import torch

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.judges import Judge, Opinion, PairwiseJudge
from lit_rlhf.judges.pairwise import clipped_logit
from lit_rlhf.models import Backbone
from lit_rlhf.options import check_choice, check_option, is_number
from lit_rlhf.rewards.base import Reward, as_scores
from lit_rlhf.types import Completions, Scores, Text

_TIE = Opinion(0.5, 0.5)


class JudgeReward(Reward):
    r"""What a judge says of completions (RLAIF without a reward model, arXiv:2309.00267).

    A judge that scores single answers gives the value of its verdict. One that compares two gives
    $s_i = \frac{1}{K}\sum_j \operatorname{logit} p_{ij}$ over the K samples of a prompt, each pair asked in both
    orders; the sum has $j = i$ too, with logit 0, so that $s_i - s_j = \operatorname{logit} p_{ij}$ where p follows a
    Bradley-Terry model: that is the reward which `SoftLabels` turns into p again. K (K - 1) questions per prompt.

    The judge reads prompts as the data set has them, messages as messages. Completions without a verdict, for the judge
    abstains, or fails and its `failures` is "null", are `no_verdict`'s. Of a judge with several criteria the scores by
    each are the parts, logged as `rewards/<criterion>/mean`; where one has no verdict, it gets the mean.

    Args:
        judge: The judge.
        no_verdict: "mean": they get the mean of the others of their prompt, or else of the batch, and pairs without a
            verdict count as ties. "skip": they are left out of training, counted as `reward/failed`; of pairs, those
            count that have a verdict, and a completion that has none in any is left out.
        clip: Probabilities are held within [clip, 1 - clip], above 0 and below 1/2: logit 4.6 at most with 0.01.

    Raises:
        ConfigurationError: `clip` is out of range, or a pairwise judge's words are.
    """

    def __init__(
        self, judge: Judge, clip: float = 0.01, no_verdict: Literal["mean", "skip"] = "mean"
    ) -> None:
        super().__init__()
        within = is_number(clip) and 0 < clip < 0.5
        check_option(within, self, "clip", clip, "above 0 and below 1/2")
        self.judge = judge
        self.pairs = PairwiseJudge(judge) if judge.pairwise else None
        self.clip = clip
        self.skip = no_verdict == "skip"
        check_choice(self, "no_verdict", no_verdict, "mean", "skip")

    def attach(self, backbone: Backbone) -> None:
        """Let the judge meet the policy."""
        self.judge.attach(backbone)

    @torch.no_grad()
    def score(self, completions: Completions) -> Scores:
        """(N,) float32.

        Raises:
            ConfigurationError: A pairwise judge, and one sample per prompt.
            DataError: No completion of the batch got a verdict.
            ServiceError: A question failed, and the judge's `failures` is "raise".
        """
        self.judge.to(completions.tokens.device)
        given = completions.prompts if completions.given is None else completions.given
        prompts: list[Text] = list(given)
        samples = len(completions.responses) // max(len(completions.prompt_ids), 1)
        if self.pairs is not None:
            return self._compare(self.pairs, prompts, completions, samples)
        cases = zip(prompts, completions.responses, strict=True)
        found = self.judge.assess([{"prompt": prompt, "response": text} for prompt, text in cases])
        values = [None if each is None else each.value for each in found]
        criteria = [{} if each is None else each.criteria for each in found]
        parts = {name: [own.get(name) for own in criteria] for name in self.judge.criteria}
        return self._scores(values, parts, completions)

    def _scores(
        self,
        values: Sequence[float | None],
        parts: Mapping[str, Sequence[float | None]],
        completions: Completions,
    ) -> Scores:
        if all(value is None for value in values):
            raise DataError(
                f"The judge gave no verdict on any of {len(values)} completions. Look at its template and words."
            )
        known = {name: part for name, part in parts.items() if any(x is not None for x in part)}
        filled = {name: as_scores(part, completions).total for name, part in known.items()}
        return replace(as_scores(values, completions, skip=self.skip), parts=filled)

    def _compare(
        self, judge: PairwiseJudge, prompts: list[Text], completions: Completions, samples: int
    ) -> Scores:
        if samples < 2:
            raise ConfigurationError(
                "JudgeReward compares the samples of a prompt with each other, and there is one of each. Set "
                "num_samples to 2 or more, or take a judge that scores single answers (template: score)."
            )
        responses = completions.responses
        groups = [range(s, s + samples) for s in range(0, len(responses), samples)]
        every = [pair for group in groups for pair in combinations(group, 2)]
        asked = [(i, j) for i, j in every if responses[i] != responses[j]]
        found = judge.compare([(prompts[i], responses[i], responses[j]) for i, j in asked])
        opinions = dict(zip(asked, found, strict=True))

        def points(said: Callable[[Opinion], float | None]) -> list[float | None]:
            """Of each sample: the mean of its logits against all samples, itself included."""
            sums, known = [0.0] * len(responses), [1] * len(responses)
            for i, j in every:
                opinion = opinions.get((i, j), _TIE)  # equal answers are no better than each other
                p = None if opinion is None else said(opinion)
                if p is None and self.skip:
                    continue
                logit = clipped_logit(0.5 if p is None else p, self.clip)
                sums[i], sums[j] = sums[i] + logit, sums[j] - logit
                known[i], known[j] = known[i] + 1, known[j] + 1
            return [None if n == 1 else s / n for s, n in zip(sums, known, strict=True)]

        parts = {name: points(partial(_of, name)) for name in self.judge.criteria}
        return self._scores(points(lambda opinion: opinion.p_first), parts, completions)


def _of(criterion: str, opinion: Opinion) -> float | None:
    return 0.5 if opinion is _TIE else opinion.criteria.get(criterion)
