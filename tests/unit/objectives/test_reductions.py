"""The reduction classes against their functions, divided into microbatches."""

import pytest
import torch
from torch.testing import assert_close

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.reduction import (
    Fraction,
    constant_length,
    sequence_mean,
    sequence_sum,
    token_mean,
)
from lit_rlhf.objectives import ConstantLength, Reduction, SequenceMean, SequenceSum, TokenMean
from tests.reference.batches import ragged, ragged_mask
from tests.tolerances import FP64

MASK = ragged_mask()
LOSS = ragged(MASK, garbage=1e3)
CASES = {
    "token mean": (TokenMean(), token_mean(LOSS, MASK)),
    "sequence mean": (SequenceMean(), sequence_mean(LOSS, MASK)),
    "sequence sum": (SequenceSum(), sequence_sum(LOSS, MASK)),
    "constant length": (ConstantLength(9), constant_length(LOSS, MASK, 9)),
}


@pytest.mark.parametrize(("reduction", "expected"), CASES.values(), ids=CASES)
def test_a_class_is_its_function(reduction: Reduction, expected: Fraction) -> None:
    assert_close(reduction.numerator(LOSS, MASK), expected.numerator, **FP64)
    assert_close(reduction.denominator(MASK), expected.denominator, **FP64)


@pytest.mark.parametrize(("reduction", "expected"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("sizes", [[1] * 6, [2, 4], [5, 1]])
def test_microbatches_accumulate_to_the_whole(
    reduction: Reduction, expected: Fraction, sizes: list[int]
) -> None:
    """The gradient too: the denominator is that of the whole, known before any loss."""
    loss = LOSS.clone().requires_grad_()
    total = sum(reduction.denominator(mask) for mask in MASK.split(sizes))
    for part, mask in zip(loss.split(sizes), MASK.split(sizes), strict=True):
        (reduction.numerator(part, mask) / total).backward()
    whole = LOSS.clone().requires_grad_()
    (reduction.numerator(whole, MASK) / reduction.denominator(MASK)).backward()
    assert_close(loss.grad, whole.grad, **FP64)
    assert_close(total, expected.denominator, **FP64)


def test_a_length_below_one_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"ConstantLength\(length=0\): length must be 1 or more"
    ):
        ConstantLength(0)
    assert float(ConstantLength(3).denominator(torch.ones(2, 2, dtype=torch.bool))) == 6.0
