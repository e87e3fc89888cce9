"""Ratios, surrogates and value losses against one-token-at-a-time references, and their gradients."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.functional.kl import k3
from lit_rlhf.functional.masking import masked_mean, masked_sum
from lit_rlhf.functional.policy_losses import (
    approx_kl,
    clipped_surrogate,
    clipped_value_loss,
    high_clip_fraction,
    low_clip_fraction,
    masked_importance_weights,
    prefix_ratio,
    reinforce_loss,
    relative_reward_loss,
    sequence_ratio,
    token_ratio,
    truncated_importance_weights,
    value_clip_fraction,
    weight_clipped_surrogate,
)
from tests.reference import policy_losses as reference
from tests.reference.batches import DTYPES, LENGTHS, ragged, ragged_mask, rows
from tests.tolerances import BF16, FP32, FP64

TOLERANCE = {torch.float64: FP64, torch.float32: FP32, torch.bfloat16: BF16}
MASK = ragged_mask()
NEW, OLD, ADVANTAGES = (ragged(MASK, seed=seed) for seed in range(3))


def _grid(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Ratios from 0.3 to 4 with advantages of both signs and zero, away from the corners of the clip."""
    ratio, advantages = torch.meshgrid(
        torch.linspace(0.31, 4.01, 23, dtype=torch.float64),
        torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=torch.float64),
        indexing="ij",
    )
    return ratio.to(dtype), advantages.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (1.0, 0.5)])
def test_clipped_surrogate_matches_its_cases(
    low: float, high: float, dual: float | None, dtype: torch.dtype
) -> None:
    ratio, advantages = _grid(dtype)
    got = clipped_surrogate(ratio, advantages, low, high, dual)
    expected = [
        [
            reference.clipped(float(r), float(a), low, high, dual)
            for r, a in zip(row, column, strict=True)
        ]
        for row, column in zip(ratio, advantages, strict=True)
    ]
    assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), **TOLERANCE[dtype])


def test_gradients_stop_where_the_clip_fractions_say() -> None:
    ratio, advantages = _grid()
    ratio.requires_grad_()
    (grad,) = torch.autograd.grad(clipped_surrogate(ratio, advantages, 0.2, 0.28).sum(), ratio)
    low, high = (
        low_clip_fraction(ratio, advantages, 0.2),
        high_clip_fraction(ratio, advantages, 0.28),
    )
    stopped = (grad == 0) & (advantages != 0)
    assert torch.equal(stopped, (low + high).bool())
    assert low.sum() > 0
    assert high.sum() > 0


def test_dual_clip_stops_runaway_negative_advantages() -> None:
    ratio = torch.tensor([[2.9, 3.1]], requires_grad=True)
    loss = clipped_surrogate(ratio, torch.full((1, 2), -1.0), dual=3.0)
    assert_close(loss, torch.tensor([[2.9, 3.0]]), **FP32)
    (grad,) = torch.autograd.grad(loss.sum(), ratio)
    assert grad.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("low", [None, 0.3])
def test_weight_clipped_surrogate_matches_its_cases_and_keeps_every_gradient(
    low: float | None,
) -> None:
    ratio, advantages = _grid()
    logprobs = -torch.rand_like(ratio).requires_grad_()
    loss = weight_clipped_surrogate(ratio, logprobs, advantages, low, 1.5)
    expected = [
        [
            reference.weight_clipped(float(r), float(p), float(a), low, 1.5)
            for r, p, a in zip(*lines, strict=True)
        ]
        for lines in zip(ratio, logprobs.detach(), advantages, strict=True)
    ]
    assert_close(loss, torch.tensor(expected, dtype=torch.float64), **FP64)
    (grad,) = torch.autograd.grad(loss.sum(), logprobs)
    assert torch.equal(grad == 0, advantages == 0)


