"""Losses of reward models against probabilities written out, their gradients and invariances."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf import objectives as o
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.rankings import pair_agreement
from tests.reference import reward_losses as reference
from tests.reference.batches import DTYPES, ragged, ragged_mask, rows
from tests.reference.preference_stats import concrete
from tests.tolerances import BF16, FP32, FP64

TOLERANCE = {torch.float64: FP64, torch.float32: FP32, torch.bfloat16: BF16}
BRANCHES = ragged_mask((4, 2, 3, 1, 0, 4))
SCORES, TARGETS = ragged(BRANCHES, seed=0), ragged(BRANCHES, seed=1)
FORMULAS = {
    *("BradleyTerry", "ScaledBradleyTerry", "AllPairs", "PlackettLuce", "Regression", "Outcome"),
    *("Process", "GaussianRegression", "LengthDebiased", "Attributes", "GatedAttributes"),
}


def _columns(n: int = 9, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    chosen, rejected = torch.randn(2, n, generator=draw, dtype=torch.float64)
    margin, p_chosen = torch.rand(2, n, generator=draw, dtype=torch.float64)
    return tuple(x.to(dtype) for x in (chosen, rejected, margin, p_chosen))


def test_every_reward_loss_is_a_formula_here_or_made_of_others() -> None:
    assert concrete(o.RewardLoss) == FORMULAS | {"RewardLossSum", "HeadEnsemble"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("with_margin", [False, True])
def test_bradley_terry_matches_its_probability(
    with_margin: bool, soft: bool, label_smoothing: float, dtype: torch.dtype
) -> None:
    chosen, rejected, margin, p_chosen = _columns(dtype=dtype)
    loss = o.BradleyTerry(label_smoothing) if label_smoothing else o.BradleyTerry()
    got = loss(
        chosen,
        rejected,
        margin=margin if with_margin else None,
        p_chosen=p_chosen if soft else None,
    )
    columns = zip(*(x.tolist() for x in (chosen, rejected, margin, p_chosen)), strict=True)
    expected = [
        reference.bradley_terry(
            c, r, m if with_margin else 0.0, p if soft else 1.0, label_smoothing
        )
        for c, r, m, p in columns
    ]
    assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), **TOLERANCE[dtype])


def test_swapping_a_pair_flips_the_label() -> None:
    chosen, rejected, _, p = _columns()
    swapped = o.BradleyTerry()(rejected, chosen, p_chosen=1 - p)
    assert_close(o.BradleyTerry()(chosen, rejected, p_chosen=p), swapped, **FP64)


def test_a_constant_per_prompt_is_not_seen() -> None:
    chosen, rejected, margin, _ = _columns()
    shift, loss = torch.randn_like(chosen), o.BradleyTerry()
    columns: dict[str, Tensor]
    for columns in ({}, {"margin": margin}):
        got = loss(chosen + shift, rejected + shift, **columns)
        assert_close(got, loss(chosen, rejected, **columns), **FP64)


@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_large_gaps_overflow_nothing(gap: float) -> None:
    chosen = torch.tensor([gap], requires_grad=True)
    loss = o.BradleyTerry(0.1)(chosen, torch.zeros(1))
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
    for smoothing, share in ((0.0, p), (0.1, p * 0.9 + (1 - p) * 0.1)):
        loss = o.BradleyTerry(smoothing)
        least = _minimum(lambda d, loss=loss: loss(d, zero, p_chosen=label))
        assert_close(least, math.log(share / (1 - share)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_scaling(smoothing: float) -> None:
    chosen, rejected, scale, _ = _columns()
    got = o.ScaledBradleyTerry(smoothing)(chosen, rejected, margin=scale)
    columns = zip(chosen.tolist(), rejected.tolist(), scale.tolist(), strict=True)
    expected = [m * reference.bradley_terry(c, r, label_smoothing=smoothing) for c, r, m in columns]
    assert_close(got, torch.tensor(expected, dtype=torch.float64), **FP64)


def test_centering() -> None:
    chosen, rejected, _, _ = _columns()
    plain = o.BradleyTerry()(chosen, rejected)
    centered = o.BradleyTerry(center_coefficient=0.01)(chosen, rejected)
    assert_close(centered, plain + 0.01 * (chosen + rejected) ** 2, **FP64)


# -- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("garbage", [float("nan"), 1e3, -1e3])
def test_rankings_match_loops_over_pairs_and_choices(garbage: float, dtype: torch.dtype) -> None:
    scores, targets = (
        ragged(BRANCHES, seed=seed, dtype=dtype, garbage=garbage) for seed in range(2)
    )
    lists = list(zip(rows(scores, BRANCHES), rows(targets, BRANCHES), strict=True))
    cases: list[tuple[Callable[..., Tensor], Callable[..., float]]] = [
        (o.AllPairs(), reference.all_pairs),
        (pair_agreement, reference.pair_agreement),
        (o.PlackettLuce(), reference.plackett_luce),
    ]
    for function, slow in cases:
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
    assert_close(o.AllPairs(temperature)(scores, targets, BRANCHES), expected, **FP64)


def test_ratings_over_the_temperature_are_where_soft_pairs_are_least() -> None:
    ratings = torch.tensor([[1.5, -0.5, 0.25, 0.25]], dtype=torch.float64)
    scores = (ratings / 0.7 + 3.0).requires_grad_()
    loss = o.AllPairs(0.7)(scores, ratings, torch.ones_like(ratings, dtype=torch.bool))
    (grad,) = torch.autograd.grad(loss.sum(), scores)
    assert_close(grad, torch.zeros_like(grad), **FP64)


def test_tied_completions_are_each_chosen_from_all_that_are_tied() -> None:
    """Breslow: in the order a = b > c, both a and b are drawn from {a, b, c}."""
    a, b, c = 0.3, -0.2, 0.9
    all_three = math.log(math.exp(a) + math.exp(b) + math.exp(c))
    got = o.PlackettLuce()(
        torch.tensor([[a, b, c]]), torch.tensor([[1.0, 1.0, 0.0]]), torch.ones(1, 3).bool()
    )
    assert_close(got, torch.tensor([2 * all_three - a - b]), **FP32)


@pytest.mark.parametrize("top", [1, 2, 3, 9])
def test_the_first_choices_alone(top: int) -> None:
    lists = zip(rows(SCORES, BRANCHES), rows(TARGETS, BRANCHES), strict=True)
    expected = torch.tensor(
        [reference.plackett_luce(s, t, top) for s, t in lists], dtype=torch.float64
    )
    assert_close(o.PlackettLuce(top)(SCORES, TARGETS, BRANCHES), expected, **FP64)


def test_a_list_of_two_is_a_pair() -> None:
    chosen, rejected, _, _ = _columns()
    scores = torch.stack([chosen, rejected], dim=1)
    order = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand_as(scores)
    everything = torch.ones_like(scores, dtype=torch.bool)
    expected = o.BradleyTerry()(chosen, rejected)
    for loss in (o.AllPairs(), o.PlackettLuce()):
        assert_close(loss(scores, order, everything), expected, **FP64)


@pytest.mark.parametrize("function", [o.AllPairs(), o.PlackettLuce(), pair_agreement])
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
    loss = o.AllPairs()(scores, torch.ones(1, 3), everything)
    assert float(loss.detach()) == 0.0
    (grad,) = torch.autograd.grad(loss.sum(), scores)
    assert torch.equal(grad, torch.zeros(1, 3))


OF_LISTS: list[Callable[..., Tensor]] = [
    o.AllPairs(),
    o.AllPairs(temperature=0.5),
    o.PlackettLuce(),
    o.Regression(),
    o.Process(),
    lambda scores, targets, mask: o.GaussianRegression()(scores, 0.5 * scores, targets, mask),
]


@pytest.mark.parametrize("function", OF_LISTS)
def test_branches_that_do_not_exist_send_no_gradient(function: Callable[..., Tensor]) -> None:
    scores = torch.where(BRANCHES, SCORES, 0.0).requires_grad_()
    loss = function(scores, torch.where(BRANCHES, TARGETS, 1e3), BRANCHES)
    assert torch.isfinite(loss).all()
    (grad,) = torch.autograd.grad(loss.sum(), scores)
    assert torch.equal(grad[~BRANCHES], torch.zeros_like(grad[~BRANCHES]))
    assert torch.isfinite(grad).all()


# -- single completions -----------------------------------------------------------------------------------------------


def test_regression_is_the_mean_squared_error_of_what_was_rated() -> None:
    expected = [
        sum((s - t) ** 2 for s, t in zip(a, b, strict=True)) / max(len(a), 1)
        for a, b in zip(rows(SCORES, BRANCHES), rows(TARGETS, BRANCHES), strict=True)
    ]
    got = o.Regression()(SCORES, TARGETS, BRANCHES)
    assert_close(got, torch.tensor(expected, dtype=torch.float64), **FP64)


def _row_means(slow: Callable[..., float], *columns: Tensor) -> Tensor:
    lists = zip(*(rows(column, BRANCHES) for column in columns), strict=True)
    means = []
    for row in lists:
        values = [slow(*numbers) for numbers in zip(*row, strict=True)]
        means.append(sum(values) / max(len(values), 1))
    return torch.tensor(means, dtype=torch.float64)


def test_gaussian_likelihood() -> None:
    log_stds = ragged(BRANCHES, seed=2)
    got = o.GaussianRegression()(SCORES, log_stds, TARGETS, BRANCHES)
    assert_close(got, _row_means(reference.gaussian_nll, SCORES, log_stds, TARGETS), **FP64)


def test_process_and_outcome_losses_are_cross_entropies() -> None:
    labels = TARGETS.sigmoid()
    got = o.Process()(SCORES, labels, BRANCHES)
    assert_close(got, _row_means(reference.cross_entropy, SCORES, labels), **FP64)
    flat = [
        reference.cross_entropy(float(z), float(y))
        for z, y in zip(SCORES[BRANCHES], labels[BRANCHES], strict=True)
    ]
    outcome = o.Outcome()(SCORES[BRANCHES], labels[BRANCHES])
    assert_close(outcome, torch.tensor(flat, dtype=torch.float64), **FP64)


@pytest.mark.parametrize("coef", [None, 0.7])
@pytest.mark.parametrize("sign", [1, -1])
def test_length_debiased_is_the_pair_loss_of_both_heads_plus_correlations(
    sign: int, coef: float | None
) -> None:
    quality, length_scores = sign * torch.randn(2, 6, 2, dtype=torch.float64)
    lengths = torch.randint(1, 50, (6, 2))
    loss = o.LengthDebiased() if coef is None else o.LengthDebiased(coef)
    got = loss(quality, length_scores, lengths)
    flat = lengths.flatten().tolist()
    penalty = abs(reference.correlation(quality.flatten().tolist(), flat))
    penalty += 1 - reference.correlation(length_scores.flatten().tolist(), flat)
    penalty *= 1.0 if coef is None else coef
    total = (quality + length_scores).tolist()
    expected = [reference.bradley_terry(*pair) + penalty for pair in total]
    assert_close(got, torch.tensor(expected, dtype=torch.float64), **FP64)


def test_equal_lengths_leave_the_correlation_at_zero() -> None:
    quality = torch.randn(3, 2, requires_grad=True)
    loss = o.LengthDebiased()(quality, torch.zeros(3, 2), torch.full((3, 2), 5))
    assert_close(loss, o.BradleyTerry()(quality[:, 0], quality[:, 1]) + 1, **FP32)
    (grad,) = torch.autograd.grad(loss.sum(), quality)
    assert torch.isfinite(grad).all()


def _rated(seed: int, rows: int = 5) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, 3, generator=draw, dtype=torch.float64)


def test_attributes_are_regressions_and_their_weighted_sum_the_reward() -> None:
    scores, targets = _rated(0), _rated(1)
    mask = torch.tensor([[True, True]] * 4 + [[True, False]])
    loss = o.Attributes([0.5, 2.0, -1.0])
    expected = [
        reference.squared_errors(*(x[n].tolist() for x in (scores, targets))) for n in range(4)
    ]
    expected.append(reference.squared_errors(*(x[4, :1].tolist() for x in (scores, targets))))
    assert_close(loss(scores, targets, mask), torch.tensor(expected, dtype=torch.float64), **FP64)
    assert_close(
        loss.reward(scores)[1, 0], scores[1, 0] @ torch.tensor([0.5, 2, -1]).double(), **FP64
    )
    heads, states = _rated(2)[0, :, :].T, _rated(3)[0, 0, :2]  # (A, h) and a state
    together = loss.exported_weight(heads) @ states
    assert_close(together, loss.reward((heads @ states)[None, None])[0, 0], **FP64)


@pytest.mark.parametrize("coef", [0.0, 0.3])
def test_gated_attributes_match_their_formula(coef: float) -> None:
    scores, targets, gates = _rated(0), _rated(1), _rated(2)[:, :1].expand(5, 2, 3)
    loss = o.GatedAttributes(3, coef)
    expected = []
    for line, rated, gate in zip(
        scores.tolist(), targets.tolist(), gates[:, 0].tolist(), strict=True
    ):
        chosen, rejected = (reference.gated(one, gate) for one in line)
        value = reference.bradley_terry(chosen, rejected)
        expected.append(value + coef * reference.squared_errors(line, rated))
    assert_close(loss(scores, gates, targets), torch.tensor(expected, dtype=torch.float64), **FP64)
    found = loss.of_batch(torch.cat([scores, gates], -1), {"attributes": targets})
    assert_close(found.loss, torch.tensor(expected, dtype=torch.float64), **FP64)
    even = loss.of_batch(torch.cat([scores, 0 * gates], -1), {"attributes": targets}).metrics
    assert_close(even["gate_entropy"], torch.tensor(3.0).double().log().expand(5), **FP64)


def test_ratings_must_be_as_many_as_heads() -> None:
    for loss, width in ((o.Attributes([1.0, 1.0]), 2), (o.GatedAttributes(2), 4)):
        with pytest.raises(ConfigurationError, match="2 attributes, and the data have 3"):
            loss.of_batch(torch.zeros(5, 2, width), {"attributes": _rated(0)})


def test_gradcheck() -> None:
    chosen, rejected, margin, p = _columns(4)
    chosen.requires_grad_()
    smoothed = partial(o.BradleyTerry(0.1, 0.01), margin=margin, p_chosen=p)
    assert torch.autograd.gradcheck(lambda x: smoothed(x, rejected), (chosen,))
    full = torch.ones(2, 3, dtype=torch.bool)
    scores = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(2, 3).double()
    for function in OF_LISTS:
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, targets, full), (scores,))
    rated = tuple(_rated(n, 2).requires_grad_() for n in range(3))
    assert torch.autograd.gradcheck(o.GatedAttributes(3), rated)
    lengths = torch.tensor([[3, 5], [9, 2]])
    heads: Any = tuple(torch.randn(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda q, e: o.LengthDebiased()(q, e, lengths), heads)
