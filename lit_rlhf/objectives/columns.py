"""Columns of a batch: which of them a formula names, and what is refused in them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.errors import DataError

Batch = Mapping[str, Any]
"""One of the batches of `lit_rlhf.types`: to a type checker a TypedDict is no mapping to tensors."""


def read_column(owner: object, batch: Batch, name: str) -> Tensor:
    """A column that a loss can't do without.

    Raises:
        DataError: The batch lacks it.
    """
    if name not in batch:
        raise DataError(
            f"{type(owner).__name__} needs the column {name!r}, which the batches lack (they hold {sorted(batch)}). "
            "Name it in the data module's format, or choose another loss."
        )
    column: Tensor = batch[name]
    return column


def column_defaults(formula: Callable[..., Any]) -> dict[str, Any]:
    """The columns that a formula reads, which are its keyword-only arguments, and their defaults."""
    return {
        name: argument.default
        for name, argument in inspect.signature(formula).parameters.items()
        if argument.kind is inspect.Parameter.KEYWORD_ONLY
    }


def columns_of(owner: object, formula: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
    """The columns that a formula reads; those without a default must be there.

    Raises:
        DataError: A column is missing, or a soft label is no probability.
    """
    found = {
        name: read_column(owner, batch, name)
        for name, default in column_defaults(formula).items()
        if name in batch or default is inspect.Parameter.empty
    }
    if "p_chosen" in found:
        require_probabilities(owner, batch, "p_chosen")
    return found


def refuse_scores(owner: object, formula: Callable[..., Any], batch: Batch) -> None:
    """Refuse rankings of two: their first completion would be taken for the chosen one, whatever their scores say.

    Args:
        owner: The loss, of pairs.
        formula: Its formula, which may read the scores itself.
        batch: Of two completions of each prompt.

    Raises:
        DataError: They have scores.
    """
    scored = "score" in batch and batch["score"].dim() == 2
    if scored and "score" not in column_defaults(formula):
        raise DataError(
            f"{type(owner).__name__} takes the first completion of a prompt for the chosen one, and these have the "
            "column 'score', which says which one is better. Use PreferenceDataModule, which makes pairs of rankings, "
            "or a loss that reads scores (AllPairs for reward models, PlackettLuceDPO for policies)."
        )


def branch_mask(scores: Tensor, batch: Batch) -> Tensor:
    """(B, K): which branches exist."""
    mask: Tensor | None = batch.get("branch_mask")
    return torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()


def require_finite(owner: object, batch: Batch, name: str, mask: Tensor | None = None) -> None:
    """Refuse scores that are nan or infinite where a completion exists."""
    if batch[name].is_meta:
        return
    bad = ~torch.isfinite(batch[name])
    if mask is not None:
        bad &= mask
    if bad.any():
        raise DataError(
            f"{type(owner).__name__}: {name} is not finite in {int(bad.sum())} places of the batch; the first: "
            f"{_first(bad, batch)}. Every completion needs a score; drop or mend those rows."
        )


def require_probabilities(owner: object, batch: Batch, name: str) -> None:
    """Refuse soft labels outside [0, 1] (nan included)."""
    values = batch[name]
    if values.is_meta:
        return
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        raise DataError(
            f"{type(owner).__name__}: {name}={float(values[bad][0])} is no probability ({int(bad.sum())} of "
            f"{len(values)} in the batch; the first: {_first(bad, batch)}). Soft labels must lie in [0, 1]."
        )


def require_strengths(owner: object, batch: Batch, name: str) -> None:
    """Refuse weights of rows that are below 0 or nan.

    Raises:
        DataError: Names the first of them; or there is no such column.
    """
    values = read_column(owner, batch, name)
    if values.is_meta:
        return
    bad = ~(values >= 0)
    if bad.any():
        raise DataError(
            f"{type(owner).__name__}: {name}={float(values[bad][0])} is no strength of a preference ({int(bad.sum())} "
            f"of {len(values)} in the batch; the first: {_first(bad, batch)}). It must be 0 or more: where the second "
            "answer is the better one, swap the two, or use BradleyTerry, whose margins may have any sign."
        )


def _first(bad: Tensor, batch: Batch) -> str:
    place = bad.nonzero()[0].tolist()
    row = f"row {place[0]} of the batch"
    if "index" in batch:
        row = f"row {int(batch['index'][place[0]])} of the data"
    return row if len(place) == 1 else f"{row}, completion {place[1]}"
