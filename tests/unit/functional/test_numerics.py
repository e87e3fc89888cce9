"""Elementary functions near the edges of what floats hold."""

import math

import torch
from torch.testing import assert_close

from lit_rlhf import functional as f
from tests.tolerances import FP64


def test_log1mexp_near_both_ends() -> None:
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
