"""Medians and their spread."""

from collections.abc import Sequence
from statistics import median

Spread = dict[str, float]
"""Median, least and most of several runs, or of several pairs of runs."""


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The ratio of the medians, and the least and most ratio of a pair of runs that followed one another.

    Raises:
        ValueError: The runs don't pair up.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} runs of ours and {len(theirs)} of the peer's make no pairs.")
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return spread(pairs) | {"median": median(ours) / median(theirs)}
