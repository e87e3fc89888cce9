"""What labels say, how strongly, and whether raters agree."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from lit_rlhf.data.formats import Format
from lit_rlhf.data.inspection.items import Item


@dataclass(frozen=True)
class Agreement:
    r"""How far single raters agree.

    Args:
        rated: Records with two votes or more.
        votes: Their votes.
        unanimous: Records whose votes all prefer the same answer.
        overruled: Records whose label is the opposite of what most of their votes say.
        share: Share of two votes on one record that prefer the same answer.
        alpha: Krippendorff's $\alpha$ on the interval scale, 1 for full agreement and 0 for chance; None where all
            votes are the same.
    """

    rated: int
    votes: int
    unanimous: int
    overruled: int
    share: float
    alpha: float | None


@dataclass(frozen=True)
class LabelFacts:
    """What the labels of a source say.

    Args:
        values: By field (`margin`, `p_chosen`, `label`, `score`, `step_label`): records, answers or steps by value.
        unlabelled: By optional field: records that lack it, where others have it.
        reversed: Pairs whose `margin` is below 0 or whose `p_chosen` is below 0.5: the second answer is preferred.
        undecided: Pairs that prefer neither: `p_chosen` is 0.5, or `margin` is 0.
        agreement: Of single raters, where the format has their votes.
    """

    values: Mapping[str, Mapping[float, int]]
    unlabelled: Mapping[str, int]
    reversed: int
    undecided: int
    agreement: Agreement | None


class Labels:
    """Counts labels.

    Args:
        reader: The format, which knows where votes stand.
    """

    def __init__(self, reader: Format) -> None:
        self._reader = reader
        self._values: dict[str, Counter[float]] = {}
        self._having: Counter[str] = Counter()
        self._records = self._reversed = self._undecided = 0
        self._rated = self._votes = self._unanimous = self._overruled = 0
        self._alike = self._twos = 0
        # Coincidences of two values.
        self._together: defaultdict[tuple[float, float], float] = defaultdict(float)

    def add(self, item: Item) -> None:
        """Count a record."""
        fields = item.record.fields
        self._records += 1
        for name, value in fields.items():
            self._having[name] += 1
            counts = self._values.setdefault(name, Counter())
            counts.update(
                round(float(v), 4) for v in (value if isinstance(value, tuple) else [value])
            )
        neutral = {"margin": 0.0, "p_chosen": 0.5}
        given = {name: fields[name] for name in neutral if name in fields}
        says = [v - neutral[name] for name, v in given.items() if isinstance(v, float | int)]
        self._reversed += any(value < 0 for value in says)
        self._undecided += bool(says) and all(value == 0 for value in says)
        votes = self._reader.votes(item.row)
        if len(votes) > 1:
            self._count_votes(votes)

    def _count_votes(self, votes: Sequence[float]) -> None:
        signs = [(vote > 0) - (vote < 0) for vote in votes]
        self._rated += 1
        self._votes += len(votes)
        self._unanimous += signs[0] != 0 and len(set(signs)) == 1
        self._overruled += sum(signs) < 0
        for one, other in permutations(range(len(votes)), 2):
            self._twos += 1
            self._alike += signs[one] == signs[other]
            self._together[votes[one], votes[other]] += 1 / (len(votes) - 1)

    def result(self) -> LabelFacts:
        """What was counted."""
        values = {name: dict(sorted(counts.items())) for name, counts in self._values.items()}
        lacking = {
            n: self._records - count for n, count in self._having.items() if count < self._records
        }
        agreement = None
        if self._rated:
            counts = self._rated, self._votes, self._unanimous, self._overruled
            agreement = Agreement(*counts, self._alike / self._twos, _alpha(self._together))
        return LabelFacts(values, lacking, self._reversed, self._undecided, agreement)


def _alpha(together: Mapping[tuple[float, float], float]) -> float | None:
    r"""$\alpha = 1 - D_o / D_e$: mean squared distance of two votes on one record over that of any two votes."""
    totals: defaultdict[float, float] = defaultdict(float)
    for (one, _), weight in together.items():
        totals[one] += weight
    count = sum(totals.values())
    observed = sum(weight * (one - other) ** 2 for (one, other), weight in together.items()) / count
    expected = sum(
        n * m * (one - other) ** 2 for one, n in totals.items() for other, m in totals.items()
    ) / (count * (count - 1))
    return 1 - observed / expected if expected else None
