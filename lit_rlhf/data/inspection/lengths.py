"""Lengths of prompts and answers, and what the better answers of pairs have in common beside being better."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from lit_rlhf.data.inspection.items import Item

LIMITS = (256, 512, 1024, 2048, 4096, 8192, 16384)
_FEATURES: Mapping[str, re.Pattern[str]] = {
    "a list": re.compile(r"(?:^|\n) *(?:[-*•]|\d+[.)])\s"),
    "headings or bold": re.compile(r"(?:^|\n)#{1,6} |\*\*\S"),
    "code": re.compile(r"```|`[^`\n]+`"),
    "a link": re.compile(r"https?://"),
    "a question mark": re.compile(r"\?"),
    "an exclamation mark": re.compile("!"),
    "an apology or refusal": re.compile(
        r"\b(?:sorry|apologi[sz]e|i can(?:no|')t|i am unable|i'm unable|as an ai)\b", re.IGNORECASE
    ),
}


@dataclass(frozen=True)
class Spread:
    """How lengths are spread.

    Args:
        count: Of texts.
        mean: Of their lengths.
        median: Half are at most so long.
        p90: Nine of ten are.
        p99: 99 of 100 are.
        longest: The longest.
        counts: Texts by length.
    """

    count: int
    mean: float
    median: int
    p90: int
    p99: int
    longest: int
    counts: Mapping[int, int] = field(repr=False)


def spread_of(counts: Mapping[int, int]) -> Spread:
    """Sum up lengths.

    Args:
        counts: Texts by length; at least one.

    Example:
        >>> spread_of({2: 3, 10: 1}).mean
        4.0
    """
    total = sum(counts.values())
    mean = sum(length * count for length, count in counts.items()) / total
    median, p90, p99 = quantiles(counts, (0.5, 0.9, 0.99))
    return Spread(total, mean, median, p90, p99, max(counts), dict(sorted(counts.items())))


def quantiles(counts: Mapping[int, int], shares: Sequence[float]) -> list[int]:
    """The least lengths that such shares of all texts are at most.

    Args:
        counts: Texts by length; at least one.
        shares: In [0, 1].

    Example:
        >>> quantiles({2: 3, 10: 1}, (0.5, 0.9))
        [2, 10]
    """
    ordered = sorted(counts)
    seen = list(accumulate(counts[length] for length in ordered))
    return [ordered[bisect_left(seen, share * seen[-1])] for share in shares]


@dataclass(frozen=True)
class PairFacts:
    """The better against the worse answers of pairs; of rankings, the best against the worst.

    Args:
        pairs: How many.
        longer: Pairs whose better answer is the longer one.
        equal: Pairs whose answers are equally long.
        differences: Pairs by length of the better answer minus that of the worse one.
        features: By name: of pairs in which one answer alone has it, how many there are, and in how many it is the
            better answer's.
    """

    pairs: int
    longer: int
    equal: int
    differences: Mapping[int, int] = field(repr=False)
    features: Mapping[str, tuple[int, int]]

    @property
    def share_longer(self) -> float | None:
        """Share of pairs whose better answer is the longer one, of those that differ in length; None: none differs."""
        differing = self.pairs - self.equal
        return self.longer / differing if differing else None


@dataclass(frozen=True)
class OriginFacts:
    """Records that come from one place.

    Args:
        records: Those used.
        prompt: Mean length of their prompts.
        answer: Mean length of their answers; None: they have none.
        longer: Pairs whose better answer is the longer one.
        differing: Pairs whose answers differ in length.
    """

    records: int
    prompt: float
    answer: float | None
    longer: int
    differing: int


@dataclass(frozen=True)
class LengthFacts:
    """Lengths of the records of a source.

    Args:
        unit: tokens or characters.
        parts: By part: prompt, chosen, rejected and so on.
        over: Records by limit whose prompt and longest answer together are longer than that.
        pair: What better answers have in common; None where no answer is better.
        origins: By what rows say they come from.
    """

    unit: str
    parts: Mapping[str, Spread]
    over: Mapping[int, int]
    pair: PairFacts | None
    origins: Mapping[str, OriginFacts]


class Lengths:
    """Counts lengths.

    Args:
        unit: What they are counted in.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._parts: dict[str, Counter[int]] = {}
        self._over: Counter[int] = Counter()
        self._differences: Counter[int] = Counter()
        self._origins: dict[str, list[int]] = {}
        self._features: dict[str, list[int]] = {name: [0, 0] for name in _FEATURES}

    def add(self, item: Item) -> None:
        """Count a record."""
        prompt, answers = item.lengths
        if item.prompt:
            self._count("prompt", prompt)
        for name, length in zip(item.names, answers, strict=True):
            self._count(name, length)
        origin = self._origins.setdefault(item.origin, [0] * 6)
        for place, count in enumerate((1, prompt, len(answers), sum(answers))):
            origin[place] += count
        whole = prompt + max(answers, default=0)
        for limit in LIMITS:
            if whole <= limit:
                break
            self._over[limit] += 1
        if item.pair is not None:
            better, worse = item.pair
            difference = answers[better] - answers[worse]
            self._differences[difference] += 1
            origin[4] += difference > 0
            origin[5] += difference != 0
            for name, pattern in _FEATURES.items():
                has = [bool(pattern.search(item.answers[place])) for place in (better, worse)]
                if has[0] != has[1]:
                    self._features[name][0] += 1
                    self._features[name][1] += has[0]

    def _count(self, part: str, length: int) -> None:
        self._parts.setdefault(part, Counter())[length] += 1

    def result(self) -> LengthFacts:
        """What was counted."""
        pair, total = None, sum(self._differences.values())
        if total:
            longer = sum(count for length, count in self._differences.items() if length > 0)
            features = {name: (both[0], both[1]) for name, both in self._features.items()}
            differences = dict(sorted(self._differences.items()))
            pair = PairFacts(total, longer, self._differences[0], differences, features)
        parts = {name: spread_of(counts) for name, counts in self._parts.items()}
        origins = {
            name: OriginFacts(
                records, prompts / records, total / answers if answers else None, longer, differing
            )
            for name, (records, prompts, answers, total, longer, differing) in self._origins.items()
        }
        return LengthFacts(self.unit, parts, dict(self._over), pair, origins)
