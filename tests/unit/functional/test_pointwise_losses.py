"""Losses of single completions against the papers' forms in Python floats."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf import functional as f
from tests.reference import preference_losses as slow
from tests.tolerances import FP32, FP64


def _columns(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    u, score, value = (3 * torch.randn(3, 10, generator=draw, dtype=torch.float64)).to(dtype)
    return u, torch.arange(10) % 3 == 0, score, value


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., float], str, dict[str, float]]] = {
    "kto": (f.kto_loss, slow.kto, "u label", {
        "reference_point": 0.7, "beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.8}),
    "bco": (f.bco_loss, slow.bco, "u label", {"shift": 0.4, "beta": 0.3}),
    "apo_zero": (f.apo_zero_unpaired_loss, slow.apo_zero_unpaired, "u label", {"beta": 0.3}),
    "dro_v": (f.dro_v_loss, slow.dro_v, "u score value", {"tau": 0.3}),
    "npo": (f.npo_loss, slow.npo, "u", {"beta": 0.3}),
}  # fmt: skip


def _arguments(names: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    columns = dict(zip(("u", "label", "score", "value"), _columns(dtype), strict=True))
    return [columns[name] for name in names.split()]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FP64), (torch.float32, FP32)])
@pytest.mark.parametrize("name", CASES)
def test_matches_the_paper(name: str, dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    function, reference, names, options = CASES[name]
    arguments = _arguments(names, dtype)
    rows = zip(*(column.tolist() for column in arguments), strict=True)
    expected = torch.tensor([reference(*row, *options.values()) for row in rows], dtype=dtype)
    assert_close(function(*arguments, **options), expected, **tolerance)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", CASES)
def test_finite_with_finite_gradients_however_far(name: str, scale: float) -> None:
    function, _, names, options = CASES[name]
    arguments = _arguments(names, torch.float32)
    u = (arguments[0] * scale).requires_grad_()
    loss = function(u, *arguments[1:], **options)
    (gradient,) = torch.autograd.grad(loss.sum(), u)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero"])
def test_desirable_up_and_undesirable_down(name: str) -> None:
    function, _, names, options = CASES[name]
    u, labels = _arguments(names)
    u = u.requires_grad_()
    (gradient,) = torch.autograd.grad(function(u, labels, **options).sum(), u)
    assert ((gradient < 0) == labels).all()


@pytest.mark.parametrize("name", ["kto", "bco", "dro_v", "apo_zero", "npo"])
def test_not_invariant_to_a_shift_of_the_prompt(name: str) -> None:
    """Single completions have nothing to cancel a constant per prompt: that is what the shift or value is for."""
    function, _, names, options = CASES[name]
    arguments = _arguments(names)
    moved = function(arguments[0] + 1.0, *arguments[1:], **options)
    assert (moved - function(*arguments, **options)).abs().min() > 1e-4


def test_at_the_reference() -> None:
    zeros, labels = torch.zeros(4, dtype=torch.float64), torch.tensor([True, False, True, False])
    assert_close(f.kto_loss(zeros, labels, 0.0), torch.full((4,), 0.5, dtype=torch.float64), **FP64)
    assert_close(
        f.apo_zero_unpaired_loss(zeros, labels), torch.full((4,), 0.5, dtype=torch.float64), **FP64
    )
    assert_close(
        f.bco_loss(zeros, labels), torch.full((4,), math.log(2), dtype=torch.float64), **FP64
    )
    assert_close(
        f.npo_loss(zeros, beta=0.5), torch.full((4,), 4 * math.log(2), dtype=torch.float64), **FP64
    )


def test_kto_reference_point_is_a_clamped_mean_without_gradient() -> None:
    total = torch.tensor(6.0, requires_grad=True)
    point = f.kto_reference_point(total, torch.tensor(4.0))
    assert not point.requires_grad
    assert point.item() == 1.5
    assert f.kto_reference_point(torch.tensor(-6.0), torch.tensor(4.0)).item() == 0.0
    assert f.kto_reference_point(torch.tensor(0.0), torch.tensor(0.0)).item() == 0.0


def test_npo_becomes_gradient_ascent_as_beta_vanishes() -> None:
    u = torch.tensor([-2.0, 0.5], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(f.npo_loss(u, beta=1e-9).sum(), u)
    assert_close(gradient, torch.ones(2, dtype=torch.float64), rtol=1e-8, atol=1e-8)
