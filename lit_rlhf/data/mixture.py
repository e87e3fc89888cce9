"""Several sources as one: what each brings, and how many of its rows an epoch has."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from lit_rlhf.data.conversion import Source
from lit_rlhf.data.formats import Format
from lit_rlhf.data.sources import local_source
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.options import check_option, is_number, is_whole
from lit_rlhf.seeding import generator


@dataclass(frozen=True)
class Portion:
    """One source of a mixture.

    Args:
        path: Of files (see `FileSource`), or of what `save_to_disk` of the `datasets` library wrote.
        source: A source, in place of `path`.
        weight: How many of an epoch's rows come from here, in proportion to the weights of the others; each portion of
            a mixture has one, or none has.
        max_rows: Only the first so many rows are read. None: all.
        format: How its rows become records. None: what the DataModule has as its `format`, or else what reads the first
            rows.

    Raises:
        ConfigurationError: Both or neither of `path` and `source`, or a number out of its range.
    """

    path: str | list[str] | None = None
    source: Source | None = None
    weight: float | None = None
    max_rows: int | None = None
    format: Format | None = None

    def __post_init__(self) -> None:
        given: object = self.source
        if (self.path is None) == (given is None) or not isinstance(given, Source | None):
            raise ConfigurationError(
                f"Portion(path={self.path!r}, source={self.source!r}): give one of the two, a path or a Source."
            )
        valid = self.weight is None or (is_number(self.weight) and 0 < self.weight < float("inf"))
        check_option(valid, self, "weight", self.weight, "above 0, or left out")
        valid = self.max_rows is None or is_whole(self.max_rows, 1)
        check_option(valid, self, "max_rows", self.max_rows, "1 or more, or left out")
        valid = self.format is None or isinstance(self.format, Format)
        check_option(valid, self, "format", self.format, "a Format, or left out")

    def rows(self) -> Source:
        """The source, up to `max_rows`."""
        source = self.source if self.path is None else local_source(self.path)
        assert source is not None  # one of the two is given
        return source if self.max_rows is None else _FirstRows(source, self.max_rows)


class _FirstRows(Source):
    """The first rows of a source.

    Args:
        source: The source.
        number: How many.
    """

    def __init__(self, source: Source, number: int) -> None:
        self.source, self.number = source, number

    def load(self) -> Iterator[Mapping[str, Any]]:
        """Go through them; what lies behind is not read."""
        yield from islice(self.source.load(), self.number)

    def fingerprint(self) -> str:
        """That of the source, and how many."""
        return f"{self.source.fingerprint()} {self.number}"

    def locate(self, row: int) -> str:
        """Where it is in the source."""
        return self.source.locate(row)

    def __str__(self) -> str:
        """What the source is called, and how much of it is read."""
        return f"{self.source} (the first {self.number} rows)"


class Mixture(Source):
    """Several sources, each read by its own format, for `train`, `val` or `test` of a DataModule.

    Without weights an epoch has every row once. With weights it has rows of each portion in their proportion, and ends
    when the portion that lasts shortest has been seen once: then no row is seen more often than others of its portion.
    A larger portion goes on in the next epoch where it stopped, and begins again, in another order, when all its rows
    were seen. Which rows an epoch has depends on `seed` and the epoch alone.

    Args:
        portions: What is mixed, each of them a `path` or a `source`, with a weight, a cap and a format where wanted.

    Raises:
        ConfigurationError: No portion, or weights on some of them alone.

    Example:
        >>> from lit_rlhf.data import RowsSource
        >>> mixture = Mixture(
        ...     [
        ...         Portion(source=RowsSource([{"a": 1}], name="first"), weight=2),
        ...         Portion(source=RowsSource([{"a": 2}, {"a": 3}]), max_rows=1, weight=1),
        ...     ]
        ... )
        >>> list(mixture.load())
        [{'a': 1}, {'a': 2}]
    """

    def __init__(self, portions: list[Portion]) -> None:
        given: object = portions
        valid = isinstance(given, list | tuple) and all(isinstance(each, Portion) for each in given)
        check_option(valid and bool(portions), self, "portions", portions, "one or more Portions")
        weighted = [each.weight is not None for each in portions]
        if any(weighted) and not all(weighted):
            raise ConfigurationError(
                f"Mixture: {sum(weighted)} of {len(weighted)} portions have a weight. Give each of them one, or none."
            )
        self.portions = list(portions)
        self.sources = [each.rows() for each in portions]

    def load(self) -> Iterator[Mapping[str, Any]]:
        """The rows of one after the other."""
        for source in self.sources:
            yield from source.load()

    def fingerprint(self) -> str:
        """Those of the sources."""
        return " ".join(source.fingerprint() for source in self.sources)

    def __str__(self) -> str:
        """The sources."""
        return " + ".join(map(str, self.sources))


@dataclass(frozen=True)
class Shares:
    """Which rows of several portions, that lie one behind the other, an epoch has.

    Args:
        sizes: Rows of each portion.
        weights: Of each.
        names: What messages call them.

    Raises:
        ConfigurationError: A weight is so small that no row of its portion would be seen.

    Example:
        >>> Shares([10, 100], [1.0, 2.0], ["a", "b"]).counts
        [10, 20]
    """

    sizes: Sequence[int]
    weights: Sequence[float]
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, count in zip(self.names, self.counts, strict=False):
            if count == 0:
                raise ConfigurationError(
                    f"Mixture: the weights {list(self.weights)} give an epoch of {sum(self.counts)} rows none of "
                    f"{name}. Raise its weight, or leave it out."
                )

    @property
    def counts(self) -> list[int]:
        """Rows of each portion in an epoch."""
        pairs = list(zip(self.sizes, self.weights, strict=True))
        passes = min(size / weight for size, weight in pairs)
        return [min(round(passes * weight), size) for size, weight in pairs]

    def rows(self, seed: int, epoch: int) -> np.ndarray:
        """Those of an epoch, in no order that counts.

        Args:
            seed: Other seeds, other rows.
            epoch: Counted from 0.
        """
        starts = np.cumsum([0, *self.sizes[:-1]])
        chosen = [
            start + self._portion(place, seed, epoch) for place, start in enumerate(starts.tolist())
        ]
        return np.concatenate(chosen)

    def _portion(self, place: int, seed: int, epoch: int) -> np.ndarray:
        size, count = self.sizes[place], self.counts[place]
        if count == size:
            return np.arange(size)
        first, last = epoch * count, (epoch + 1) * count
        passes = [
            torch.randperm(size, generator=generator(seed, "portion", place, number)).numpy()
            for number in range(first // size, (last - 1) // size + 1)
        ]
        skipped = first % size
        return np.concatenate(passes)[skipped : skipped + count]

    def __str__(self) -> str:
        """How many rows of each an epoch has."""
        parts = [
            f"{count} of the {size} of {name}"
            for count, size, name in zip(self.counts, self.sizes, self.names, strict=True)
        ]
        return f"an epoch has {sum(self.counts)} rows: {', '.join(parts)}"
