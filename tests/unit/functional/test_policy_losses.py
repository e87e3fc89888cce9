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
    clipped_value_loss,
    prefix_ratio,
    relative_reward_loss,
    sequence_ratio,
    token_ratio,
    value_clip_fraction,
)
from tests.reference import policy_losses as reference
from tests.reference.batches import DTYPES, LENGTHS, ragged, ragged_mask, rows
from tests.tolerances import BF16, FP32, FP64

TOLERANCE = {torch.float64: FP64, torch.float32: FP32, torch.bfloat16: BF16}
MASK = ragged_mask()
NEW, OLD, ADVANTAGES = (ragged(MASK, seed=seed) for seed in range(3))


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


def test_gradcheck_away_from_corners() -> None:
    mask = ragged_mask((1, 2, 3))
    new, old, advantages = (ragged(mask, seed=seed, garbage=0.0) for seed in range(3))
    new.requires_grad_()
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
        there = [i for i in range(start, start + num_samples) if bool(MASK[i].any())]
        pairs = [(errors[i] - errors[j]) ** 2 for i in there for j in there if i != j]
        found = losses[start : start + num_samples].sum() / len(there)
        assert float(found) == pytest.approx(sum(pairs) / max(len(pairs), 1), rel=1e-9)
