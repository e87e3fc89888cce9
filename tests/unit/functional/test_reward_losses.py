"""Losses of reward models against probabilities written out, their gradients and invariances."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.functional.reward_losses import (
    all_pairs_loss,
    bradley_terry_loss,
    centering_penalty,
    ensemble_mean,
    ensemble_uncertainty_weighted,
    ensemble_worst,
    gaussian_nll_loss,
    length_debiased_loss,
    outcome_loss,
    pair_agreement,
    plackett_luce_loss,
    process_loss,
    regression_loss,
    scaled_bradley_terry_loss,
)
from tests.reference import reward_losses as reference
from tests.reference.batches import DTYPES, ragged, ragged_mask, rows
from tests.tolerances import BF16, FP32, FP64

TOLERANCE = {torch.float64: FP64, torch.float32: FP32, torch.bfloat16: BF16}
BRANCHES = ragged_mask((4, 2, 3, 1, 0, 4))
SCORES, TARGETS = ragged(BRANCHES, seed=0), ragged(BRANCHES, seed=1)


def _columns(n: int = 9, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    chosen, rejected = torch.randn(2, n, generator=draw, dtype=torch.float64)
    margin, p_chosen = torch.rand(2, n, generator=draw, dtype=torch.float64)
    return tuple(x.to(dtype) for x in (chosen, rejected, margin, p_chosen))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("with_margin", [False, True])
def test_bradley_terry_matches_its_probability(
    with_margin: bool, soft: bool, label_smoothing: float, dtype: torch.dtype
) -> None:
    chosen, rejected, margin, p_chosen = _columns(dtype=dtype)
    got = bradley_terry_loss(
        chosen,
        rejected,
        margin=margin if with_margin else None,
        p_chosen=p_chosen if soft else None,
        label_smoothing=label_smoothing,
    )
    expected = [
        reference.bradley_terry(
            c, r, m if with_margin else 0.0, p if soft else 1.0, label_smoothing
        )
        for c, r, m, p in zip(
            *(x.tolist() for x in (chosen, rejected, margin, p_chosen)), strict=True
        )
    ]
    assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), **TOLERANCE[dtype])


def test_swapping_a_pair_flips_the_label() -> None:
    chosen, rejected, _, p = _columns()
    swapped = bradley_terry_loss(rejected, chosen, p_chosen=1 - p)
    assert_close(bradley_terry_loss(chosen, rejected, p_chosen=p), swapped, **FP64)


def test_a_constant_per_prompt_is_not_seen() -> None:
    chosen, rejected, margin, _ = _columns()
    shift = torch.randn_like(chosen)
    for options in ({}, {"margin": margin}):
        got = bradley_terry_loss(chosen + shift, rejected + shift, **options)
        assert_close(got, bradley_terry_loss(chosen, rejected, **options), **FP64)


@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_large_gaps_overflow_nothing(gap: float) -> None:
    chosen = torch.tensor([gap], requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.zeros(1), label_smoothing=0.1)
    (grad,) = torch.autograd.grad(loss.sum(), chosen)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(grad).all()


def _minimum(loss: Callable[[Tensor], Tensor]) -> float:
    """The difference of scores at which a loss of one pair is least, by bisection on its gradient."""
    low, high = -20.0, 20.0
    for _ in range(80):
        middle = torch.tensor([(low + high) / 2], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(middle).sum(), middle)
        low, high = (
            (float(middle.detach()), high) if float(slope) < 0 else (low, float(middle.detach()))
        )
    return low


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_soft_labels_are_fitted_by_their_log_odds(p: float) -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    label = torch.tensor([p], dtype=torch.float64)
    assert_close(
        _minimum(lambda d: bradley_terry_loss(d, zero, p_chosen=label)),
        math.log(p / (1 - p)),
        rtol=1e-9,
        atol=1e-9,
    )
    smoothed = p * 0.9 + (1 - p) * 0.1
    assert_close(
        _minimum(lambda d: bradley_terry_loss(d, zero, p_chosen=label, label_smoothing=0.1)),
        math.log(smoothed / (1 - smoothed)),
        rtol=1e-9,
        atol=1e-9,
    )


def test_scaling_and_centering() -> None:
    chosen, rejected, scale, _ = _columns()
    expected = scale * bradley_terry_loss(chosen, rejected)
    assert_close(scaled_bradley_terry_loss(chosen, rejected, scale), expected, **FP64)
    smoothed = scale * bradley_terry_loss(chosen, rejected, label_smoothing=0.2)
    assert_close(
        scaled_bradley_terry_loss(chosen, rejected, scale, label_smoothing=0.2), smoothed, **FP64
    )
    assert centering_penalty(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 1.0])).tolist() == [
        0.0,
        9.0,
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("garbage", [float("nan"), 1e3, -1e3])
def test_rankings_match_loops_over_pairs_and_choices(garbage: float, dtype: torch.dtype) -> None:
    scores, targets = (
        ragged(BRANCHES, seed=seed, dtype=dtype, garbage=garbage) for seed in range(2)
    )
    lists = list(zip(rows(scores, BRANCHES), rows(targets, BRANCHES), strict=True))
    for function, slow in (
        (all_pairs_loss, reference.all_pairs),
        (pair_agreement, reference.pair_agreement),
        (plackett_luce_loss, reference.plackett_luce),
    ):
        expected = torch.tensor([slow(*pair) for pair in lists], dtype=torch.float64)
        assert_close(function(scores, targets, BRANCHES).double(), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("garbage", [float("nan"), 1e3])
def test_rated_lists_give_every_pair_a_soft_label(garbage: float, temperature: float) -> None:
    scores, targets = (ragged(BRANCHES, seed=seed, garbage=garbage) for seed in range(2))
    lists = zip(rows(scores, BRANCHES), rows(targets, BRANCHES), strict=True)
    expected = torch.tensor(
        [reference.soft_pairs(*pair, temperature) for pair in lists], dtype=torch.float64
    )
    assert_close(all_pairs_loss(scores, targets, BRANCHES, temperature).double(), expected, **FP32)


def test_ratings_over_the_temperature_are_where_soft_pairs_are_least() -> None:
    ratings = torch.tensor([[1.5, -0.5, 0.25, 0.25]], dtype=torch.float64)
    scores = (ratings / 0.7 + 3.0).requires_grad_()
    loss = all_pairs_loss(scores, ratings, torch.ones_like(ratings, dtype=torch.bool), 0.7)
    (grad,) = torch.autograd.grad(loss.sum(), scores)
    assert_close(grad, torch.zeros_like(grad), **FP64)


def test_tied_completions_are_each_chosen_from_all_that_are_tied() -> None:
    """Breslow: in the order a = b > c, both a and b are drawn from {a, b, c}."""
    a, b, c = 0.3, -0.2, 0.9
    all_three = math.log(math.exp(a) + math.exp(b) + math.exp(c))
    got = plackett_luce_loss(
        torch.tensor([[a, b, c]]), torch.tensor([[1.0, 1.0, 0.0]]), torch.ones(1, 3).bool()
    )
    assert_close(got, torch.tensor([2 * all_three - a - b]), **FP32)


@pytest.mark.parametrize("top", [1, 2, 3, 9])
def test_the_first_choices_alone(top: int) -> None:
    lists = zip(rows(SCORES, BRANCHES), rows(TARGETS, BRANCHES), strict=True)
    expected = torch.tensor(
        [reference.plackett_luce(s, t, top) for s, t in lists], dtype=torch.float64
    )
    assert_close(plackett_luce_loss(SCORES, TARGETS, BRANCHES, top), expected, **FP64)


def test_a_list_of_two_is_a_pair() -> None:
    chosen, rejected, _, _ = _columns()
    scores = torch.stack([chosen, rejected], dim=1)
    order = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand_as(scores)
    everything = torch.ones_like(scores, dtype=torch.bool)
    expected = bradley_terry_loss(chosen, rejected)
    assert_close(all_pairs_loss(scores, order, everything), expected, **FP64)
    assert_close(plackett_luce_loss(scores, order, everything), expected, **FP64)


@pytest.mark.parametrize("function", [all_pairs_loss, plackett_luce_loss, pair_agreement])
def test_the_order_of_the_branches_does_not_matter_even_with_ties(
    function: Callable[..., Tensor],
) -> None:
    scores = torch.randn(5, 4, dtype=torch.float64)
    targets = torch.tensor([[2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 1.0, 0.0]] * 2)[
        :5
    ].double()
    mask = ragged_mask((4, 4, 4, 3, 2), width=4)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(
        function(scores[:, order], targets[:, order], mask[:, order]),
        function(scores, targets, mask),
        **FP64,
    )


def test_ties_are_no_pairs() -> None:
    everything = torch.ones(1, 3, dtype=torch.bool)
    scores = torch.randn(1, 3, requires_grad=True)
    loss = all_pairs_loss(scores, torch.ones(1, 3), everything)
    assert float(loss.detach()) == 0.0
    (grad,) = torch.autograd.grad(loss.sum(), scores)
    assert torch.equal(grad, torch.zeros(1, 3))


@pytest.mark.parametrize(
    "function",
    [
        all_pairs_loss,
        partial(all_pairs_loss, temperature=0.5),
        plackett_luce_loss,
        regression_loss,
        lambda *args: process_loss(*args).sum(-1),
    ],
)
def test_branches_that_do_not_exist_send_no_gradient(function: Callable[..., Tensor]) -> None:
    scores = SCORES.clone().requires_grad_()
    loss = function(scores, TARGETS, BRANCHES)
    assert torch.isfinite(loss).all()
    (grad,) = torch.autograd.grad(loss.sum(), scores)
    assert torch.equal(grad[~BRANCHES], torch.zeros_like(grad[~BRANCHES]))
    assert torch.isfinite(grad).all()


def test_regression_is_the_mean_squared_error_of_what_was_rated() -> None:
    expected = [
        sum((s - t) ** 2 for s, t in zip(a, b, strict=True)) / max(len(a), 1)
        for a, b in zip(rows(SCORES, BRANCHES), rows(TARGETS, BRANCHES), strict=True)
    ]
    assert_close(
        regression_loss(SCORES, TARGETS, BRANCHES),
        torch.tensor(expected, dtype=torch.float64),
        **FP64,
    )


def test_gaussian_likelihood() -> None:
    mean, log_std, target = torch.randn(3, 2, 3, dtype=torch.float64)
    flat = zip(
        mean.flatten().tolist(), log_std.flatten().tolist(), target.flatten().tolist(), strict=True
    )
    expected = torch.tensor(
        [reference.gaussian_nll(*values) for values in flat], dtype=torch.float64
    ).view(2, 3)
    assert_close(gaussian_nll_loss(mean, log_std, target), expected, **FP64)


def test_process_and_outcome_losses_are_cross_entropies() -> None:
    logits, labels = SCORES, TARGETS.sigmoid()
    expected = torch.zeros_like(logits)
    for b, t in BRANCHES.nonzero().tolist():
        expected[b, t] = reference.cross_entropy(float(logits[b, t]), float(labels[b, t]))
    assert_close(process_loss(logits, labels, BRANCHES), expected, **FP64)
    assert_close(outcome_loss(logits[BRANCHES], labels[BRANCHES]), expected[BRANCHES], **FP64)


@pytest.mark.parametrize("sign", [1, -1])
def test_length_debiased_loss_is_the_pair_loss_of_both_heads_plus_correlations(sign: int) -> None:
    quality, length_scores = sign * torch.randn(2, 6, 2, dtype=torch.float64)
    lengths = torch.randint(1, 50, (6, 2))
    got = length_debiased_loss(quality, length_scores, lengths, coef=0.7)
    flat = lengths.flatten().tolist()
    penalty = abs(reference.correlation(quality.flatten().tolist(), flat))
    penalty += 1 - reference.correlation(length_scores.flatten().tolist(), flat)
    total = (quality + length_scores).tolist()
    expected = [reference.bradley_terry(*pair) + 0.7 * penalty for pair in total]
    assert_close(got, torch.tensor(expected, dtype=torch.float64), **FP64)


def test_equal_lengths_leave_the_correlation_at_zero() -> None:
    quality = torch.randn(3, 2, requires_grad=True)
    loss = length_debiased_loss(quality, torch.zeros(3, 2), torch.full((3, 2), 5), coef=1.0)
    assert_close(loss, bradley_terry_loss(quality[:, 0], quality[:, 1]) + 1, **FP32)
    (grad,) = torch.autograd.grad(loss.sum(), quality)
    assert torch.isfinite(grad).all()


def test_ensembles() -> None:
    scores = torch.tensor([[1.0, 4.0], [2.0, 4.0], [6.0, 4.0]])
    assert ensemble_mean(scores).tolist() == [3.0, 4.0]
    assert ensemble_worst(scores).tolist() == [1.0, 4.0]
    assert_close(
        ensemble_uncertainty_weighted(scores, 0.5), torch.tensor([3 - 0.5 * 14 / 3, 4.0]), **FP32
    )


def test_gradcheck() -> None:
    chosen, rejected, margin, p = _columns(4)
    chosen.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: bradley_terry_loss(x, rejected, margin=margin, p_chosen=p, label_smoothing=0.1),
        (chosen,),
    )
    full = torch.ones(2, 3, dtype=torch.bool)
    scores, targets = (
        torch.randn(2, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3).double(),
    )
    for function in (all_pairs_loss, plackett_luce_loss, regression_loss, process_loss):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, targets, full), (scores,))
    lengths = torch.tensor([[3, 5], [9, 2]])
    quality, extra = (torch.randn(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda q, e: length_debiased_loss(q, e, lengths), (quality, extra)
    )
