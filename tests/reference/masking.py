"""Slow references of `functional.masking`: plain Python over lists."""

import statistics
from collections.abc import Sequence

Row = Sequence[float]


def kept(x: Sequence[Row], mask: Sequence[Sequence[bool]]) -> list[list[float]]:
    return [
        [v for v, m in zip(row, flags, strict=True) if m]
        for row, flags in zip(x, mask, strict=True)
    ]


def row_sums(x: Sequence[Row], mask: Sequence[Sequence[bool]]) -> list[float]:
    return [sum(row) for row in kept(x, mask)]


def row_means(x: Sequence[Row], mask: Sequence[Sequence[bool]]) -> list[float]:
    return [sum(row) / len(row) if row else 0.0 for row in kept(x, mask)]


def whitened(x: Sequence[Row], mask: Sequence[Sequence[bool]], center: bool) -> list[list[float]]:
    values = [v for row in kept(x, mask) for v in row]
    mean, std = statistics.fmean(values), statistics.stdev(values)
    shift = 0.0 if center else mean
    return [
        [(v - mean) / std + shift if m else 0.0 for v, m in zip(row, flags, strict=True)]
        for row, flags in zip(x, mask, strict=True)
    ]
