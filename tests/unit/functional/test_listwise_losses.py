"""Losses of lists against loops over the completions that exist, and their invariances."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf import functional as f
from tests.reference import preference_losses as slow
from tests.reference.batches import ragged, ragged_mask
from tests.tolerances import FP32, FP64

MASK = ragged_mask((4, 2, 3, 1, 0, 4))
GAPS = torch.tensor([[True, False, True, True], [False, True, True, False]])

WITH_REFERENCE: dict[str, tuple[Callable[..., Tensor], Callable[..., float], dict[str, float]]] = {
    "plackett_luce": (f.plackett_luce_dpo_loss, slow.plackett_luce, {"beta": 0.7}),
    "info_nca": (f.info_nca_loss, slow.info_nca, {"beta": 0.7, "temperature": 0.6}),
    "nca": (f.nca_loss, slow.nca, {"beta": 0.7, "temperature": 0.6}),
    "lipo_lambda": (f.lipo_lambda_loss, slow.lipo_lambda, {"beta": 0.7}),
}
WITHOUT: dict[str, tuple[Callable[..., Tensor], Callable[..., float], dict[str, float]]] = {
    "pro": (f.pro_loss, slow.pro, {"sft_weight": 0.3}),
    "rrhf": (f.rrhf_loss, slow.rrhf, {"length_power": 0.8, "rank_weight": 0.7}),
}
EVERY = WITH_REFERENCE | WITHOUT


def _columns(
    name: str, mask: Tensor, dtype: torch.dtype = torch.float64, garbage: float = float("nan")
) -> list[Tensor]:
    values, scores = (
        ragged(mask, seed=1, dtype=dtype, garbage=garbage),
        ragged(mask, seed=2, dtype=dtype, garbage=garbage),
    )
    lengths = torch.randint(1, 9, mask.shape, generator=torch.Generator().manual_seed(3)) * mask
    return [values, scores] if name in WITH_REFERENCE else [-values.abs(), lengths, scores]


def _slow(name: str, columns: list[Tensor], mask: Tensor) -> Tensor:
    _, reference, options = EVERY[name]
    rows: list[float] = []
    for *row, exists in zip(*columns, mask, strict=True):
        lists: list[Any] = [column[exists].tolist() for column in row]
        rows.append(reference(*lists, *options.values()) if lists[0] else 0.0)
    return torch.tensor(rows, dtype=columns[0].dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FP64), (torch.float32, FP32)])
@pytest.mark.parametrize("mask", [MASK, GAPS], ids=["ragged", "holes"])
@pytest.mark.parametrize("name", EVERY)
def test_matches_a_loop_over_what_exists(
    name: str, mask: Tensor, dtype: torch.dtype, tolerance: dict[str, float]
) -> None:
    columns = _columns(name, mask, dtype)
    function, _, options = EVERY[name]
    assert_close(function(*columns, mask, **options), _slow(name, columns, mask), **tolerance)


@pytest.mark.parametrize("name", EVERY)
def test_what_does_not_exist_gets_no_gradient(name: str) -> None:
    function, _, options = EVERY[name]
    values, *others = _columns(name, MASK)
    values = values.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(values, *others, MASK, **options).sum(), values)
    assert gradient.isfinite().all()
    assert (gradient[~MASK] == 0).all()
    assert (gradient[0] != 0).any()


@pytest.mark.parametrize("name", EVERY)
def test_order_of_the_branches_does_not_matter(name: str) -> None:
    function, _, options = EVERY[name]
    columns = _columns(name, MASK)
    order = [2, 0, 3, 1]
    shuffled = [column[:, order] for column in columns]
    assert_close(
        function(*shuffled, MASK[:, order], **options), function(*columns, MASK, **options), **FP64
    )


@pytest.mark.parametrize("name", ["plackett_luce", "info_nca", "lipo_lambda"])
def test_a_shift_of_the_prompt_changes_nothing(name: str) -> None:
    function, _, options = EVERY[name]
    u, scores = _columns(name, MASK)
    assert_close(
        function(u + 3.0, scores, MASK, **options), function(u, scores, MASK, **options), **FP64
    )


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("nca", "rrhf")])
def test_fewer_than_two_completions_rank_nothing(name: str) -> None:
    function, _, options = EVERY[name]
    loss = function(*_columns(name, MASK), MASK, **options)
    assert loss[3].item() == pytest.approx(0.0, abs=1e-12)
    assert loss[4].item() == 0.0


@pytest.mark.parametrize("scale", [1e3, 1e6])
@pytest.mark.parametrize("name", EVERY)
def test_finite_with_finite_gradients_however_far(name: str, scale: float) -> None:
    function, _, options = EVERY[name]
    values, *others = _columns(name, MASK, torch.float32)
    values = (values * scale).requires_grad_()
    loss = function(values, *others, MASK, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_two_completions_are_a_pair() -> None:
    both = torch.ones(5, 2, dtype=torch.bool)
    u, scores = (
        torch.randn(5, 2, dtype=torch.float64),
        torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(5, 2),
    )
    pair = f.dpo_loss(u[:, 0], u[:, 1], 0.4)
    assert_close(f.plackett_luce_dpo_loss(u, scores, both, 0.4), pair, **FP64)
    # Gains 2 - 1, discounts of ranks 1 and 2.
    lambda_weight = 1 / math.log(2) - 1 / math.log(3)
    assert_close(f.lipo_lambda_loss(u, scores, both, 0.4), lambda_weight * pair, **FP64)
    lengths = torch.ones(5, 2, dtype=torch.int64)
    assert_close(f.pro_loss(u, lengths, 0.4 * scores, both, 0.0), pair, **FP64)


def test_lipo_weights_carry_no_gradient() -> None:
    """The ranks are constant near u, so the slope is that of the logistic terms with their weights held."""
    mask = torch.ones(1, 3, dtype=torch.bool)
    u = torch.tensor([[0.5, -0.2, 1.0]], dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: f.lipo_lambda_loss(x, scores, mask, 0.7), (u,))


def test_ranks_descending_with_ties() -> None:
    assert f.ranks_descending(torch.tensor([[1.0, 3.0, 1.0, 2.0]])).tolist() == [[3, 1, 4, 2]]
