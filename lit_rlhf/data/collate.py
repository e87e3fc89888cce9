"""Collators: tokenized rows to padded batches. They only pad, and hold nothing but the pad id, for workers' sake."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, Literal, Never, cast

import torch
from torch import Tensor

from lit_rlhf.data.conversion import SUBSET
from lit_rlhf.data.rows import TokenizedRow
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.types import (
    BranchedBatch,
    DemonstrationBatch,
    PreferenceBatch,
    ProcessBatch,
    PromptBatch,
    RankedBatch,
    UnpairedBatch,
)

Rows = Sequence[TokenizedRow]
Layout = Literal["branched", "rows"]


class BranchedLayoutError(ConfigurationError, AttributeError):
    """A branched batch was given to a model that reads ordinary rows."""

    def __init__(self) -> None:
        super().__init__(
            "This batch is branched: each row holds a prompt and all its completions, which an ordinary model would "
            "read as one text. Give it to a module of lit_rlhf, or set `layout: rows` in the DataModule, which gives "
            "chosen_input_ids, chosen_attention_mask and so on."
        )


class NoAttentionMask:
    """Stands where ordinary models look for their mask, and fails when one looks: `model(**batch)` ends at once."""

    def __getattr__(self, name: str) -> Never:
        raise BranchedLayoutError

    def __getitem__(self, item: object) -> Never:
        raise BranchedLayoutError

    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Never:
        """Called by whatever torch does with it."""
        raise BranchedLayoutError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoAttentionMask)

    def __hash__(self) -> int:
        return hash(NoAttentionMask)


class BranchedRows(dict[str, Any]):
    """A branched batch of data that can be had as ordinary rows, which it says where their names are asked for."""

    def __missing__(self, name: str) -> Never:
        if name.endswith(("input_ids", "attention_mask", "labels")):
            raise BranchedLayoutError
        raise KeyError(name)


@dataclass(frozen=True)
class BranchedCollator:
    """Lays rows out as `prompt ++ branch_1 ++ ... ++ branch_K`, padded on the right.

    Args:
        pad_id: What `input_ids` are padded with; masks go by `branch_ids`, so any id will do.
        pad_to_multiple_of: The width of a batch is rounded up to a multiple of this: 8 or 64 suit GPUs, 1 adds nothing.

    Example:
        >>> row = {"prompt_ids": [5, 6], "completion_ids": [[7], [8, 9]]}
        >>> batch = BranchedCollator(pad_id=0, pad_to_multiple_of=4).layout([row])
        >>> (
        ...     batch["input_ids"].tolist(),
        ...     batch["branch_ids"].tolist(),
        ...     batch["position_ids"].tolist(),
        ... )
        ([[5, 6, 7, 8, 9, 0, 0, 0]], [[0, 0, 1, 2, 2, -1, -1, -1]], [[0, 1, 2, 2, 3, 0, 0, 0]])
    """

    pad_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, rows: Rows) -> BranchedBatch:
        """Collate."""
        return self.layout(rows)

    def layout(self, rows: Sequence[Any]) -> BranchedBatch:
        """The three tensors of every batch, (B, L)."""
        _require_tokens(rows)
        ids, branches, positions = zip(*map(_line, rows), strict=True)
        return {
            "input_ids": self._pad(ids, self.pad_id),
            "branch_ids": self._pad(branches, -1),
            "position_ids": self._pad(positions, 0),
            "attention_mask": NoAttentionMask(),
        }

    def plain_rows(self, rows: Rows, branch: int, prefix: str = "") -> dict[str, Tensor]:
        """Prompt and one completion as other people's models take them, (B, L) each; `labels` is -100 on the prompt."""
        _require_tokens(rows)
        lines = [(row["prompt_ids"], row["completion_ids"][branch]) for row in rows]
        whole = [[*prompt, *completion] for prompt, completion in lines]
        labels = [[-100] * len(prompt) + completion for prompt, completion in lines]
        return {
            f"{prefix}input_ids": self._pad(whole, self.pad_id),
            f"{prefix}attention_mask": self._pad([[1] * len(ids) for ids in whole], 0),
            f"{prefix}labels": self._pad(labels, -100),
        }

    def _pad(self, lines: Sequence[list[int]], value: int) -> Tensor:
        step = self.pad_to_multiple_of
        width = -(-max(map(len, lines)) // step) * step
        filled = [line + [value] * (width - len(line)) for line in lines]
        return torch.tensor(filled, dtype=torch.int64)

    def labelled(self, rows: Rows) -> dict[str, Any]:
        """The layout, and what goes beside it."""
        return {**self.layout(rows), **self.beside(rows)}

    def beside(self, rows: Rows) -> dict[str, Any]:
        """`index`, and `ref_logprobs` (B, K), `attributes` (B, K, A) and subsets where the rows have them."""
        batch: dict[str, Any] = {"index": _index(rows)}
        if "ref_logprobs" in rows[0]["fields"]:
            batch["ref_logprobs"] = _padded([row["fields"]["ref_logprobs"] for row in rows])
        if "attributes" in rows[0]["fields"]:  # completion by completion in one line
            ratings = _padded([row["fields"]["attributes"] for row in rows])
            batch["attributes"] = ratings.unflatten(1, (len(rows[0]["completion_ids"]), -1))
        if SUBSET in rows[0]["columns"]:
            batch[SUBSET] = [row["columns"][SUBSET] or "" for row in rows]
        return batch


Collators = Mapping[Layout, type[BranchedCollator]]
"""By layout, what makes batches of it."""


@dataclass(frozen=True)
class PreferenceCollator(BranchedCollator):
    """Pairs: K = 2, with `margin` and `p_chosen` where the data have them."""

    def __call__(self, rows: Rows) -> PreferenceBatch:
        """Collate."""
        batch = self.labelled(rows) | _numbers(rows, "margin", "p_chosen")
        return cast("PreferenceBatch", BranchedRows(batch))


@dataclass(frozen=True)
class PairRowsCollator(BranchedCollator):
    """Pairs as ordinary rows: `chosen_input_ids`, `chosen_attention_mask`, `chosen_labels`, and so for `rejected`.

    What stands beside the tokens of a branched batch stands beside these too, under the same names.
    """

    def __call__(self, rows: Rows) -> Any:
        """Collate."""
        batch = self.plain_rows(rows, 0, "chosen_") | self.plain_rows(rows, 1, "rejected_")
        return batch | self.beside(rows) | _numbers(rows, "margin", "p_chosen")


@dataclass(frozen=True)
class DemonstrationRowsCollator(BranchedCollator):
    """Answers to imitate as ordinary rows: `input_ids`, `attention_mask`, `labels`."""

    def __call__(self, rows: Rows) -> Any:
        """Collate."""
        return self.plain_rows(rows, 0)


@dataclass(frozen=True)
class DemonstrationCollator(BranchedCollator):
    """Answers to imitate: K = 1."""

    def __call__(self, rows: Rows) -> DemonstrationBatch:
        """Collate."""
        return cast("DemonstrationBatch", BranchedRows(**self.layout(rows), index=_index(rows)))


@dataclass(frozen=True)
class PromptCollator(BranchedCollator):
    """Prompts: K = 0, with the data set's further columns, and the prompts as they came, as lists."""

    def __call__(self, rows: Rows) -> PromptBatch:
        """Collate."""
        columns = {name: [row["columns"][name] for row in rows] for name in rows[0]["columns"]}
        batch = {**self.layout(rows), "index": _index(rows), "columns": columns}
        return cast("PromptBatch", {**batch, "given": [row["given"] for row in rows]})


@dataclass(frozen=True)
class RankedCollator(BranchedCollator):
    """Rankings: K is the largest number of completions in the batch; `branch_mask` says which exist."""

    def __call__(self, rows: Rows) -> RankedBatch:
        """Collate."""
        scores = [row["fields"]["score"] for row in rows]
        most = max(len(values) for values in scores)
        mask = [[place < len(values) for place in range(most)] for values in scores]
        batch = cast("RankedBatch", self.labelled(rows))
        batch["score"] = _padded(scores)
        batch["branch_mask"] = torch.tensor(mask, dtype=torch.bool)
        return batch


@dataclass(frozen=True)
class UnpairedCollator(BranchedCollator):
    """Single completions: K = 1, with `label` or `score`."""

    def __call__(self, rows: Rows) -> UnpairedBatch:
        """Collate."""
        batch = self.labelled(rows) | _numbers(rows, "label", dtype=torch.bool)
        return cast("UnpairedBatch", batch | _numbers(rows, "score"))


@dataclass(frozen=True)
class ProcessCollator(BranchedCollator):
    """Solutions: K = 1, the steps one behind the other, and where each ends."""

    def __call__(self, rows: Rows) -> ProcessBatch:
        """Collate."""
        lengths = [[len(step) for step in row["completion_ids"]] for row in rows]
        whole: list[TokenizedRow] = [
            {**row, "completion_ids": [list(chain(*row["completion_ids"]))]} for row in rows
        ]
        counts = torch.tensor([len(steps) for steps in lengths])
        ends = _padded([[end - 1 for end in accumulate(steps)] for steps in lengths])
        # Steps that didn't fit were cut off; their labels still stand in the row.
        both = zip(rows, lengths, strict=True)
        labels = [row["fields"]["step_label"][: len(steps)] for row, steps in both]
        batch = {
            **self.labelled(whole),
            "step_end": ends.long(),
            "step_label": _padded(labels),
            "step_mask": torch.arange(ends.shape[1]) < counts[:, None],
        }
        return cast("ProcessBatch", batch)


def _line(row: Any) -> tuple[list[int], list[int], list[int]]:
    prompt = row["prompt_ids"]
    start = len(prompt)
    ids, branches, positions = list(prompt), [0] * start, list(range(start))
    for branch, completion in enumerate(row["completion_ids"], start=1):
        ids += completion
        branches += [branch] * len(completion)
        positions += range(start, start + len(completion))
    return ids, branches, positions


def _padded(lines: Sequence[Sequence[float]]) -> Tensor:
    width = max(map(len, lines))
    filled = [[*line, *[0.0] * (width - len(line))] for line in lines]
    return torch.tensor(filled, dtype=torch.float32)


def _require_tokens(rows: Sequence[Mapping[str, Any]]) -> None:
    if "prompt_ids" not in rows[0]:
        raise DataError(
            f"The rows have lost their tokens; what is left of them is {sorted(rows[0])}. The Trainer of transformers "
            "removes columns that its model doesn't read: give it TrainingArguments(remove_unused_columns=False)."
        )


def _index(rows: Rows) -> Tensor:
    return torch.tensor([row["index"] for row in rows], dtype=torch.int64)


def _numbers(rows: Rows, *names: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Fields of the rows, those that they have."""
    present = [name for name in names if name in rows[0]["fields"]]
    return {n: torch.tensor([r["fields"][n] for r in rows], dtype=dtype) for n in present}
