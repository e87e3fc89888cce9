"""Advantages against defining sums and loops over groups."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.advantages import (
    discounted_returns,
    equal_groups,
    gae,
    greedy_baseline,
    group_centered,
    group_sizes,
    spread_over_tokens,
)
from tests.reference import advantages as reference
from tests.reference.batches import DTYPES, filled, ragged, ragged_mask, rows
from tests.tolerances import BF16, FP32, FP64

TOLERANCE = {torch.float64: FP64, torch.float32: FP32, torch.bfloat16: BF16}
MASK = ragged_mask()
REWARDS, VALUES = ragged(MASK, seed=0), ragged(MASK, seed=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.99, 1.0), (0.0, 0.5)]
)
def test_gae_matches_the_defining_sum(gamma: float, lam: float, dtype: torch.dtype) -> None:
    rewards, values = REWARDS.to(dtype), VALUES.to(dtype)
    got = gae(rewards, values, MASK, gamma, lam)
    pairs = [
        reference.gae(r, v, gamma, lam)
        for r, v in zip(rows(rewards, MASK), rows(values, MASK), strict=True)
    ]
    tolerance = TOLERANCE[dtype] if dtype != torch.bfloat16 else {"rtol": 5e-2, "atol": 5e-2}
    assert got.advantages.dtype == dtype
    assert_close(got.advantages.double(), filled([a for a, _ in pairs], 7), **tolerance)
    assert_close(got.returns.double(), filled([r for _, r in pairs], 7), **tolerance)


def test_gae_with_gamma_and_lambda_one_is_returns_minus_values() -> None:
    got = gae(REWARDS, VALUES, MASK, gamma=1.0, lam=1.0)
    to_go = discounted_returns(REWARDS, MASK)
    assert_close(got.advantages, torch.where(MASK, to_go - VALUES, 0.0), **FP64)
    assert_close(got.returns, to_go, **FP64)


def test_gae_steps_over_tokens_that_do_not_count() -> None:
    """Tool output between two stretches of the policy's own tokens: as if it were not there."""
    rewards, values = torch.randn(1, 6, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, False, True, True]])
    got = gae(rewards, values, mask, 0.9, 0.8)
    kept = gae(
        rewards[mask][None], values[mask][None], torch.ones(1, 4, dtype=torch.bool), 0.9, 0.8
    )
    assert_close(got.advantages[mask][None], kept.advantages, **FP64)
    assert_close(got.returns[mask][None], kept.returns, **FP64)
    assert torch.equal(got.advantages[~mask], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_discounted_returns_match_the_defining_sum(gamma: float) -> None:
    expected = filled([reference.returns(r, gamma) for r in rows(REWARDS, MASK)], 7)
    assert_close(discounted_returns(REWARDS, MASK, gamma), expected, **FP64)


def test_group_centered_is_minus_the_mean_and_in_float32() -> None:
    scores = torch.tensor([100.0, 100.5, 101.0, 101.5]).bfloat16()
    centered = group_centered(scores, 4)
    assert_close(centered, torch.tensor([-0.75, -0.25, 0.25, 0.75]), **FP32)


def test_a_sample_that_does_not_count_makes_its_group_smaller() -> None:
    """Whatever score stands in its place, the lowest or the highest."""
    there = torch.tensor([True, True, False, True, True, False, False, False, False])
    scores = torch.tensor([1.0, 2.0, -9.0, 3.0, 3.0, 99.0, 1.0, 2.0, 3.0])
    assert group_sizes(there, 3).tolist() == [2, 2, 2, 2, 2, 2, 0, 0, 0]
    centered = group_centered(scores, 3, there)
    assert_close(centered, torch.tensor([-0.5, 0.5, *[0.0] * 7]), **FP32)
    assert equal_groups(scores, 3, there).tolist() == [False, True, True]


def test_groups_of_one_and_uneven_groups_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"num_samples=1: an advantage within a group needs 2 or more"
    ):
        group_centered(torch.zeros(4), 1)
    with pytest.raises(
        ConfigurationError, match=r"5 scores can't be divided into groups of num_samples=2"
    ):
        group_centered(torch.zeros(5), 2)


def test_greedy_baseline_is_subtracted_at_each_token() -> None:
    returns = torch.tensor([[3.0, 2.0], [5.0, float("nan")]])
    got = greedy_baseline(returns, torch.tensor([1.0, 10.0]), ragged_mask((2, 1)))
    assert got.tolist() == [[2.0, 1.0], [-5.0, 0.0]]


def test_spreading_and_equal_groups() -> None:
    spread = spread_over_tokens(torch.tensor([1.0, -2.0]), ragged_mask((2, 1)))
    assert spread.tolist() == [[1.0, 1.0], [-2.0, 0.0]]
    assert equal_groups(torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0, 1.0]), 3).tolist() == [False, True]


def test_the_inputs_are_left_alone() -> None:
    rewards, values = torch.where(MASK, REWARDS, 0.0), torch.where(MASK, VALUES, 0.0)
    before: tuple[Tensor, ...] = (rewards.clone(), values.clone())
    gae(rewards, values, MASK)
    assert torch.equal(rewards, before[0])
    assert torch.equal(values, before[1])
