"""Records that occur more than once, exactly or nearly, and comparisons that are contradicted."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_rlhf.data.inspection.items import Item
from lit_rlhf.data.inspection.words import hash_runs
from lit_rlhf.extras import importing_extra

_EXAMPLES = 20
_PERMUTATIONS = 64
_RUN = 3


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


@dataclass(frozen=True)
class NearFacts:
    """Records that are nearly the same.

    Args:
        similarity: Least Jaccard similarity of the sets of three-word runs of prompt and answers, as MinHash estimates
            it, at which two records count as nearly the same.
        records: Those beside the first of each group; what has the same texts, in whichever order, doesn't count here.
        groups: Groups of two or more records that are not all the same.
        largest: Records of the largest group.
        examples: For some groups, the numbers (counted from 0 among the records) of two records that differ.
    """

    similarity: float
    records: int
    groups: int
    largest: int
    examples: Sequence[tuple[int, int]]


class Near:
    """Keeps a sketch of each record: 264 bytes.

    Args:
        similarity: See `NearFacts`.

    Raises:
        ConfigurationError: The extra `inspect` is missing.
    """

    def __init__(self, similarity: float) -> None:
        without = "Or leave them out: --similarity null."
        with importing_extra("inspect", "Looking for near-duplicates", without):
            from datasketch import MinHash, MinHashLSH
        self._similarity = similarity
        self._first = MinHash(_PERMUTATIONS, seed=1, hashfunc=int)
        index = MinHashLSH(threshold=similarity, num_perm=_PERMUTATIONS)
        # The split of sketches that fits the similarity best.
        self._bands, self._rows = index.b, index.r
        self._sketches, self._same = bytearray(), array("Q")

    def add(self, item: Item) -> None:
        """Keep a record's sketch."""
        words = np.concatenate(item.words)
        runs = hash_runs(words, min(_RUN, max(len(words), 1)))
        if not len(runs):  # no words: signs alone
            runs = np.array([item.identity.texts()], dtype=np.uint64)
        sketch: Any = self._first.copy()
        sketch.update_batch((runs >> np.uint64(32)).tolist())
        self._sketches += sketch.hashvalues.astype(np.uint32).tobytes()
        self._same.append(item.identity.texts())

    def result(self) -> NearFacts:
        """Group the records."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        sketches = np.frombuffer(self._sketches, dtype=np.uint32).reshape(-1, _PERMUTATIONS)
        same = np.frombuffer(self._same, dtype=np.uint64)
        links = self._links(sketches)
        count = len(sketches)
        ones = np.ones(len(links), dtype=bool)
        graph = coo_array((ones, (links[:, 0], links[:, 1])), shape=(count, count))
        _, group = connected_components(graph, directed=False)  # (n,)
        different = np.unique(np.stack([group.astype(np.uint64), same], 1), axis=0)  # (m, 2)
        named, kinds = np.unique(different[:, 0], return_counts=True)
        several = named[kinds > 1]
        sizes = np.bincount(group, minlength=1)[several.astype(np.int64)]
        apart = links[same[links[:, 0]] != same[links[:, 1]]]
        _, firsts = np.unique(group[apart[:, 0]], return_index=True)
        examples = [(int(one), int(other)) for one, other in apart[np.sort(firsts)][:20]]
        surplus = int((kinds - 1).sum())
        return NearFacts(
            self._similarity, surplus, len(several), int(sizes.max(initial=0)), examples
        )

    def _links(self, sketches: np.ndarray) -> np.ndarray:
        """Pairs of records that share a band and are as similar as asked for: (m, 2), the earlier one first."""
        found = [np.empty((0, 2), dtype=np.int64)]
        for band in range(self._bands if len(sketches) else 0):
            part = np.ascontiguousarray(sketches[:, band * self._rows : (band + 1) * self._rows])
            keys = part.view(np.dtype((np.void, part.shape[1] * part.itemsize)))[:, 0]
            _, bucket = np.unique(keys, return_inverse=True)
            order = np.argsort(bucket, kind="stable")
            starts = np.r_[True, bucket[order][1:] != bucket[order][:-1]]
            first = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
            # With the first of the bucket, and with the one before.
            for earlier in (first, np.roll(order, 1)):
                pairs = np.stack([earlier, order], 1)[~starts]
                alike = [
                    (sketches[part[:, 0]] == sketches[part[:, 1]]).mean(1)
                    for part in np.array_split(pairs, max(len(pairs) // 100_000, 1))
                ]
                found.append(pairs[np.concatenate(alike) >= self._similarity])
        return np.unique(np.concatenate(found), axis=0)
