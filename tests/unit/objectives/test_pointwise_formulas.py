"""Losses of single completions against the papers' forms in Python floats."""

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

ROWS = 10
LABELS = torch.arange(ROWS) % 3 == 0


class Case(NamedTuple):
    """A loss and its reference, of columns of one row and options."""

    reference: Callable[..., float]
    columns: str
    defaults: dict[str, float]
    others: dict[str, float]


CASES = {
    "KTO": Case(
        slow.kto, "u label point",
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.8},
    ),
    "BCO": Case(slow.bco, "u label shift", {"beta": 0.01}, {"beta": 0.3}),
    "UnpairedAPOZero": Case(slow.apo_zero_unpaired, "u label", {"beta": 0.1}, {"beta": 0.3}),
    "DROV": Case(slow.dro_v, "u score value", {"tau": 1.0}, {"tau": 0.3}),
    "NPO": Case(slow.npo_labelled, "u label", {"beta": 0.1}, {"beta": 0.3}),
    "NLL": Case(slow.nll, "l n label", {}, {}),
}  # fmt: skip


class Examples:
    """Completions with labels and ratings, and mismatched completions."""

    def __init__(self, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> None:
        draw = torch.Generator().manual_seed(0)
        u, other, score, value = (3 * torch.randn(4, ROWS, generator=draw, dtype=torch.float64)).to(
            dtype
        )
        lengths = torch.randint(1, 9, (ROWS,), generator=draw)
        logprobs = (-torch.rand(ROWS, generator=draw, dtype=torch.float64) * lengths).to(dtype)
        self.completion = o.Completion(logprobs, lengths, logprobs - u * scale, value=value)
        self.mismatched = o.Completion(logprobs, lengths, logprobs - other.abs())
        self.score = score

    def columns(self, names: str, loss: o.PreferenceLoss) -> list[list[Any]]:
        u = self.completion.logratios
        point = self.mismatched.logratios.mean().clamp_min(0)
        columns: dict[str, Any] = {
            "u": u.tolist(),
            "l": self.completion.logprobs.tolist(),
            "n": self.completion.lengths.tolist(),
            "label": LABELS.tolist(),
            "score": self.score.tolist(),
            "value": self.completion.statistic("value").tolist(),
            "point": [float(point)] * ROWS,
            "shift": [getattr(loss, "beta", 0.0) * float(u.mean())] * ROWS,
        }
        return [columns[name] for name in names.split()]

    def __call__(self, loss: o.PreferenceLoss, labels: Tensor = LABELS) -> Tensor:
        sides = [self.completion, self.mismatched][: 2 if loss.needs_mismatched else 1]
        columns = {"label": labels, "score": self.score}
        return loss(*sides, **{n: c for n, c in columns.items() if n in loss.columns})


def make(name: str, default: bool = False) -> o.PreferenceLoss:
    loss: o.PreferenceLoss = getattr(o, name)(**({} if default else CASES[name].others))
    return loss.train()


def test_the_table_has_every_pointwise_loss() -> None:
    assert concrete(o.PointwiseLoss) | {"NLL"} == set(CASES)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FP64), (torch.float32, FP32)])
@pytest.mark.parametrize("default", [True, False], ids=["defaults", "others"])
@pytest.mark.parametrize("name", CASES)
def test_matches_the_paper(
    name: str, default: bool, dtype: torch.dtype, tolerance: dict[str, float]
) -> None:
    case, examples, loss = CASES[name], Examples(dtype), make(name, default)
    options = case.defaults if default else case.others
    rows = zip(*examples.columns(case.columns, loss), strict=True)
    expected = torch.tensor([case.reference(*row, *options.values()) for row in rows], dtype=dtype)
    assert_close(examples(loss), expected, **tolerance)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", CASES)
def test_finite_with_finite_gradients_however_far(name: str, scale: float) -> None:
    examples, loss = Examples(torch.float32, scale), make(name)
    sums = examples.completion.logprobs.clone().requires_grad_()
    examples.completion = replace(examples.completion, logprobs=sums)
    value = examples(loss)
    (gradient,) = torch.autograd.grad(value.sum(), sums)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["KTO", "BCO", "UnpairedAPOZero"])
def test_desirable_up_and_undesirable_down(name: str) -> None:
    examples = Examples()
    sums = examples.completion.logprobs.clone().requires_grad_()
    examples.completion = replace(examples.completion, logprobs=sums)
    (gradient,) = torch.autograd.grad(examples(make(name)).sum(), sums)
    assert ((gradient < 0) == LABELS).all()


@pytest.mark.parametrize("name", ["KTO", "BCO", "DROV", "UnpairedAPOZero", "NPO"])
def test_not_invariant_to_a_shift_of_the_prompt(name: str) -> None:
    """Single completions have nothing to cancel a constant per prompt: that is what the shift or value is for."""
    examples, loss, none = Examples(), make(name), torch.zeros(ROWS, dtype=torch.bool)
    loss.eval()
    before, y = examples(loss, none), examples.completion
    assert y.ref_logprobs is not None
    examples.completion = replace(y, ref_logprobs=y.ref_logprobs - 1)
    assert (examples(loss, none) - before).abs().min() > 1e-4


def test_at_the_reference() -> None:
    half, log2 = (torch.full((ROWS,), x, dtype=torch.float64) for x in (0.5, math.log(2)))
    examples, none = Examples(), torch.zeros(ROWS, dtype=torch.bool)
    y = replace(examples.completion, ref_logprobs=examples.completion.logprobs)
    examples.completion = examples.mismatched = y
    assert_close(examples(o.KTO()), half, **FP64)
    assert_close(examples(o.UnpairedAPOZero()), half, **FP64)
    assert_close(examples(o.BCO()), log2, **FP64)
    assert_close(examples(o.NPO(beta=0.5), none), 4 * log2, **FP64)


def test_kto_reference_point_is_a_clamped_mean_without_gradient() -> None:
    def point(*u: float) -> float:
        ratios = torch.tensor(u, requires_grad=True)
        found = o.KTO().reference_point(o.Completion(ratios, torch.ones(len(u)).long(), 0 * ratios))
        assert not found.requires_grad
        return float(found)

    assert point(1.0, 2.0, 3.0) == 2.0
    assert point(-1.0, -2.0) == 0.0
    assert point(5.0) == 0.0


def test_npo_becomes_gradient_ascent_as_beta_vanishes() -> None:
    u = torch.tensor([-2.0, 0.5], dtype=torch.float64, requires_grad=True)
    loss = o.NPO(beta=1e-9)(o.Completion(u, torch.ones(2).long(), torch.zeros(2).double()))
    (gradient,) = torch.autograd.grad(loss.sum(), u)
    assert_close(gradient, torch.ones(2, dtype=torch.float64), rtol=1e-8, atol=1e-8)
