"""Sums and gathers over the processes that train together (layer L0)."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lit_rlhf.errors import LitRLHFError
from lit_rlhf.internals.torch import own_store

Made = TypeVar("Made")

_LONGEST = timedelta(hours=6)  # that a process waits for what the first one writes
_written: Counter[str] = Counter()


def num_ranks() -> int:
    """Processes that train together; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a tensor over processes, without gradient."""
    value = value.detach()
    if num_ranks() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, this one's with gradient: row i of process r before row i of process r + 1.

    So samplers deal them: it is the batch that one process would have. Strategies average gradients over processes and
    each computes the loss of all rows, so a row's gradient, which only its own process has, is multiplied by their
    number. Processes may have different numbers of rows.
    """
    world = num_ranks()
    if world == 1:
        return rows
    most, places = _dealt(rows)
    wide = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    gathered = list(stack_over_ranks(wide))
    # Exactly as the others have it: what all make of all rows, an order above all, must be the same.
    gathered[rank()] = wide.detach() + (wide - wide.detach()) * world
    return torch.stack(gathered, dim=1).flatten(0, 1)[places]


def own_rows(gathered: Tensor, rows: Tensor) -> Tensor:
    """What stands at the places of this process's rows in what `gather_rows` gave of them."""
    return gathered if num_ranks() == 1 else gathered[_dealt(rows)[1] % num_ranks() == rank()]


def next_rows(rows: Tensor, fill: int = 0) -> Tensor:
    """For each row (B, T) the one that follows it in the batch of all processes, the first for the last, no gradient.

    Args:
        rows: Processes may have different numbers and widths.
        fill: Stands behind rows that are less wide than others.
    """
    rows = rows.detach()
    if num_ranks() == 1:
        return rows.roll(-1, 0)
    width = int(stack_over_ranks(torch.tensor(rows.shape[1], device=rows.device)).max())
    wide = torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=fill)
    return own_rows(gather_rows(wide).roll(-1, 0), wide)


def _dealt(rows: Tensor) -> tuple[int, Tensor]:
    """The most rows of a process, and where rows stand when each has so many."""
    counts = stack_over_ranks(torch.tensor(len(rows), device=rows.device))
    most = int(counts.max())
    exist = torch.arange(most, device=rows.device)[:, None] < counts
    return most, exist.flatten().nonzero()[:, 0]


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the rows of all processes, without gradient; rows weigh the same unless told otherwise."""
    weights = torch.ones_like(values) if weights is None else weights.to(values.dtype)
    total, count = sum_over_ranks(torch.stack([(values * weights).sum(), weights.sum()]))
    mean: Tensor = total / count
    return mean


def rank() -> int:
    """Number of this process; 0 outside a process group."""
    return dist.get_rank() if num_ranks() > 1 else 0


def stack_over_ranks(value: Tensor) -> Tensor:
    """(processes, ...) from a tensor (...) of one shape on all processes, without gradient."""
    value = value.detach().contiguous()
    if num_ranks() == 1:
        return value[None]
    found = [torch.empty_like(value) for _ in range(num_ranks())]
    dist.all_gather(found, value)
    return torch.stack(found)


def gather_objects(value: Made) -> list[Made]:
    """The value of each process, in their order; it is pickled."""
    found: list[Any] = [value] * num_ranks()
    if num_ranks() > 1:
        dist.all_gather_object(found, value)
    return found


@contextmanager
def failing_together() -> Iterator[None]:
    """Raise on every process what the user can mend and one of them found: none goes on, and waits for it for ever.

    All processes must come by. Other errors end their process at once, and are the launcher's.
    """
    own: LitRLHFError | None = None
    try:
        yield
    except LitRLHFError as error:
        own = error
    found = gather_objects(None if own is None else (type(own), str(own)))
    if own is None:
        first = next((item for item in found if item is not None), None)
        own = None if first is None else first[0](first[1])
    if own is not None:
        raise own


def from_first_rank(make: Callable[[], Made]) -> Made:
    """What the first process makes, on every process; its errors too (`failing_together`).

    Args:
        make: Called on the first process alone, so it must talk to no other; what it returns is pickled.
    """
    made: list[Any] = [None]
    with failing_together():
        if rank() == 0:
            made = [make()]
    if num_ranks() > 1:
        dist.broadcast_object_list(made, src=0)
    found: Made = made[0]
    return found


def by_first_rank(what: str, write: Callable[[], None]) -> None:
    """Write on the first process; others that come by go on when it has, or fail as it did.

    It waits for none of them, so a script may call this on all its processes, or on the first alone.

    Args:
        what: Is written, in words; each has a count of its own.
        write: Called on the first process alone, so it must talk to no other.
    """
    if num_ranks() == 1:
        write()
        return
    _written[what] += 1
    store, key = own_store(), f"lit_rlhf/{what}/{_written[what]}"
    if rank() > 0:
        store.wait([key], _LONGEST)
        if said := store.get(key).decode():
            raise LitRLHFError(said)
        return
    said = f"The first process has failed to write the {what}; see what it says."
    try:
        write()
        said = ""
    except LitRLHFError as error:
        said = str(error)
        raise
    finally:
        store.set(key, said)
