"""Numerators and denominators: their quotients, and that they add up over microbatches."""

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.functional.reduction import (
    Fraction,
    constant_length,
    sequence_count,
    sequence_mean,
    sequence_sum,
    token_count,
    token_mean,
)
from tests.reference import policy_losses as reference
from tests.reference.batches import LENGTHS, ragged, ragged_mask, rows
from tests.tolerances import FP32, FP64

MASK = ragged_mask()
LOSS = ragged(MASK, garbage=1e3)
REDUCTIONS = {
    "token mean": (token_mean, reference.token_mean),
    "sequence mean": (sequence_mean, reference.sequence_mean),
    "sequence sum": (sequence_sum, reference.sequence_sum),
    "constant length": (
        lambda loss, mask: constant_length(loss, mask, 20),
        lambda losses: reference.sequence_sum(losses) / 20,
    ),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_value_is_that_of_the_definition(name: str) -> None:
    reduce, expected = REDUCTIONS[name]
    assert_close(float(reduce(LOSS, MASK).value), expected(rows(LOSS, MASK)), **FP64)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1, 1], [2, 4], [3, 3], [6]])
def test_parts_add_up_to_the_whole(name: str, sizes: list[int]) -> None:
    reduce, _ = REDUCTIONS[name]
    parts = [
        reduce(loss, mask) for loss, mask in zip(LOSS.split(sizes), MASK.split(sizes), strict=True)
    ]
    total = Fraction(sum(p.numerator for p in parts), sum(p.denominator for p in parts))
    assert_close(total.value, reduce(LOSS, MASK).value, **FP64)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_nothing_counted_is_zero(name: str) -> None:
    reduce, _ = REDUCTIONS[name]
    empty = reduce(torch.full((2, 3), torch.nan), torch.zeros(2, 3, dtype=torch.bool))
    assert (float(empty.numerator), float(empty.denominator), float(empty.value)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_gradient_is_zero_where_masked_and_weighs_as_it_says(name: str) -> None:
    reduce, _ = REDUCTIONS[name]
    loss = LOSS.clone().requires_grad_()
    (grad,) = torch.autograd.grad(reduce(loss, MASK).value, loss)
    assert torch.equal(grad[~MASK], torch.zeros_like(grad[~MASK]))
    weight = {
        "token mean": lambda n: 1 / sum(LENGTHS),
        "sequence mean": lambda n: 1 / (5 * n),
        "sequence sum": lambda n: 1 / 5,
        "constant length": lambda n: 1 / 100,
    }[name]
    expected = torch.tensor([weight(n) for n in LENGTHS if n], dtype=torch.float64)
    assert_close(grad[MASK.any(-1), 0], expected, **FP64)


def test_counts() -> None:
    assert_close(token_count(MASK), torch.tensor(float(sum(LENGTHS))), **FP32)
    assert_close(sequence_count(MASK), torch.tensor(5.0), **FP32)
