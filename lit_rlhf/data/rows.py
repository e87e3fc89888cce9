"""Tokenized rows as a torch data set."""

import json
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from torch.utils.data import Dataset

from lit_rlhf.data.cache import Entry
from lit_rlhf.seeding import stable_hash


class TokenizedRow(TypedDict):
    """A row as collators take it."""

    index: int  # position in the split
    row: int  # position in the source, counted from 0
    prompt_ids: list[int]
    completion_ids: list[list[int]]
    fields: dict[str, Any]  # margin, p_chosen, label, score, ref_logprobs
    columns: dict[str, Any]  # further columns of the data set


class TokenizedRows(Dataset[TokenizedRow]):
    """Rows of a cache entry, memory-mapped, or a part of them.

    Args:
        entry: Where the rows lie.
        positions: Which of the entry's rows, in order. None: all of them.
    """

    def __init__(self, entry: Entry, positions: np.ndarray | None = None) -> None:
        self.table = entry.open()
        self.positions = np.arange(len(self.table)) if positions is None else positions
        self.lengths = np.asarray(self.table.data["length"])[self.positions]
        self.ref_logprobs: np.ndarray | None = None  # (n, K) float32, once they were computed

    @property
    def prompt_keys(self) -> np.ndarray:
        """(n,) int64: a hash of each row's prompt text."""
        keys: np.ndarray = np.asarray(self.table.data["prompt_key"])[self.positions]
        return keys

    def most_completions(self) -> int:
        """The largest number of completions of a prompt."""
        return max(
            map(len, self.table.with_format(None).select(self.positions)["completion_ids"]),
            default=0,
        )

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> TokenizedRow:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[TokenizedRow]:
        """Several rows at once, as torch's loaders ask for them."""
        raw = self.table.__getitems__([int(self.positions[index]) for index in indices])
        rows = [_row(int(index), values) for index, values in zip(indices, raw, strict=True)]
        if self.ref_logprobs is not None:
            for row in rows:
                row["fields"]["ref_logprobs"] = self.ref_logprobs[
                    row["index"], : len(row["completion_ids"])
                ].tolist()
        return rows

    def split(self, fraction: float, seed: int) -> tuple["TokenizedRows", "TokenizedRows"]:
        """Divide by a stable hash of the prompt, so that all rows of a prompt stay together.

        Args:
            fraction: Share of prompts, in expectation, that the second part gets.
            seed: Other seeds divide otherwise.
        """
        keys, inverse = np.unique(self.prompt_keys, return_inverse=True)
        second = np.array(
            [stable_hash("split", seed, int(key)) < fraction * 2.0**63 for key in keys], dtype=bool
        )
        chosen = second[inverse]
        return self._part(~chosen), self._part(chosen)

    def _part(self, keep: np.ndarray) -> "TokenizedRows":
        part = object.__new__(TokenizedRows)
        part.table, part.positions, part.lengths = (
            self.table,
            self.positions[keep],
            self.lengths[keep],
        )
        part.ref_logprobs = None
        return part


def _row(index: int, values: dict[str, Any]) -> TokenizedRow:
    extras = json.loads(values["extras"])
    return {
        "index": index,
        "row": values["row"],
        "prompt_ids": values["prompt_ids"],
        "completion_ids": values["completion_ids"],
        "fields": extras["fields"],
        "columns": extras["columns"],
    }
