"""Log-probs of completions under a reference model, kept in the cache beside the tokenized rows."""

from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from lit_rlhf.data.cache import TokenCache
from lit_rlhf.data.collate import Rows
from lit_rlhf.data.rows import TokenizedRows
from lit_rlhf.types import BranchedBatch


class LogprobStore:
    """The log-probs of one split under one reference.

    Args:
        rows: The split.
        cache: Where they are kept.
        key: Names the reference, the rows and how these were tokenized.
        collate: Makes batches.
        batch_size: Rows of a batch.
    """

    def __init__(
        self,
        rows: TokenizedRows,
        cache: TokenCache,
        key: str,
        collate: Callable[[Rows], BranchedBatch],
        batch_size: int,
    ) -> None:
        self.rows, self.cache, self.key = rows, cache, key
        self.collate, self.batch_size = collate, batch_size
        self.num_rows, self.num_branches = len(rows), rows.most_completions()

    def load(self) -> bool:
        """Give the rows their log-probs, if the cache has them whole."""
        entry = self.cache.find(self.key, verify=True)
        if entry is None:
            return False
        columns = entry.open().with_format("numpy")["logprobs"]
        self.rows.ref_logprobs = np.stack([np.asarray(row, dtype=np.float32) for row in columns])
        return True

    def save(self, logprobs: Tensor) -> None:
        """Keep log-probs (rows, K); what other processes saved before is left as it is.

        Raises:
            DataError: The cache can't be written.
        """
        import pyarrow as pa  # noqa: PLC0415  (start-up that --help shall not pay)

        lines = ({"logprobs": row} for row in logprobs.float().tolist())
        self.cache.get_or_build(
            self.key, lines, dict, schema=pa.schema([("logprobs", pa.list_(pa.float32()))])
        )

    def batches(self, rank: int, world_size: int) -> Iterator[BranchedBatch]:
        """All rows by length, in as many batches for each process; the last may repeat a row to make up the number."""
        order = np.argsort(self.rows.lengths, kind="stable")
        order = np.pad(order, (0, -len(order) % world_size), mode="edge")[rank::world_size]
        for start in range(0, len(order), self.batch_size):
            chosen = self.rows.__getitems__(order[start : start + self.batch_size].tolist())
            yield self.collate(chosen)
