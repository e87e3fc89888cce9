"""Ragged batches for tests, with nan wherever nothing counts."""

from collections.abc import Sequence

import torch
from torch import Tensor

LENGTHS = (1, 2, 7, 0, 3, 7)
"""One token, two, the full width, none."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def ragged_mask(lengths: Sequence[int] = LENGTHS, width: int | None = None) -> Tensor:
    steps = torch.arange(max(lengths) if width is None else width)
    return steps < torch.tensor(lengths)[:, None]


def ragged(
    mask: Tensor,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    garbage: float = float("nan"),
) -> Tensor:
    """Standard normal numbers where the mask is set, garbage elsewhere."""
    numbers = torch.randn(
        mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return torch.where(mask, numbers, garbage).to(dtype)


def widened(x: Tensor, columns: int = 3) -> Tensor:
    """The same rows with columns of garbage appended (False for masks)."""
    fill = torch.zeros if x.dtype == torch.bool else torch.randn
    extra = fill(x.shape[0], columns) * 100
    return torch.cat([x, extra.to(x.dtype)], dim=-1)


def rows(x: Tensor, mask: Tensor) -> list[list[float]]:
    """The entries that count, row by row, as lists."""
    return [
        [float(v) for v, m in zip(row, flags, strict=True) if m]
        for row, flags in zip(x, mask, strict=True)
    ]


def filled(
    lists: Sequence[Sequence[float]], width: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Lists as rows, 0 behind their ends."""
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in lists], dtype=dtype)
