"""Means by subset of the data, over batches and processes."""

import math
from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_rlhf.distributed import gather_objects

_MOST = 100


class SubsetMeans:
    """Sums and counts of a number by the subset that its row names; processes may see different subsets."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    def update(self, names: Sequence[str], values: Tensor) -> None:
        """Take in rows.

        Args:
            names: B subsets, "" for none.
            values: (B,), nan in rows that it doesn't concern.
        """
        for name, value in zip(names, values.tolist(), strict=True):
            if name and not math.isnan(value):
                total, count = self._seen.get(name, (0.0, 0))
                self._seen[name] = total + value, count + 1

    def compute(self) -> dict[str, tuple[float, int]]:
        """Mean and number of rows by subset, the same on each process; forgets what was seen."""
        joined: dict[str, tuple[float, int]] = {}
        for seen in gather_objects(self._seen):
            for name, (total, count) in seen.items():
                before = joined.get(name, (0.0, 0))
                joined[name] = before[0] + total, before[1] + count
        self._seen = {}
        if len(joined) > _MOST:
            rank_zero_warn(
                f"The column `subset` of the data has {len(joined)} values, so it names no parts: accuracy is not "
                f"told by subset. Name the column otherwise, or give it {_MOST} values at most."
            )
            return {}
        return {name: (total / count, count) for name, (total, count) in sorted(joined.items())}
