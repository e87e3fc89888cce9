"""Statistics under masks against loops over lists; moments merged over parts."""

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.functional.masking import (
    Moments,
    last_index,
    masked_mean,
    masked_moments,
    masked_sum,
    merge_moments,
    padded_rows,
    whiten,
)
from tests.reference import masking as reference
from tests.reference.batches import DTYPES, LENGTHS, ragged, ragged_mask
from tests.tolerances import BF16, FP32, FP64

TOLERANCE = {torch.float64: FP64, torch.float32: FP32, torch.bfloat16: BF16}


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_statistics_match_loops(dtype: torch.dtype) -> None:
    mask = ragged_mask()
    x = ragged(mask, dtype=dtype)
    lists = x.double().tolist(), mask.tolist()
    for got, expected in (
        (masked_sum(x, mask, dim=-1), reference.row_sums(*lists)),
        (masked_mean(x, mask, dim=-1), reference.row_means(*lists)),
    ):
        assert got.dtype == dtype
        assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), **TOLERANCE[dtype])


def test_statistics_over_everything_are_those_of_the_entries_that_count() -> None:
    mask = ragged_mask()
    x = ragged(mask)
    kept = x[mask]
    assert_close(masked_sum(x, mask), kept.sum(), **FP64)
    assert_close(masked_mean(x, mask), kept.mean(), **FP64)


def test_nothing_counted_is_zero_and_sends_no_gradient() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    x = torch.full((2, 3), torch.inf, requires_grad=True)
    for function in (masked_sum, masked_mean):
        out = function(x, mask)
        assert float(out.detach()) == 0.0
        (grad,) = torch.autograd.grad(out, x)
        assert_close(grad, torch.zeros(2, 3), **FP32)
    assert_close(whiten(x.detach(), mask), torch.zeros(2, 3), **FP32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("center", [True, False])
def test_whitening_gives_unit_deviation_and_the_mean_that_was_asked_for(
    center: bool, dtype: torch.dtype
) -> None:
    mask = ragged_mask()
    x = (3.0 + 2.0 * ragged(mask)).to(dtype)
    got = whiten(x, mask, center=center)
    expected = torch.tensor(
        reference.whitened(x.double().tolist(), mask.tolist(), center), dtype=torch.float64
    )
    assert got.dtype == dtype
    assert_close(
        got.double(), expected, **(BF16 if dtype == torch.bfloat16 else FP32)
    )  # eps in the denominator


def test_equal_entries_are_whitened_to_zero() -> None:
    x = torch.full((2, 4), 0.1)
    mask = ragged_mask((4, 2))
    assert_close(whiten(x, mask), torch.zeros(2, 4), rtol=0.0, atol=1e-3)
    assert_close(whiten(x, mask, center=False)[0], x[0], rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_of_parts_merge_to_those_of_the_whole(offset: float) -> None:
    mask = ragged_mask()
    x = (ragged(mask, garbage=0.0) + offset).float()
    parts = [
        masked_moments(rows, flags) for rows, flags in zip(x.split(2), mask.split(2), strict=True)
    ]
    merged = merge_moments(Moments(*(torch.stack(field) for field in zip(*parts, strict=True))))
    kept = x[mask].double()
    assert float(merged.n) == len(kept)
    assert_close(merged.mean.double(), kept.mean(), rtol=1e-6, atol=1e-6)
    # A sum of squares in float32 would be off by the whole variance at the offset.
    assert_close(merged.variance.double(), kept.var(), rtol=1e-3, atol=1e-6)
    assert_close(merged.std, merged.variance.sqrt(), **FP32)


def test_whitening_with_the_moments_of_all_ranks_equals_whitening_the_gathered_batch() -> None:
    mask = ragged_mask()
    x = ragged(mask)
    whole = whiten(x, mask)
    parts = [
        masked_moments(rows, flags) for rows, flags in zip(x.split(3), mask.split(3), strict=True)
    ]
    moments = merge_moments(Moments(*torch.stack([torch.stack(part) for part in parts]).unbind(-1)))
    ranks = [
        whiten(rows, flags, moments=moments)
        for rows, flags in zip(x.split(3), mask.split(3), strict=True)
    ]
    assert_close(torch.cat(ranks), whole, **FP64)


def test_merging_with_nothing_changes_nothing() -> None:
    zero = torch.zeros(())
    x = torch.tensor([1.0, 2.0, 4.0])
    moments = masked_moments(x, torch.ones(3, dtype=torch.bool))
    merged = merge_moments(Moments(*(torch.stack([zero, field]) for field in moments)))
    assert_close(tuple(merged), tuple(moments), **FP32)
    nothing = merge_moments(Moments(*(torch.stack([zero, zero]) for _ in range(3))))
    assert [float(field) for field in nothing] == [0.0, 0.0, 0.0]
    assert float(nothing.variance) == 0.0


def test_lists_become_rows_with_zeros_behind_them() -> None:
    ids, mask = padded_rows([[3, 0], [], [7]])
    assert ids.tolist() == [[3, 0], [0, 0], [7, 0]]
    assert mask.tolist() == [[True, True], [False, False], [True, False]]
    assert [len(part) for part in padded_rows([])] == [0, 0]


def test_last_index() -> None:
    mask = ragged_mask()
    assert last_index(mask).tolist() == [max(n - 1, 0) for n in LENGTHS]
    holes = torch.tensor([[True, False, True, False]])
    assert last_index(holes).tolist() == [2]
