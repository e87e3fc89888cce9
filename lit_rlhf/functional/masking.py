"""Masks and statistics under masks. True = counts; the library stores no other polarity.

Masked entries may hold anything, nan and infinity included: they are replaced, never multiplied by zero, so neither a
value nor a gradient of theirs gets out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_rlhf.functional.numerics import at_least_float32
from lit_rlhf.functional.shapes import Marks, Mask, Numbers


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations: all that is needed to merge statistics of parts exactly."""

    n: Tensor
    mean: Tensor
    m2: Tensor

    @property
    def variance(self) -> Tensor:
        """Unbiased variance, 0 for fewer than two entries."""
        return self.m2 / (self.n - 1).clamp_min(1)

    @property
    def std(self) -> Tensor:
        """Square root of `variance`."""
        return self.variance.sqrt()


def masked_sum(x: Numbers, mask: Marks, dim: int | None = None) -> Float[Tensor, "..."]:
    """Sum of the entries that count, over all axes or one.

    Example:
        >>> float(masked_sum(torch.tensor([1.0, float("nan")]), torch.tensor([True, False])))
        1.0
    """
    kept = torch.where(mask, x, 0.0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Numbers, mask: Marks, dim: int | None = None) -> Float[Tensor, "..."]:
    """Mean of the entries that count, over all axes or one; 0 where none counts.

    Example:
        >>> masked_mean(
        ...     torch.tensor([[1.0, 3.0], [5.0, 7.0]]),
        ...     torch.tensor([[True, True], [False, False]]),
        ...     dim=-1,
        ... )
        tensor([2., 0.])
    """
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp_min(1)


def masked_moments(x: Numbers, mask: Marks) -> Moments:
    """Count, mean and sum of squared deviations of the entries that count, as scalars."""
    x = at_least_float32(x)
    mean = masked_mean(x, mask)
    deviations = torch.where(mask, x - mean, 0.0)
    return Moments(mask.sum().to(x.dtype), mean, deviations.square().sum())


def merge_moments(parts: Moments) -> Moments:
    r"""Merge statistics along the first axis: of ranks, of batches, or of what was seen before and what is new.

    $n=\sum_i n_i,\; \mu=\sum_i n_i\mu_i/n,\; M=\sum_i M_i + n_i(\mu_i-\mu)^2$ (Chan, Golub and LeVeque 1979), which
    does not cancel as a sum of squares would.

    Args:
        parts: Fields of shape (parts, ...).

    Example:
        >>> low = masked_moments(torch.tensor([1.0, 2.0]), torch.tensor([True, True]))
        >>> high = masked_moments(torch.tensor([6.0]), torch.tensor([True]))
        >>> merged = merge_moments(Moments(*(torch.stack(pair) for pair in zip(low, high))))
        >>> [round(float(value), 4) for value in merged]
        [3.0, 3.0, 14.0]
    """
    n = parts.n.sum(0)
    mean = (parts.n * parts.mean).sum(0) / n.clamp_min(1)
    m2 = (parts.m2 + parts.n * (parts.mean - mean).square()).sum(0)
    return Moments(n, mean, m2)


def whiten(
    x: Numbers,
    mask: Marks,
    *,
    center: bool = True,
    moments: Moments | None = None,
    eps: float = 1e-8,
) -> Numbers:
    """Scale the entries that count to standard deviation 1 and, unless told otherwise, mean 0; masked entries become 0.

    Args:
        x: Any shape.
        mask: The same shape.
        center: Whether the mean of the result is 0; if not, it stays what it was.
        moments: Statistics to use instead of those of `x`: of the batches of all ranks, merged.
        eps: Added to the variance; equal entries come out as 0 (or as the mean).

    Example:
        >>> whiten(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
        tensor([-0.7071,  0.7071,  0.0000])
    """
    stats = masked_moments(x, mask) if moments is None else moments
    white = torch.where(mask, x - stats.mean, 0.0) * (stats.variance + eps).rsqrt()
    if not center:
        white = white + stats.mean
    return torch.where(mask, white, 0.0).to(x.dtype)


def last_index(mask: Mask) -> Int[Tensor, " sequences"]:
    """Position of the last entry that counts, 0 in rows without any."""
    return (mask * torch.arange(mask.shape[-1], device=mask.device)).amax(-1)


def padded_rows(
    rows: Sequence[Sequence[int]], device: torch.device | None = None
) -> tuple[Int[Tensor, "rows width"], Bool[Tensor, "rows width"]]:
    """Lists of ids as rows of one tensor, 0 behind the shorter ones, and the mask of what was there.

    Args:
        rows: Lists, of any lengths.
        device: Where the tensors are to be.

    Example:
        >>> padded_rows([[5, 6], [7]])[0].tolist()
        [[5, 6], [7, 0]]
    """
    lengths = torch.tensor([len(row) for row in rows], device=device)
    width = max(map(len, rows), default=1)
    wide = [[*row, *[0] * (width - len(row))] for row in rows]
    ids = torch.tensor(wide, dtype=torch.int64, device=device).view(len(rows), width)
    return ids, torch.arange(width, device=device) < lengths[:, None]
