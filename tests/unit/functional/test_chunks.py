"""Rows by chunks: values and gradients of both ways, and what never exists at once."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.functional.chunks import rows_by_chunks
from tests.tolerances import FP64

N, WIDTH, VOCABULARY = 7, 3, 5


def _problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    shapes = (N, WIDTH), (N, VOCABULARY), (VOCABULARY, WIDTH), (N,)
    hidden, other, weight, upstream = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes
    )
    return hidden, other, weight, upstream


def _compute(rows: Tensor, other: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    logits = rows @ weight.T
    return (logits.log_softmax(-1) * other).sum(-1), logits.detach().amax(-1)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
@pytest.mark.parametrize("keep_slopes", [True, False])
def test_chunks_are_as_good_as_all_at_once(chunk_size: int, keep_slopes: bool) -> None:
    hidden, other, weight, upstream = _problem()
    sizes: list[int] = []

    def compute(rows: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(rows))
        return _compute(rows, theirs, trained)

    trained = weight.clone().requires_grad_(not keep_slopes)
    leaf, whole, whole_weight = (x.clone().requires_grad_(True) for x in (hidden, hidden, weight))
    value, seen = rows_by_chunks(
        compute, leaf, other, chunk_size=chunk_size, keep_slopes=keep_slopes
    )
    expected, looked_at = _compute(whole, other, whole_weight)
    assert_close(value, expected, **FP64)
    assert_close(seen, looked_at, **FP64)
    assert not seen.requires_grad
    passes = len(sizes)
    (upstream * value).sum().backward()
    (upstream * expected).sum().backward()
    assert_close(leaf.grad, whole.grad, **FP64)
    assert max(sizes) <= chunk_size
    assert (len(sizes) == passes) == keep_slopes  # one of the two ways computes again
    if not keep_slopes:
        assert_close(trained.grad, whole_weight.grad, **FP64)


def test_without_gradients_nothing_is_kept() -> None:
    hidden, other, weight, _ = _problem()
    with torch.no_grad():
        value, _ = rows_by_chunks(
            lambda rows, theirs: _compute(rows, theirs, weight),
            hidden,
            other,
            chunk_size=2,
            keep_slopes=True,
        )
    assert not value.requires_grad
    assert_close(value, _compute(hidden, other, weight)[0], **FP64)


@pytest.mark.parametrize("keep_slopes", [True, False])
def test_no_rows_are_no_numbers_and_a_gradient_of_zero(keep_slopes: bool) -> None:
    hidden, other, weight, _ = _problem()
    hidden, weight = hidden[:0].requires_grad_(True), weight.requires_grad_(not keep_slopes)
    value, seen = rows_by_chunks(
        lambda rows, theirs: _compute(rows, theirs, weight),
        hidden,
        other[:0],
        chunk_size=2,
        keep_slopes=keep_slopes,
    )
    assert value.shape == seen.shape == (0,)
    value.sum().backward()
    if not keep_slopes:
        assert_close(weight.grad, torch.zeros_like(weight), **FP64)
