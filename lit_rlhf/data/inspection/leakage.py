"""Texts of a split that stand in another one too: by runs of words, and by whole prompts."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_rlhf.data.inspection.items import Item
from lit_rlhf.data.inspection.words import hash_runs, split_words
from lit_rlhf.data.records import Row, UnreadableRow

_MOST_SHOWN = 8
_MOST_TEXTS = 2000


@dataclass(frozen=True)
class SharedRun:
    """A run of words that stands in both.

    Args:
        text: The words.
        records: Records of the split that have it.
        where: The first of these.
        other: A row of the other set that has it.
    """

    text: str
    records: int
    where: str
    other: str


@dataclass(frozen=True)
class Leak:
    """What a split shares with an evaluation set, or with a split that is held out.

    Args:
        split: The split.
        other: The other set.
        run: Words of a run.
        records: Records of the split.
        records_hit: Those with a run of words of the other set.
        rows: Rows of the other set.
        rows_hit: Those with a run of words of the split.
        rows_covered: Those of whose runs four of five stand in the split.
        prompts_shared: Records of the split whose prompt is, word for word, a text of the other set.
        shared: Runs that most records share.
    """

    split: str
    other: str
    run: int
    records: int
    records_hit: int
    rows: int
    rows_hit: int
    rows_covered: int
    prompts_shared: int
    shared: Sequence[SharedRun]


class HeldOut:
    """The runs of words of an evaluation set, or of a split that is held out: 16 bytes for each word.

    Args:
        name: What it is called.
        run: Words of a run.
        locate: Says where a row is, by its number.
    """

    def __init__(self, name: str, run: int, locate: Callable[[int], str]) -> None:
        self.name, self.run, self.locate = name, run, locate
        self._runs, self._owners = array("Q"), array("Q")
        self._texts = array("Q")
        self.rows = 0

    def add(self, texts: Iterable[np.ndarray]) -> None:
        """Add a row.

        Args:
            texts: Hashes of the words of each of its texts, (n,) uint64.
        """
        for words in texts:
            runs = hash_runs(words, self.run)
            self._runs.frombytes(runs.tobytes())
            self._owners.extend([self.rows] * len(runs))
            self._texts.append(_whole(words))
        self.rows += 1

    def sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Its runs in order, once each, the row of the first of each, and the whole texts: (n,), (n,), (m,)."""
        runs, first = np.unique(np.frombuffer(self._runs, dtype=np.uint64), return_index=True)
        texts = np.unique(np.frombuffer(self._texts, dtype=np.uint64))
        return runs, np.frombuffer(self._owners, dtype=np.uint64)[first], texts

    def covered(self, runs: np.ndarray, hit: np.ndarray) -> tuple[int, int]:
        """Rows with a run that was hit, and rows of whose runs four of five were.

        Args:
            runs: (n,) in order.
            hit: (n,) whether each was.
        """
        every = np.frombuffer(self._runs, dtype=np.uint64)
        owner = np.frombuffer(self._owners, dtype=np.uint64).astype(np.int64)
        found = hit[np.searchsorted(runs, every)] if len(every) else np.empty(0, dtype=bool)
        of_row = np.bincount(owner, minlength=self.rows)
        hits = np.bincount(owner, weights=found, minlength=self.rows)
        return int((hits > 0).sum()), int(((hits >= 0.8 * of_row) & (hits > 0)).sum())


class Leakage:
    """Looks for the runs of one held-out set in the records of a split.

    Args:
        split: What the split is called.
        other: The held-out set.
    """

    def __init__(self, split: str, other: HeldOut) -> None:
        self._split, self._other = split, other
        self._runs, self._owner, self._texts = other.sorted()
        self._hit = np.zeros(len(self._runs), dtype=np.int64)  # records that have each
        self._shown: dict[int, tuple[str, int]] = {}
        self._records = self._records_hit = self._prompts = 0

    def add(self, item: Item) -> None:
        """Look at a record."""
        self._records += 1
        whole = np.array([_whole(item.words[0])], dtype=np.uint64)
        self._prompts += bool(item.prompt) and bool(_in(self._texts, whole)[0])
        places: set[int] = set()
        for text, words in zip((item.prompt, *item.answers), item.words, strict=True):
            runs = hash_runs(words, self._other.run)
            found = _in(self._runs, runs)
            if not found.any():
                continue
            at = np.searchsorted(self._runs, runs[found]).tolist()
            if len(self._shown) < _MOST_TEXTS:
                spelled = split_words(text)
                for start, place in zip(np.flatnonzero(found), at, strict=True):
                    run = spelled[start : start + self._other.run]
                    self._shown.setdefault(place, (" ".join(run), item.number))
            places.update(at)
        if places:
            self._records_hit += 1
            self._hit[list(places)] += 1

    def result(self, locate: Callable[[int], str]) -> Leak:
        """What was found.

        Args:
            locate: Says where a row of the split is, by its number.
        """
        rows_hit, covered = self._other.covered(self._runs, self._hit > 0)
        shown, taken = [], set()
        for place in sorted(self._shown, key=lambda place: -self._hit[place]):
            text, number = self._shown[place]
            if (number, int(self._owner[place])) in taken:  # a long passage is one find, not many
                continue
            taken.add((number, int(self._owner[place])))
            other = self._other.locate(int(self._owner[place]))
            shown.append(SharedRun(text, int(self._hit[place]), locate(number), other))
            if len(shown) == _MOST_SHOWN:
                break
        counts = self._records, self._records_hit, self._other.rows, rows_hit, covered
        return Leak(self._split, self._other.name, self._other.run, *counts, self._prompts, shown)


def texts_of(row: Row) -> Iterator[str]:
    """All texts of a row of an evaluation set, whatever its columns."""
    waiting: list[Any] = [] if isinstance(row, UnreadableRow) else list(row.values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)


def _whole(words: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(words.tobytes(), digest_size=8).digest(), "little")


def _in(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Whether each value is in a sorted table."""
    if not len(table):
        return np.zeros(len(values), dtype=bool)
    places = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return np.asarray(table[places] == values)
