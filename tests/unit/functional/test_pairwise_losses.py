"""Pairwise losses against the papers' forms in Python floats, their invariances, and what they do at the extremes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf import functional as f
from tests.reference import preference_losses as slow
from tests.tolerances import FP32, FP64

LOG2 = math.log(2)


class Columns:
    """What a loss may be called with: 12 pairs, some of them far from the reference."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        draw = torch.Generator().manual_seed(0)
        size = torch.tensor([1.0] * 6 + [6.0] * 6, dtype=torch.float64)
        uw, ul, cw, cl = (
            torch.randn(12, generator=draw, dtype=torch.float64) * size for _ in range(4)
        )
        lengths = torch.randint(1, 9, (2, 12), generator=draw)
        lw, ll = (-torch.rand(2, 12, generator=draw, dtype=torch.float64) - 0.01) * lengths
        floats = {
            "uw": uw,
            "ul": ul,
            "lw": lw,
            "ll": ll,
            "dw": cw.abs(),
            "dl": cl.abs(),
            "nll": -lw / lengths[0],
        }
        floats |= {
            "cw": -cw.abs(),
            "cl": -cl.abs(),
            "p": torch.rand(12, generator=draw, dtype=torch.float64),
        }
        self.columns = {name: value.to(dtype) for name, value in floats.items()} | {
            "nw": lengths[0],
            "nl": lengths[1],
        }

    def __getitem__(self, names: str) -> list[Tensor]:
        return [self.columns[name] for name in names.split()]


