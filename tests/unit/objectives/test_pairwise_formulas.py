"""Pairwise losses against the papers' forms in Python floats, their invariances, and what they do at the extremes."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf import objectives as o
from tests.reference import preference_losses as slow
from tests.reference.preference_stats import concrete
from tests.tolerances import FP32, FP64

LOG2 = math.log(2)
ROWS = 12


class Case(NamedTuple):
    """A loss and its reference.

    Attributes:
        reference: Of columns of one row and options.
        columns: The reference's, by name: w and l are the chosen and the rejected; u log-ratio, l log-probs, n length,
            k divergence, c collision, t log-ratios by token.
        defaults: The options that the docstring names, in the reference's order.
        others: Other values of them.
        fixed: Options of the class that the reference doesn't know.
        grouped: Whether it is made of single pairs.
    """

    reference: Callable[..., float]
    columns: str
    defaults: dict[str, float]
    others: dict[str, float]
    fixed: dict[str, Any] = {}
    grouped: bool = True


CASES = {
    "DPO": Case(slow.dpo, "uw ul", {"beta": 0.1}, {"beta": 0.3}),
    "SoftLabelDPO": Case(slow.soft_label_dpo, "uw ul p_chosen", {"beta": 0.1}, {"beta": 0.3}),
    "ConservativeDPO": Case(
        slow.conservative_dpo, "uw ul", {"label_smoothing": 0.1, "beta": 0.1}, {"label_smoothing": 0.2, "beta": 0.3}
    ),
    "RobustDPO": Case(
        slow.robust_dpo, "uw ul", {"label_smoothing": 0.1, "beta": 0.1}, {"label_smoothing": 0.2, "beta": 0.3}
    ),
    "LengthRegularizedDPO": Case(
        slow.length_regularized_dpo, "uw ul nw nl", {"beta": 0.1, "alpha": 0.01}, {"beta": 0.3, "alpha": 0.2}
    ),
    "LengthNormalizedDPO": Case(slow.length_normalized_dpo, "uw ul nw nl", {"beta": 5.0}, {"beta": 2.0}),
    "LengthDesensitizedDPO": Case(
        slow.length_desensitized_dpo, "tw tl", {"beta": 0.1, "alpha": 0.5}, {"beta": 0.3, "alpha": 0.2}
    ),
    "DPOP": Case(slow.dpop, "uw ul", {"beta": 0.3, "penalty": 50.0}, {"beta": 0.2, "penalty": 2.0}),
    "TDPO1": Case(slow.tdpo1, "uw ul kw kl", {"beta": 0.1}, {"beta": 0.3}),
    "TDPO2": Case(slow.tdpo2, "uw ul kw kl", {"beta": 0.1, "alpha": 0.5}, {"beta": 0.3, "alpha": 0.4}),
    "RPO": Case(slow.rpo, "uw ul lw nw", {"beta": 0.1, "alpha": 1.0}, {"beta": 0.3, "alpha": 0.7}),
    "SPIN": Case(slow.dpo, "uw ul", {"scale": 0.1}, {"scale": 0.3}),
    "ReverseKLDPO": Case(slow.dpo, "uw ul", {"beta": 0.1}, {"beta": 0.3}),
    "ForwardKLDPO": Case(slow.forward_kl_dpo, "uw ul", {"beta": 0.1}, {"beta": 0.3}),
    "JensenShannonDPO": Case(slow.jensen_shannon_dpo, "uw ul", {"beta": 0.1}, {"beta": 0.3}),
    "AlphaDivergenceDPO": Case(
        slow.alpha_divergence_dpo, "uw ul", {"beta": 0.1, "alpha": 0.5}, {"beta": 0.3, "alpha": 0.3}
    ),
    "IPO": Case(slow.ipo, "uw ul", {"tau": 0.1}, {"tau": 0.3}),
    "MeanIPO": Case(slow.ipo_mean, "uw ul nw nl", {"tau": 0.1}, {"tau": 0.3}),
    "RSOHinge": Case(slow.rso_hinge, "uw ul", {"gamma": 0.05}, {"gamma": 0.3}),
    "ExponentialGPO": Case(slow.gpo_exponential, "uw ul", {"beta": 0.1}, {"beta": 0.3}),
    "SavageGPO": Case(slow.gpo_savage, "uw ul", {"beta": 0.1}, {"beta": 0.3}),
    "SquaredGPO": Case(slow.gpo_squared, "uw ul", {"beta": 0.1}, {"beta": 0.3}),
    "EXO": Case(
        slow.exo, "uw ul", {"beta": 0.1, "label_smoothing": 1e-3}, {"beta": 0.3, "label_smoothing": 0.1}
    ),
    "DiscoPOP": Case(
        slow.discopop, "uw ul", {"beta": 0.05, "temperature": 0.05}, {"beta": 0.3, "temperature": 0.2}
    ),
    "SimPO": Case(slow.simpo, "lw ll nw nl", {"beta": 2.0, "gamma": 1.0}, {"beta": 3.0, "gamma": 0.5}),
    "AlphaPO": Case(
        slow.alphapo, "lw ll nw nl",
        {"beta": 2.0, "gamma": 1.0, "alpha": 0.25}, {"beta": 3.0, "gamma": 0.5, "alpha": 0.3},
    ),
    "CPO": Case(slow.cpo, "lw ll nw", {"beta": 0.1, "alpha": 1.0}, {"beta": 0.3, "alpha": 0.7}),
    "ORPO": Case(slow.orpo, "lw ll nw nl", {"weight": 0.1}, {"weight": 0.3}),
    "SLiC": Case(slow.slic, "lw ll", {"margin": 1.0, "weight": 0.1}, {"margin": 1.5, "weight": 0.3}),
    "NCAPair": Case(slow.nca_pair, "uw ul", {"beta": 0.01}, {"beta": 0.3}),
    "BCOPair": Case(slow.bco_pair, "uw ul shift", {"beta": 0.01}, {"beta": 0.3}),
    "APOZero": Case(slow.apo_zero, "uw ul", {"beta": 0.1}, {"beta": 0.3}),
    "APODown": Case(slow.apo_down, "uw ul", {"beta": 0.1}, {"beta": 0.3}),
    "CalDPO": Case(slow.cal_dpo, "uw ul", {"beta": 1e-3}, {"beta": 0.3}),
    "SPPO": Case(slow.sppo, "uw ul p_chosen", {"beta": 1e-3}, {"beta": 0.5}),
    "WPO": Case(slow.wpo, "uw ul lw ll cw cl nw nl", {"beta": 0.01}, {"beta": 0.3}),
    "AOT": Case(slow.dpo, "sorted_margin sorted_ref_margin", {"beta": 0.01}, {"beta": 0.3}, grouped=False),
    "UnpairedAOT": Case(slow.dpo, "sorted_uw sorted_ul", {"beta": 0.01}, {"beta": 0.3}, grouped=False),
    "BetaDPO": Case(slow.dpo, "uw ul", {"beta": 0.1}, {"beta": 0.3}, {"drop": 0.0}, grouped=False),
}  # fmt: skip


class Pairs:
    """12 pairs, half of them far from the reference."""

    def __init__(self, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> None:
        draw = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, 9, (2, ROWS), generator=draw)
        mask = torch.arange(8) < lengths[..., None]
        far = torch.tensor([1.0] * 6 + [6.0] * 6, dtype=torch.float64)[:, None] / lengths[..., None]
        tokens = (
            (-torch.rand(2, ROWS, 8, generator=draw, dtype=torch.float64) - 0.01) * mask * scale
        )
        drift = torch.randn(2, ROWS, 8, generator=draw, dtype=torch.float64) * far * mask * scale
        others = torch.randn(2, 2, ROWS, generator=draw, dtype=torch.float64).abs()
        self.p_chosen = torch.rand(ROWS, generator=draw, dtype=torch.float64).to(dtype)
        self.chosen, self.rejected = (
            o.Completion(
                tokens[k].sum(-1).to(dtype),
                lengths[k],
                (tokens - drift)[k].sum(-1).to(dtype),
                kl=others[0, k].to(dtype),
                collision=-others[1, k].to(dtype),
                token_logprobs=tokens[k].to(dtype),
                ref_token_logprobs=(tokens - drift)[k].to(dtype),
                token_mask=mask[k],
            )
            for k in (0, 1)
        )

    def columns(self, names: str, loss: o.PairwiseLoss) -> list[list[Any]]:
        w, l = self.chosen, self.rejected  # noqa: E741 - as in the equations
        margin, gap = w.logprobs - l.logprobs, w.logratios - l.logratios
        shift = loss.beta * torch.cat([w.logratios, l.logratios]).mean()
        columns: dict[str, Any] = {
            "p_chosen": self.p_chosen.tolist(),
            "shift": [float(shift)] * ROWS,
            "sorted_margin": sorted(margin.tolist()),
            "sorted_ref_margin": sorted((margin - gap).tolist()),
            "sorted_uw": sorted(w.logratios.tolist()),
            "sorted_ul": sorted(l.logratios.tolist()),
        }
        for side, y in (("w", w), ("l", l)):
            assert y.token_logprobs is not None and y.ref_token_logprobs is not None
            ratios = (y.token_logprobs - y.ref_token_logprobs).tolist()
            tokens = [row[:n] for row, n in zip(ratios, y.lengths.tolist(), strict=True)]
            columns |= {
                f"u{side}": y.logratios.tolist(),
                f"l{side}": y.logprobs.tolist(),
                f"t{side}": tokens,
            }
            columns |= {
                f"n{side}": y.lengths.tolist(),
                f"k{side}": y.kl.tolist(),
                f"c{side}": y.collision.tolist(),
            }
        return [columns[name] for name in names.split()]

    def __call__(self, loss: o.PairwiseLoss) -> Tensor:
        return loss(self.chosen, self.rejected, **self.labels(loss))

    def labels(self, loss: o.PairwiseLoss) -> dict[str, Tensor]:
        return {"p_chosen": self.p_chosen} if "p_chosen" in loss.columns else {}


def make(name: str, options: dict[str, float] | None = None) -> o.PairwiseLoss:
    chosen = CASES[name].others if options is None else options
    loss: o.PairwiseLoss = getattr(o, name)(**CASES[name].fixed, **chosen)
    return loss.train()


def test_the_table_has_every_pairwise_loss() -> None:
    assert concrete(o.PairwiseLoss) == set(CASES)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FP64), (torch.float32, FP32)])
@pytest.mark.parametrize("default", [True, False], ids=["defaults", "others"])
@pytest.mark.parametrize("name", CASES)
def test_matches_the_paper(
    name: str, default: bool, dtype: torch.dtype, tolerance: dict[str, float]
) -> None:
    """In float32 the reference is of what float32 holds, so log-ratios are taken from it."""
    case, pairs = CASES[name], Pairs(dtype)
    loss = make(name, {} if default else None)
    options = case.defaults if default else case.others
    rows = zip(*pairs.columns(case.columns, loss), strict=True)
    expected = torch.tensor([case.reference(*row, *options.values()) for row in rows], dtype=dtype)
    got = pairs(loss)
    assert got.shape == (ROWS,)
    loosened = tolerance if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    assert_close(got, expected, **loosened)


LINKS = [name for name, case in CASES.items() if case.columns == "uw ul" and name not in
         ("DPOP", "NCAPair", "APOZero", "APODown", "CalDPO", "ForwardKLDPO", "JensenShannonDPO", "AlphaDivergenceDPO",
          "BetaDPO")]  # fmt: skip


def _of_ratios(loss: o.PairwiseLoss, uw: Tensor, ul: Tensor) -> Tensor:
    """A loss of the log-ratios alone."""
    sides = (o.Completion(u, torch.ones(len(u)).long(), torch.zeros_like(u)) for u in (uw, ul))
    return loss(*sides)


@pytest.mark.parametrize("name", LINKS)
def test_only_the_difference_counts(name: str) -> None:
    """A reward is known up to a constant per prompt: both log-ratios may move together."""
    pairs, shift = Pairs(), torch.linspace(-3, 3, ROWS, dtype=torch.float64)
    uw, ul = pairs.chosen.logratios, pairs.rejected.logratios
    moved = _of_ratios(make(name), uw + shift, ul + shift)
    assert_close(moved, _of_ratios(make(name), uw, ul), **FP64)


@pytest.mark.parametrize("name", LINKS)
def test_swapping_the_pair_turns_the_margin_round(name: str) -> None:
    pairs, loss = Pairs(), make(name)
    h = (pairs.chosen.logratios - pairs.rejected.logratios).requires_grad_()
    slope = torch.autograd.grad(_of_ratios(loss, h, torch.zeros_like(h)).sum(), h)[0]
    swapped = torch.autograd.grad(_of_ratios(loss, torch.zeros_like(h), h).sum(), h)[0]
    turned = (-h).detach().requires_grad_()
    value = _of_ratios(loss, turned, torch.zeros_like(h)).sum()
    assert_close(swapped, -torch.autograd.grad(value, turned)[0], **FP64)
    assert not torch.equal(slope, swapped)


AT_REFERENCE = {
    "DPO": LOG2, "SoftLabelDPO": LOG2, "ConservativeDPO": LOG2, "RobustDPO": LOG2, "LengthNormalizedDPO": LOG2,
    "DPOP": LOG2, "IPO": 1 / (4 * 0.3**2), "MeanIPO": 1 / (4 * 0.3**2), "RSOHinge": 1.0, "ExponentialGPO": 1.0,
    "SavageGPO": 0.25, "SquaredGPO": 1.0, "APOZero": 1.0, "APODown": 1.0, "NCAPair": 2 * LOG2, "BCOPair": 2 * LOG2,
    "AOT": LOG2, "UnpairedAOT": LOG2, "BetaDPO": LOG2, "LengthDesensitizedDPO": LOG2, "JensenShannonDPO": LOG2,
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), AT_REFERENCE.items())
def test_value_at_the_reference(name: str, value: float) -> None:
    pairs = Pairs()
    for side in ("chosen", "rejected"):
        y = getattr(pairs, side)
        same = replace(y, ref_logprobs=y.logprobs, ref_token_logprobs=y.token_logprobs)
        setattr(pairs, side, same)
    assert_close(pairs(make(name)), torch.full((ROWS,), value, dtype=torch.float64), **FP64)


@pytest.mark.parametrize(
    "name", ["DPO", "SoftLabelDPO", "TDPO1", "LengthNormalizedDPO", "SavageGPO", "IPO", "SimPO"]
)
def test_an_identical_pair_teaches_nothing(name: str) -> None:
    """Both completions are the same tokens of the same model: their gradients cancel."""
    pairs, loss = Pairs(), make(name)
    model = pairs.chosen.logprobs.clone().requires_grad_()
    once = replace(pairs.chosen, logprobs=model)
    value = loss(once, once, **pairs.labels(loss))
    (gradient,) = torch.autograd.grad(value.sum(), model)
    assert gradient.abs().max() == 0


def _with_gradient(y: o.Completion) -> tuple[o.Completion, list[Tensor]]:
    sums, tokens = y.logprobs.clone().requires_grad_(), None
    if y.token_logprobs is not None:
        tokens = y.token_logprobs.clone().requires_grad_()
    leaves = [sums] if tokens is None else [sums, tokens]
    return replace(y, logprobs=sums, token_logprobs=tokens), leaves


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", CASES)
def test_finite_with_finite_gradients_however_far(name: str, scale: float) -> None:
    pairs, loss = Pairs(torch.float32, scale), make(name)
    chosen, leaves = _with_gradient(pairs.chosen)
    rejected, more = _with_gradient(pairs.rejected)
    value = loss(chosen, rejected, **pairs.labels(loss))
    assert value.isfinite().all()
    gradients = torch.autograd.grad(value.sum(), [*leaves, *more], allow_unused=True)
    assert any(gradient is not None for gradient in gradients)
    for gradient in gradients:
        assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_an_empty_completion_is_finite(name: str) -> None:
    """A branch whose tokens are all masked has log-prob 0 and length 0."""
    loss, none = make(name), torch.zeros(6)
    tokens, mask = torch.zeros(6, 1), torch.zeros(6, 1, dtype=torch.bool)
    empty = o.Completion(none, none.long(), none, none, none, tokens, tokens, mask)
    chosen, leaves = _with_gradient(empty)
    columns = {"p_chosen": torch.rand(6)} if "p_chosen" in loss.columns else {}
    value = loss(chosen, empty, **columns)
    assert value.isfinite().all()
    for gradient in torch.autograd.grad(value.sum(), leaves, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.grouped])
def test_a_pair_does_not_see_the_others(name: str) -> None:
    if name == "BCOPair":
        pytest.skip("its shift is the mean of the batch")
    pairs, loss, order = Pairs(), make(name), torch.randperm(ROWS)
    fields = (
        "logprobs",
        "lengths",
        "ref_logprobs",
        "kl",
        "collision",
        "token_logprobs",
        "ref_token_logprobs",
    )
    sides = [
        replace(y, token_mask=y.token_mask[order], **{n: getattr(y, n)[order] for n in fields})
        for y in (pairs.chosen, pairs.rejected)
    ]  # fmt: skip
    columns = {n: column[order] for n, column in pairs.labels(loss).items()}
    assert_close(loss(*sides, **columns), pairs(loss)[order], **FP64)


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_checked(name: str) -> None:
    """By jaxtyping, in tests alone: columns of another length are refused, not broadcast."""
    loss, one = make(name), torch.zeros(1)
    with pytest.raises(Exception, match="Type-check error"):
        o.Completion(torch.zeros(3), one.long(), one)
    if "p_chosen" in loss.columns:
        with pytest.raises(Exception, match="Type-check error"):
            loss(Pairs().chosen, Pairs().rejected, p_chosen=torch.zeros(ROWS, 2))


def test_tdpo2_stops_the_gradient_of_the_chosen_divergence() -> None:
    pairs = Pairs()
    dw, dl = (y.kl.clone().requires_grad_() for y in (pairs.chosen, pairs.rejected))
    loss = o.TDPO2()(replace(pairs.chosen, kl=dw), replace(pairs.rejected, kl=dl)).sum()
    assert torch.autograd.grad(loss, dw, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(loss, dl)[0].abs().max() > 0


def test_robust_dpo_is_unbiased_for_flipped_labels() -> None:
    pairs, robust = Pairs(), o.RobustDPO(0.3, 0.2)
    right, wrong = (pairs.chosen, pairs.rejected), (pairs.rejected, pairs.chosen)
    assert_close(0.8 * robust(*right) + 0.2 * robust(*wrong), o.DPO(0.3)(*right), **FP64)


def test_alpha_divergence_lies_between_the_kls() -> None:
    u = torch.linspace(-2, 2, 9, dtype=torch.float64)
    low, high = o.AlphaDivergenceDPO(alpha=1e-7), o.AlphaDivergenceDPO(alpha=1 - 1e-9)
    assert_close(low.score(u), o.ReverseKLDPO().score(u) - 1, rtol=1e-5, atol=1e-5)
    assert_close(high.score(u), o.ForwardKLDPO().score(u) + 1, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("loss", "generator"),
    [
        (o.ReverseKLDPO(), lambda t: t * torch.log(t)),
        (o.ForwardKLDPO(), lambda t: -torch.log(t)),
        (o.JensenShannonDPO(), lambda t: t * torch.log(t) - (t + 1) * torch.log((t + 1) / 2)),
        (
            o.AlphaDivergenceDPO(alpha=0.3),
            lambda t: (t**0.7 - 0.7 * t - 0.3) / (0.3 * (0.3 - 1)),
        ),
    ],
)
def test_divergence_scores_are_slopes_of_their_generators(
    loss: o.FDPO, generator: Callable[[Tensor], Tensor]
) -> None:
    u = torch.linspace(-2, 2, 9, dtype=torch.float64)
    t = u.exp().requires_grad_()
    (slope,) = torch.autograd.grad(generator(t).sum(), t)
    assert_close(loss.score(u) - loss.score(0 * u), slope - slope[4], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [[2, 0, 1, 3], [3, 2, 1, 0]])
def test_aot_forgets_who_was_paired_with_whom(order: list[int]) -> None:
    uw, ul = torch.randn(2, 4, dtype=torch.float64)
    unpaired, aot, dpo = o.UnpairedAOT(0.3), o.AOT(0.3), o.DPO(0.3)
    assert_close(_of_ratios(unpaired, uw[order], ul), _of_ratios(unpaired, uw, ul), **FP64)
    assert_close(_of_ratios(aot, uw[order], ul[order]), _of_ratios(aot, uw, ul), **FP64)
    assert_close(_of_ratios(aot, uw[:1], ul[:1]), _of_ratios(dpo, uw[:1], ul[:1]), **FP64)


def test_beta_dpo_raises_beta_for_clear_pairs_and_never_below_a_floor() -> None:
    zero, gaps = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 3.0], dtype=torch.float64)
    loss = o.BetaDPO(0.1, alpha=0.6, drop=0.0).eval()
    loss.moments.mean = torch.tensor(0.5, dtype=torch.float64)
    expected = [slow.dpo(gap, 0.0, 0.1 * (1 + 0.6 * 1.5)) for gap in gaps.tolist()]
    assert_close(_of_ratios(loss, gaps, zero), torch.tensor(expected, dtype=torch.float64), **FP64)
    expected = [slow.dpo(-gap, 0.0, 1e-3) for gap in (100 * gaps).tolist()]
    assert_close(_of_ratios(loss, -100 * gaps, zero), torch.tensor(expected).double(), **FP32)


def test_the_weight_of_wpo_carries_no_gradient_and_is_at_most_one() -> None:
    pairs = Pairs()
    y = replace(
        pairs.chosen, logprobs=pairs.chosen.logprobs.clone().requires_grad_(), ref_logprobs=None
    )
    frozen = replace(
        y, ref_logprobs=y.logprobs
    )  # log-ratio 0 with gradient 0: the weight's alone is left
    assert (
        torch.autograd.grad(o.WPO()(frozen, pairs.rejected).sum(), y.logprobs)[0].abs().max() == 0
    )
    likely = replace(
        y, logprobs=torch.zeros(ROWS, dtype=torch.float64), ref_logprobs=pairs.chosen.logprobs
    )
    assert_close(o.WPO(0.3)(likely, likely), torch.full((ROWS,), LOG2, dtype=torch.float64), **FP64)  # fmt: skip


def test_a_copy_of_a_loss_with_state_is_independent() -> None:
    loss = o.BCOPair().train()
    twin = copy.deepcopy(loss)
    Pairs()(loss)
    assert twin.shift.count == 0 and loss.shift.count > 0
