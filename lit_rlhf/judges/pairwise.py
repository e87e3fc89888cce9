"""Comparing in both orders."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.judges.base import Judge
from lit_rlhf.types import Text


class Opinion(NamedTuple):
    """What a judge says of two answers, asked in both orders.

    Args:
        forward: How far the first is better when it is shown first, in [0, 1].
        backward: How far the second is better when it is shown first.
        criteria: By each criterion of a judge with several: the probability that the first is better, see `p_first`.
    """

    forward: float
    backward: float
    criteria: Mapping[str, float] = MappingProxyType({})

    @property
    def p_first(self) -> float:
        """Probability that the first is better, the mean of both orders."""
        return (self.forward + 1 - self.backward) / 2

    @property
    def bias(self) -> float:
        """How far what is shown first is favored for its place, in [-1/2, 1/2]."""
        return (self.forward + self.backward - 1) / 2


def clipped_logit(p: float, clip: float) -> float:
    """The logit of a probability held within [clip, 1 - clip]."""
    p = min(max(p, clip), 1 - clip)
    return math.log(p / (1 - p))


class PairwiseJudge:
    r"""Asks a judge about two answers in both orders: $p = (p_{12} + 1 - p_{21}) / 2$ (arXiv:2309.00267).

    What a judge has for the place that an answer stands in cancels; how much that is, `Opinion.bias` says.

    Args:
        judge: One whose template reads `first` and `second`, and whose words are worth 0 (the second) to 1 (the first).

    Raises:
        ConfigurationError: It scores single answers, or a word is worth less than 0 or more than 1.
    """

    def __init__(self, judge: Judge) -> None:
        if not judge.pairwise:
            raise ConfigurationError(
                "Pairs are compared by a judge whose template reads `first` and `second`; this one reads `response`. "
                "Set its template: pairwise."
            )
        words = judge.verdict.words
        if not all(worth is None or 0 <= worth <= 1 for worth in words.values()):
            raise ConfigurationError(
                "The words of a pairwise judge are worth 0 (the second answer is better) to 1 "
                f"(the first), not {words}."
            )
        self.judge = judge

    def compare(self, pairs: Sequence[tuple[Text, Text, Text]]) -> list[Opinion | None]:
        """Opinions on prompts with two answers each; None where one of the orders has no verdict.

        All questions are asked at once.
        """
        orders = [(p, a, b) for p, a, b in pairs] + [(p, b, a) for p, a, b in pairs]
        cases = [{"prompt": p, "first": a, "second": b} for p, a, b in orders]
        found = self.judge.assess(cases)
        orders_of = zip(found[: len(pairs)], found[len(pairs) :], strict=True)
        opinions: list[Opinion | None] = []
        for forward, backward in orders_of:
            if forward is None or backward is None:
                opinions.append(None)
                continue
            both = [name for name in forward.criteria if name in backward.criteria]
            criteria = {n: (forward.criteria[n] + 1 - backward.criteria[n]) / 2 for n in both}
            opinions.append(Opinion(forward.value, backward.value, criteria))
        return opinions
