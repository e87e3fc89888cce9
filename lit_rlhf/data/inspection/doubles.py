"""Records that occur more than once, and comparisons that are contradicted."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_rlhf.data.inspection.items import Item

_EXAMPLES = 20


@dataclass(frozen=True)
class DoubleFacts:
    """Records that occur more than once.

    Args:
        records: Records in all.
        repeated: Those beyond the first of each: same prompt, same completions in the same order.
        most: How often the most frequent one occurs.
        prompts: Different prompts.
        most_of_prompt: Records of the most frequent prompt.
        contradicting: Records that say of two answers (or of one, by its label) the opposite of what another one says.
        contradictions: Different comparisons that are made both ways.
        compared_again: Comparisons that are made more than once, whichever way.
        share_agreeing: Share of two statements on the same comparison that say the same; None: none is made twice.
        repeated_examples: Numbers of records (counted from 0 among those used): some record, and its repetition.
        contradicting_examples: The same of records that contradict each other.
    """

    records: int
    repeated: int
    most: int
    prompts: int
    most_of_prompt: int
    contradicting: int
    contradictions: int
    compared_again: int
    share_agreeing: float | None
    repeated_examples: Sequence[tuple[int, int]]
    contradicting_examples: Sequence[tuple[int, int]]


class Doubles:
    """Keeps hashes of each record: 16 bytes, and 17 of each comparison that it makes."""

    def __init__(self) -> None:
        self._records, self._prompts = array("Q"), array("Q")
        self._keys, self._owners, self._ways = array("Q"), array("Q"), array("B")

    def add(self, item: Item) -> None:
        """Keep a record's hashes."""
        for key, way in item.identity.comparisons():
            self._keys.append(key)
            self._owners.append(len(self._records))
            self._ways.append(way)
        self._records.append(item.identity.record())
        self._prompts.append(item.identity.prompt())

    def result(self) -> DoubleFacts:
        """Find them."""
        _, first, group, counts = np.unique(
            np.frombuffer(self._records, dtype=np.uint64),
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        again = np.flatnonzero(first[group] != np.arange(len(group)))  # (repeated,)
        prompts = np.unique(np.frombuffer(self._prompts, dtype=np.uint64), return_counts=True)[1]
        _, key, said = np.unique(
            np.frombuffer(self._keys, dtype=np.uint64), return_inverse=True, return_counts=True
        )
        way = np.frombuffer(self._ways, dtype=np.uint8)
        owner = np.frombuffer(self._owners, dtype=np.uint64)
        one_way = np.bincount(key, weights=way, minlength=len(said))  # (comparisons,)
        both = (one_way > 0) & (one_way < said)
        ordered = said * (said - 1)
        alike = one_way * (one_way - 1) + (said - one_way) * (said - one_way - 1)
        return DoubleFacts(
            records=len(group),
            repeated=len(again),
            most=int(counts.max(initial=0)),
            prompts=len(prompts),
            most_of_prompt=int(prompts.max(initial=0)),
            contradicting=len(np.unique(owner[both[key]])),
            contradictions=int(both.sum()),
            compared_again=int((said > 1).sum()),
            share_agreeing=float(alike.sum() / ordered.sum()) if ordered.sum() else None,
            repeated_examples=[(int(first[group[i]]), int(i)) for i in again[:_EXAMPLES]],
            contradicting_examples=_opposed(key, way, owner, both),
        )


def _opposed(
    key: np.ndarray, way: np.ndarray, owner: np.ndarray, both: np.ndarray
) -> list[tuple[int, int]]:
    """For some comparisons that are made both ways, the first record that makes them each way."""
    found = []
    for each in np.flatnonzero(both)[:_EXAMPLES]:
        places = np.flatnonzero(key == each)
        ends = sorted(int(owner[places[way[places] == side][0]]) for side in (0, 1))
        found.append((ends[0], ends[1]))
    return found