# name: (function, reference, columns, options in the reference's order)
CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., float], str, dict[str, float]]] = {
    "dpo": (f.dpo_loss, slow.dpo, "uw ul", {"beta": 0.3}),
    "soft_label_dpo": (f.soft_label_dpo_loss, slow.soft_label_dpo, "uw ul p", {"beta": 0.3}),
    "conservative_dpo": (f.conservative_dpo_loss, slow.conservative_dpo, "uw ul", {"label_smoothing": 0.2, "beta": 0.3}),
    "robust_dpo": (f.robust_dpo_loss, slow.robust_dpo, "uw ul", {"label_smoothing": 0.2, "beta": 0.3}),
    "length_regularized_dpo": (
        f.length_regularized_dpo_loss, slow.length_regularized_dpo, "uw ul nw nl", {"beta": 0.3, "alpha": 0.2},
    ),
    "length_normalized_dpo": (f.length_normalized_dpo_loss, slow.length_normalized_dpo, "uw ul nw nl", {"beta": 2.0}),
    "dpop": (f.dpop_loss, slow.dpop, "uw ul", {"beta": 0.3, "penalty": 2.0}),
    "tdpo1": (f.tdpo_loss, slow.tdpo1, "uw ul dw dl", {"beta": 0.3}),
    "tdpo2": (f.tdpo2_loss, slow.tdpo2, "uw ul dw dl", {"beta": 0.3, "alpha": 0.4}),
    "rpo": (f.rpo_loss, slow.rpo, "uw ul nll", {"beta": 0.3, "alpha": 0.7}),
    "spin": (f.spin_loss, slow.dpo, "uw ul", {"scale": 0.3}),
    "ipo": (f.ipo_loss, slow.ipo, "uw ul", {"tau": 0.3}),
    "ipo_mean": (f.ipo_mean_loss, slow.ipo_mean, "uw ul nw nl", {"tau": 0.3}),
    "rso_hinge": (f.rso_hinge_loss, slow.rso_hinge, "uw ul", {"gamma": 0.3}),
    "gpo_exponential": (f.gpo_exponential_loss, slow.gpo_exponential, "uw ul", {"beta": 0.3}),
    "gpo_savage": (f.gpo_savage_loss, slow.gpo_savage, "uw ul", {"beta": 0.3}),
    "gpo_squared": (f.gpo_squared_loss, slow.gpo_squared, "uw ul", {"beta": 0.3}),
    "exo": (f.exo_loss, slow.exo, "uw ul", {"beta": 0.3, "label_smoothing": 0.1}),
    "discopop": (f.discopop_loss, slow.discopop, "uw ul", {"beta": 0.3, "temperature": 0.2}),
    "simpo": (f.simpo_loss, slow.simpo, "lw ll nw nl", {"beta": 2.0, "gamma": 0.5}),
    "alphapo": (f.alphapo_loss, slow.alphapo, "lw ll nw nl", {"beta": 2.0, "gamma": 0.5, "alpha": 0.3}),
    "cpo": (f.cpo_loss, slow.cpo, "lw ll nll", {"beta": 0.3, "alpha": 0.7}),
    "orpo": (f.orpo_loss, slow.orpo, "lw ll nw nl", {"weight": 0.3}),
    "slic": (f.slic_loss, slow.slic, "lw ll nll", {"margin": 1.5, "weight": 0.3}),
    "nca_pair": (f.nca_pair_loss, slow.nca_pair, "uw ul", {"beta": 0.3}),
    "bco_pair": (f.bco_pair_loss, slow.bco_pair, "uw ul", {"shift": 0.4, "beta": 0.3}),
    "apo_zero": (f.apo_zero_loss, slow.apo_zero, "uw ul", {"beta": 0.3}),
    "apo_down": (f.apo_down_loss, slow.apo_down, "uw ul", {"beta": 0.3}),
    "cal_dpo": (f.cal_dpo_loss, slow.cal_dpo, "uw ul", {"beta": 0.3}),
    "sppo": (f.sppo_loss, slow.sppo, "uw ul p", {"eta": 2.0}),
    "on_policy_weight": (f.on_policy_weight, slow.on_policy_weight, "lw ll cw cl nw nl", {}),
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FP64), (torch.float32, FP32)])
@pytest.mark.parametrize("name", CASES)
def test_matches_the_paper(name: str, dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    function, reference, columns, options = CASES[name]
    arguments = Columns(dtype)[columns]
    got = function(*arguments, **options)
    rows = zip(*(column.tolist() for column in arguments), strict=True)
    expected = torch.tensor([reference(*row, *options.values()) for row in rows], dtype=dtype)
    assert got.shape == (12,)
    assert_close(got, expected, **tolerance)


LINKS = [name for name, case in CASES.items() if case[2] == "uw ul" and name not in
         ("dpop", "nca_pair", "bco_pair", "apo_zero", "apo_down", "cal_dpo")]  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_only_the_difference_counts(name: str) -> None:
    """A reward is known up to a constant per prompt: both log-ratios may move together."""
    function, _, columns, options = CASES[name]
    chosen, rejected = Columns()[columns]
    shift = torch.linspace(-3, 3, 12, dtype=torch.float64)
    assert_close(
        function(chosen + shift, rejected + shift, **options),
        function(chosen, rejected, **options),
        **FP64,
    )


@pytest.mark.parametrize("name", LINKS)
def test_swapping_the_pair_turns_the_margin_round(name: str) -> None:
    function, _, columns, options = CASES[name]
    chosen, rejected = Columns()[columns]
    h = (chosen - rejected).requires_grad_()
    slope = torch.autograd.grad(function(h, torch.zeros_like(h), **options).sum(), h)[0]
    swapped = torch.autograd.grad(function(torch.zeros_like(h), h, **options).sum(), h)[0]
    turned = (-h).detach().requires_grad_()
    expected = -torch.autograd.grad(function(turned, torch.zeros_like(h), **options).sum(), turned)[
        0
    ]
    assert_close(swapped, expected, **FP64)
    assert not torch.equal(slope, swapped)


AT_REFERENCE = {
    "dpo": LOG2,
    "soft_label_dpo": LOG2,
    "conservative_dpo": LOG2,
    "robust_dpo": LOG2,
    "length_normalized_dpo": LOG2,
    "dpop": LOG2,
    "ipo": 1 / (4 * 0.3**2),
    "ipo_mean": 1 / (4 * 0.3**2),
    "rso_hinge": 1.0,
    "gpo_exponential": 1.0,
    "gpo_savage": 0.25,
    "gpo_squared": 1.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "nca_pair": 2 * LOG2,
}


@pytest.mark.parametrize(("name", "value"), AT_REFERENCE.items())
def test_value_at_the_reference(name: str, value: float) -> None:
    function, _, columns, options = CASES[name]
    zeros = [torch.zeros_like(x) if x.is_floating_point() and n != "p" else x
             for n, x in zip(columns.split(), Columns()[columns], strict=True)]  # fmt: skip
    assert_close(function(*zeros, **options), torch.full((12,), value, dtype=torch.float64), **FP64)


@pytest.mark.parametrize(
    "name",
    ["dpo", "soft_label_dpo", "tdpo1", "length_normalized_dpo", "gpo_savage", "ipo", "simpo"],
)
def test_an_identical_pair_teaches_nothing(name: str) -> None:
    """Both completions are the same tokens of the same model: their gradients cancel."""
    function, _, columns, options = CASES[name]
    names = columns.split()
    once = dict(zip(names, Columns()[columns], strict=True))
    model = once[names[0]].clone().requires_grad_()
    arguments = [
        model if n in names[:2] else once[n.replace("l", "w") if n in ("nl", "dl") else n]
        for n in names
    ]
    (gradient,) = torch.autograd.grad(function(*arguments, **options).sum(), model)
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", [name for name in CASES if name != "on_policy_weight"])
def test_finite_with_finite_gradients_however_far(name: str, scale: float) -> None:
    function, _, columns, options = CASES[name]
    arguments = [x * scale if n in ("uw", "ul", "lw", "ll") else x
                 for n, x in zip(columns.split(), Columns(torch.float32)[columns], strict=True)]  # fmt: skip
    for argument in arguments[:2]:
        argument.requires_grad_()
    loss = function(*arguments, **options)
    assert loss.isfinite().all()
    for gradient in torch.autograd.grad(loss.sum(), arguments[:2], allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if "nw" in case[2] and name != "on_policy_weight"]
)
def test_an_empty_completion_is_finite(name: str) -> None:
    """A branch whose tokens are all masked has log-prob 0 and length 0."""
    function, _, columns, options = CASES[name]
    arguments = [torch.zeros_like(x) for x in Columns(torch.float32)[columns]]
    arguments[0].requires_grad_()
    loss = function(*arguments, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), arguments[0])
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_tdpo2_stops_the_gradient_of_the_chosen_divergence() -> None:
    uw, ul, dw, dl = (x.clone().requires_grad_() for x in Columns()["uw ul dw dl"])
    loss = f.tdpo2_loss(uw, ul, dw, dl).sum()
    assert torch.autograd.grad(loss, dw, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(loss, dl)[0].abs().max() > 0


def test_robust_dpo_is_unbiased_for_flipped_labels() -> None:
    uw, ul = Columns()["uw ul"]
    flipped = 0.8 * f.robust_dpo_loss(uw, ul, 0.2, 0.3) + 0.2 * f.robust_dpo_loss(ul, uw, 0.2, 0.3)
    assert_close(flipped, f.dpo_loss(uw, ul, 0.3), **FP64)


def test_alpha_divergence_lies_between_the_kls() -> None:
    u = torch.linspace(-2, 2, 9, dtype=torch.float64)
    assert_close(f.alpha_divergence_score(u, 1e-7), f.reverse_kl_score(u) - 1, rtol=1e-5, atol=1e-5)
    assert_close(f.alpha_divergence_score(u, 1.0), f.forward_kl_score(u) + 1, **FP64)


@pytest.mark.parametrize(
    ("score", "generator"),
    [
        (f.reverse_kl_score, lambda t: t * torch.log(t)),
        (f.forward_kl_score, lambda t: -torch.log(t)),
        (f.jensen_shannon_score, lambda t: t * torch.log(t) - (t + 1) * torch.log((t + 1) / 2)),
        (
            lambda u: f.alpha_divergence_score(u, 0.3),
            lambda t: (t**0.7 - 0.7 * t - 0.3) / (0.3 * (0.3 - 1)),
        ),
    ],
)
def test_divergence_scores_are_slopes_of_their_generators(
    score: Callable[[Tensor], Tensor], generator: Callable[[Tensor], Tensor]
) -> None:
    u = torch.linspace(-2, 2, 9, dtype=torch.float64)
    t = u.exp().requires_grad_()
    (slope,) = torch.autograd.grad(generator(t).sum(), t)
    assert_close(score(u) - score(0 * u), slope - slope[4], rtol=1e-9, atol=1e-9)


def test_length_desensitized_logprobs() -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = [[3, 5], [4, 4], [0, 2], [5, 1]]
    tokens = -torch.rand(4, 2, 5, generator=draw, dtype=torch.float64)
    mask = torch.tensor([[[t < n for t in range(5)] for n in row] for row in lengths])
    got = f.length_desensitized_logprobs(tokens, mask, 0.3)
    expected = [[slow.length_desensitized(tokens[i, k, :n].tolist(), min(row), 0.3) for k, n in enumerate(row)]
                for i, row in enumerate(lengths)]  # fmt: skip
    assert_close(got, torch.tensor(expected, dtype=torch.float64), **FP64)
    assert_close(f.length_desensitized_logprobs(tokens, mask, 1.0), (tokens * mask).sum(-1), **FP64)


def test_aot_pairs_quantiles() -> None:
    chosen, rejected, ref_chosen, ref_rejected = (
        torch.randn(7, dtype=torch.float64) for _ in range(4)
    )
    got = f.aot_loss(chosen - rejected, ref_chosen - ref_rejected, 0.3)
    margins = sorted((chosen - rejected).tolist())
    ref_margins = sorted((ref_chosen - ref_rejected).tolist())
    expected = [
        slow.nll_of_sigmoid(0.3 * (a - b)) for a, b in zip(margins, ref_margins, strict=True)
    ]
    assert_close(got, torch.tensor(expected, dtype=torch.float64), **FP64)
    unpaired = f.aot_unpaired_loss(chosen, rejected, 0.3)
    expected = [
        slow.dpo(a, b, 0.3)
        for a, b in zip(sorted(chosen.tolist()), sorted(rejected.tolist()), strict=True)
    ]
    assert_close(unpaired, torch.tensor(expected, dtype=torch.float64), **FP64)


@pytest.mark.parametrize("order", [[2, 0, 1, 3], [3, 2, 1, 0]])
def test_aot_forgets_the_order_of_the_batch(order: list[int]) -> None:
    a, b = torch.randn(2, 4, dtype=torch.float64)
    assert_close(f.aot_loss(a[order], b, 0.3), f.aot_loss(a, b, 0.3), **FP64)
    assert_close(f.aot_unpaired_loss(a, b[order], 0.3), f.aot_unpaired_loss(a, b, 0.3), **FP64)
    assert_close(f.aot_loss(a[:1], b[:1], 0.3), f.dpo_loss(a[:1], b[:1], 0.3), **FP64)


def test_beta_dpo_parts() -> None:
    gap = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    beta = f.dynamic_beta(gap, 0.5, beta=0.1, alpha=0.6)
    assert_close(beta, torch.tensor(0.1 * (1 + 0.6 * 1.5), dtype=torch.float64), **FP64)
    assert not beta.requires_grad
    assert f.dynamic_beta(torch.tensor(-100.0), 0.0).item() == pytest.approx(1e-3)
    gaps = torch.tensor([1.0, 5.0], requires_grad=True)
    mean, std = torch.tensor(1.0), torch.tensor(2.0)
    weights = f.gap_log_weights(gaps, mean, std)
    assert not weights.requires_grad
    assert_close(weights, torch.tensor([0.0, -2.0]))
    assert_close(f.gap_log_weights(gaps, mean, torch.tensor(0.0)), torch.zeros(2))


def test_log_odds_and_log1mexp_near_both_ends() -> None:
    x = torch.tensor(
        [-1e-30, -1e-12, -1e-3, -0.5, -0.69, -0.7, -5.0, -80.0],
        dtype=torch.float64,
        requires_grad=True,
    )
    got = f.log1mexp(x)
    expected = [math.log(-math.expm1(min(v, -2.220446049250313e-16))) for v in x.tolist()]
    assert_close(got, torch.tensor(expected, dtype=torch.float64), **FP64)
    (gradient,) = torch.autograd.grad(got.sum(), x)
    assert gradient.isfinite().all()


def test_bounded_exp_goes_on_as_its_tangent() -> None:
    x = torch.tensor([-2.0, 0.0, 29.0, 31.0, 1e4], dtype=torch.float64, requires_grad=True)
    y = f.bounded_exp(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert_close(y[:3], x[:3].exp(), **FP64)
    assert_close(y[3:], math.exp(30) * (x[3:] - 29), **FP64)
    assert_close(slope[3:], torch.full((2,), math.exp(30), dtype=torch.float64), **FP64)


def test_log_collision() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64)
    assert_close(f.log_collision(logits), logits.softmax(-1).square().sum(-1).log(), **FP64)


def test_on_policy_weight_carries_no_gradient() -> None:
    columns = [
        x.clone().requires_grad_() if x.is_floating_point() else x
        for x in Columns()["lw ll cw cl nw nl"]
    ]
    weight = f.on_policy_weight(*columns)
    assert not weight.requires_grad
    assert weight.max() <= 1