def test_the_weight_carries_no_gradient() -> None:
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    ratio = token_ratio(logprobs, torch.tensor([[-1.5]]), torch.tensor([[True]]))
    (grad,) = torch.autograd.grad(
        weight_clipped_surrogate(ratio, logprobs, torch.ones(1, 1)).sum(), logprobs
    )
    assert_close(grad, -ratio.detach(), **FP32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip", [None, 0.2])
def test_clipped_value_loss_matches_its_cases(clip: float | None, dtype: torch.dtype) -> None:
    values, old, returns = (torch.randn(6, 7, dtype=torch.float64).to(dtype) for _ in range(3))
    got = clipped_value_loss(values, old, returns, clip)
    expected = [
        [
            reference.value_loss(float(v), float(o), float(r), clip)
            for v, o, r in zip(*lines, strict=True)
        ]
        for lines in zip(values, old, returns, strict=True)
    ]
    assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), **TOLERANCE[dtype])


def test_value_clip_fraction_marks_the_values_without_gradient() -> None:
    values, old, returns = (torch.randn(20, 7, dtype=torch.float64) for _ in range(3))
    values.requires_grad_()
    (grad,) = torch.autograd.grad(clipped_value_loss(values, old, returns, 0.2).sum(), values)
    fraction = value_clip_fraction(values.detach(), old, returns, 0.2)
    assert torch.equal(fraction.bool(), grad == 0)
    assert 0 < float(fraction.mean()) < 1


def test_no_value_within_the_range_counts_as_clipped() -> None:
    """Values of large magnitude that moved little: what rounding makes of a sum is no clip."""
    old, moved = torch.randn(50, 40) * 10, torch.rand(50, 40) * 0.39 - 0.195
    assert float(value_clip_fraction(old + moved, old, torch.randn(50, 40), 0.2).sum()) == 0.0


def test_ratios_are_one_where_the_policy_is_the_sampler_and_where_masked() -> None:
    for function in (token_ratio, prefix_ratio, sequence_ratio):
        assert torch.equal(function(OLD, OLD, MASK), torch.ones_like(OLD))
        assert torch.equal(
            function(NEW, OLD, MASK)[3], torch.ones_like(OLD[3])
        )  # the empty sequence
    assert torch.equal(token_ratio(NEW, OLD, MASK)[~MASK], torch.ones_like(OLD[~MASK]))
    clipping = low_clip_fraction(token_ratio(OLD, OLD, MASK), ADVANTAGES, 0.2)
    assert float(clipping.sum()) == 0.0
    assert float(approx_kl(OLD, OLD, MASK).sum()) == 0.0


def test_token_and_prefix_ratios_match_products_of_probabilities() -> None:
    ratio, prefix = token_ratio(NEW, OLD, MASK), prefix_ratio(NEW, OLD, MASK)
    for n, (new, old) in enumerate(zip(rows(NEW, MASK), rows(OLD, MASK), strict=True)):
        product = 1.0
        for t, (a, b) in enumerate(zip(new, old, strict=True)):
            product *= math.exp(a) / math.exp(b)
            assert_close(float(ratio[n, t]), math.exp(a) / math.exp(b), **FP64)
            assert_close(float(prefix[n, t]), product, **FP64)


def test_sequence_ratio_is_the_geometric_mean_and_unnormalized_the_product() -> None:
    mean, product = (
        sequence_ratio(NEW, OLD, MASK),
        sequence_ratio(NEW, OLD, MASK, length_normalized=False),
    )
    for n, (new, old) in enumerate(zip(rows(NEW, MASK), rows(OLD, MASK), strict=True)):
        expected = reference.geometric_mean_ratio(new, old)
        assert_close(mean[n], torch.full_like(mean[n], expected), **FP64)
        assert_close(product[n], torch.full_like(mean[n], expected ** max(len(new), 1)), **FP64)


def test_token_form_of_the_sequence_ratio_has_the_gradient_of_the_ratio() -> None:
    """A token mean of the token form against the ratio of GSPO's paper, written out; a token sum for the product."""
    lengths = torch.tensor(LENGTHS)
    per_sequence = ADVANTAGES[:, 0].nan_to_num()

    def change(x: Tensor) -> Tensor:
        return torch.where(MASK, x - OLD, 0.0).sum(-1)

    for normalized, pool in ((True, masked_mean), (False, masked_sum)):
        new = NEW.clone().requires_grad_()
        ratio = sequence_ratio(new, OLD, MASK, length_normalized=normalized)
        (got,) = torch.autograd.grad((pool(ratio, MASK, dim=-1) * per_sequence).sum(), new)
        exponent = change(new) / lengths.clamp_min(1) if normalized else change(new)
        (expected,) = torch.autograd.grad((exponent.exp() * per_sequence).sum(), new)
        assert_close(got, expected, **FP64)


