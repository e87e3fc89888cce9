"""Records that are nearly the same: MinHash (datasketch) of their words, and the groups that it makes."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_rlhf.data.inspection.items import Item
from lit_rlhf.data.inspection.words import hash_runs
from lit_rlhf.extras import importing_extra

_PERMUTATIONS = 64
_RUN = 3


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
        self._bands, self._rows = (
            index.b,
            index.r,
        )  # the split of sketches that fits the similarity best
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
            for earlier in (
                first,
                np.roll(order, 1),
            ):  # with the first of the bucket, and with the one before
                pairs = np.stack([earlier, order], 1)[~starts]
                alike = [
                    (sketches[part[:, 0]] == sketches[part[:, 1]]).mean(1)
                    for part in np.array_split(pairs, max(len(pairs) // 100_000, 1))
                ]
                found.append(pairs[np.concatenate(alike) >= self._similarity])
        return np.unique(np.concatenate(found), axis=0)
