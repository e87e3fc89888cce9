"""Numbers of rows whose way there is as wide as the vocabulary, some rows at a time."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Rows = tuple[Tensor, Tensor]
"""(n,) each: one to differentiate, one to look at."""


def rows_by_chunks(
    compute: Callable[..., Rows],
    hidden: Tensor,
    *others: Tensor,
    chunk_size: int,
    keep_slopes: bool,
) -> Rows:
    r"""`compute(hidden, *others)` of all rows, `chunk_size` of them at a time in either pass.

    Args:
        compute: From rows (m, h) and the others' (m, ...) to two numbers of each row, which depend on that row alone.
            The second has no gradient.
        hidden: (n, h), with gradient.
        others: (n, ...) each, without.
        chunk_size: Rows at a time.
        keep_slopes: Nothing but `hidden` has a gradient: it is formed in the forward pass and kept, (n, h), so that the
            backward pass computes nothing anew. Else chunks are computed again there, and may train more.

    Example:
        >>> hidden = torch.ones(3, 2, requires_grad=True)
        >>> squares = lambda rows: (rows.square().sum(-1), rows.detach().sum(-1))
        >>> rows_by_chunks(squares, hidden, chunk_size=2, keep_slopes=True)[0].sum().backward()
        >>> hidden.grad[0]
        tensor([2., 2.])
    """
    # No row at all still goes through once, so that what `compute` trains gets its (zero) gradient.
    chunks = list(zip(*(part.split(chunk_size) for part in (hidden, *others)), strict=True))
    if not (torch.is_grad_enabled() and keep_slopes):
        recomputed = torch.is_grad_enabled()
        # Unchecked, for an estimate's tensors don't always say the same of where they stand.
        again = partial(checkpoint, compute, use_reentrant=False, determinism_check="none")
        found = [again(*chunk) if recomputed else compute(*chunk) for chunk in chunks]
        values, seen = (torch.cat(column) for column in zip(*found, strict=True))
        return values, seen
    rows, slopes = [], []
    for chunk in chunks:
        leaf = chunk[0].detach().requires_grad_()
        value, looked_at = compute(leaf, *chunk[1:])
        slopes.append(torch.autograd.grad(value.sum(), leaf)[0])
        rows.append((value.detach(), looked_at))
    values, seen = (torch.cat(column) for column in zip(*rows, strict=True))
    first_order = ((hidden - hidden.detach()) * torch.cat(slopes)).sum(-1)  # 0, with the gradient
    return values + first_order.to(values.dtype), seen