def test_the_gradient_at_ratio_one_is_the_policy_gradient() -> None:
    advantages = torch.where(MASK, ADVANTAGES, 0.0)
    start = torch.where(MASK, OLD, 0.0)

    def gradient(loss: Tensor, new: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(masked_sum(loss, MASK), new)
        return grad

    new = start.clone().requires_grad_()
    expected = gradient(reinforce_loss(new, advantages), new)
    assert_close(expected, -advantages, **FP64)
    ratio = token_ratio(new, start, MASK)
    assert_close(gradient(clipped_surrogate(ratio, advantages, dual=3.0), new), expected, **FP64)
    ratio = token_ratio(new, start, MASK)
    assert_close(gradient(weight_clipped_surrogate(ratio, new, advantages), new), expected, **FP64)
    ratio = sequence_ratio(new, start, MASK)
    assert_close(gradient(clipped_surrogate(ratio, advantages, 3e-4, 4e-4), new), expected, **FP64)


def test_gradcheck_away_from_corners() -> None:
    mask = ragged_mask((1, 2, 3))
    new, old, advantages = (ragged(mask, seed=seed, garbage=0.0) for seed in range(3))
    new.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(token_ratio(x, old, mask), advantages), (new,)
    )
    assert torch.autograd.gradcheck(lambda x: prefix_ratio(x, old, mask), (new,))
    assert torch.autograd.gradcheck(lambda x: clipped_value_loss(x, old, advantages), (new,))


def test_approx_kl_is_k3_of_the_sampler() -> None:
    assert_close(approx_kl(NEW, OLD, MASK)[MASK], k3(OLD, NEW)[MASK], **FP64)
    assert torch.equal(approx_kl(NEW, OLD, MASK)[~MASK], torch.zeros_like(OLD[~MASK]))


def test_extreme_ratios_stay_finite() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    new = torch.tensor([[0.0, -500.0]], requires_grad=True)
    old = torch.tensor([[-500.0, 0.0]])
    for function in (token_ratio, prefix_ratio, sequence_ratio, approx_kl):
        out = function(new, old, mask)
        assert torch.isfinite(out).all()
        (grad,) = torch.autograd.grad(out.sum(), new)
        assert torch.isfinite(grad).all()


def test_importance_weights_are_detached_and_bounded() -> None:
    train = torch.tensor([[0.0, -1.0, -1.0, -3.0]], requires_grad=True)
    engine = torch.tensor([[-1.0, -1.0, float("nan"), -1.0]])
    mask = torch.tensor([[True, True, False, True]])
    truncated = truncated_importance_weights(train, engine, mask, cap=2.0)
    assert_close(truncated, torch.tensor([[2.0, 1.0, 1.0, math.exp(-2)]]), **FP32)
    masked = masked_importance_weights(train, engine, mask, low=0.5, high=2.0)
    assert_close(masked, torch.tensor([[0.0, 1.0, 1.0, 0.0]]), **FP32)
    assert not truncated.requires_grad
    assert not masked.requires_grad


@pytest.mark.parametrize(("num_samples", "eta"), [(2, 1.0), (3, 0.4)])
def test_relative_reward_loss_is_the_squared_error_of_all_pairs(
    num_samples: int, eta: float
) -> None:
    rewards = ragged(MASK, seed=5)
    losses = relative_reward_loss(NEW, OLD, rewards, MASK, num_samples, eta)
    sums = [
        [sum(float(x[i, t]) for t in range(MASK.shape[1]) if MASK[i, t]) for i in range(len(MASK))]
        for x in (NEW, OLD, rewards)
    ]
    errors = [(new - old) / eta - reward for new, old, reward in zip(*sums, strict=True)]
    for start in range(0, len(MASK), num_samples):
        group = errors[start : start + num_samples]
        pairs = [(a - b) ** 2 for i, a in enumerate(group) for j, b in enumerate(group) if i != j]
        mean = float(losses[start : start + num_samples].mean())
        assert mean == pytest.approx(sum(pairs) / len(pairs), rel=1e-9)
