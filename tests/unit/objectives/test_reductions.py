"""Numerators and denominators: their quotients, their gradients, and that they add up over microbatches."""

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.objectives import ConstantLength, Reduction, SequenceMean, SequenceSum, TokenMean
from tests.reference import policy_losses as reference
from tests.reference.batches import LENGTHS, ragged, ragged_mask, rows
from tests.reference.preference_stats import concrete
from tests.tolerances import FP64

MASK = ragged_mask()
LOSS = ragged(MASK, garbage=1e3)
# The class, its slow form, and the weight of a token of a sequence of n.
REDUCTIONS = {
    "TokenMean": (TokenMean(), reference.token_mean, lambda n: 1 / sum(LENGTHS)),
    "SequenceMean": (SequenceMean(), reference.sequence_mean, lambda n: 1 / (5 * n)),
    "SequenceSum": (SequenceSum(), reference.sequence_sum, lambda n: 1 / 5),
    "ConstantLength": (
        ConstantLength(20),
        lambda losses: reference.sequence_sum(losses) / 20,
        lambda n: 1 / 100,
    ),
}


def test_the_table_has_every_reduction() -> None:
    assert concrete(Reduction) == set(REDUCTIONS)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_value_is_that_of_the_definition(name: str) -> None:
    reduction, expected, _ = REDUCTIONS[name]
    assert_close(float(reduction(LOSS, MASK)), expected(rows(LOSS, MASK)), **FP64)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_nothing_counted_is_zero(name: str) -> None:
    reduction = REDUCTIONS[name][0]
    loss, mask = torch.full((2, 3), torch.nan), torch.zeros(2, 3, dtype=torch.bool)
    assert float(reduction.numerator(loss, mask)) == 0.0
    assert float(reduction.denominator(mask)) == 0.0
    assert float(reduction(loss, mask)) == 0.0


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_gradient_is_zero_where_masked_and_weighs_as_it_says(name: str) -> None:
    reduction, _, weight = REDUCTIONS[name]
    loss = LOSS.clone().requires_grad_()
    (grad,) = torch.autograd.grad(reduction(loss, MASK), loss)
    assert torch.equal(grad[~MASK], torch.zeros_like(grad[~MASK]))
    expected = torch.tensor([weight(n) for n in LENGTHS if n], dtype=torch.float64)
    assert_close(grad[MASK.any(-1), 0], expected, **FP64)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("sizes", [[1] * 6, [2, 4], [5, 1]])
def test_microbatches_accumulate_to_the_whole(name: str, sizes: list[int]) -> None:
    """The gradient too: the denominator is that of the whole, known before any loss."""
    reduction = REDUCTIONS[name][0]
    loss = LOSS.clone().requires_grad_()
    total = sum(reduction.denominator(mask) for mask in MASK.split(sizes))
    for part, mask in zip(loss.split(sizes), MASK.split(sizes), strict=True):
        (reduction.numerator(part, mask) / total).backward()
    whole = LOSS.clone().requires_grad_()
    reduction(whole, MASK).backward()
    assert_close(loss.grad, whole.grad, **FP64)
    assert_close(total, reduction.denominator(MASK), **FP64)


def test_a_length_below_one_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"ConstantLength\(length=0\): length must be 1 or more"
    ):
        ConstantLength(0)
