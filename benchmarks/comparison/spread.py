"""Medians and their spread."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """Median, least and most of several runs, or of several pairs of runs."""

    median: float
    min: float
    max: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return Spread(median(values), min(values), max(values))

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The ratio of the medians, and the least and most ratio of a pair of runs that followed one another.

    Raises:
        ValueError: The runs don't pair up.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} runs of ours and {len(theirs)} of the peer's make no pairs.")
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Spread(median(ours) / median(theirs), min(pairs), max(pairs))
