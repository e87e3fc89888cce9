"""Elementary functions near the edges of what floats hold."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import lit_rlhf
from lit_rlhf import functional as f
from lit_rlhf.functional.numerics import sum_by_doubling
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


@pytest.mark.parametrize("length", [0, 1, 2, 7, 64, 65])
def test_sums_by_doubling_are_cumulative_sums(length: int) -> None:
    x = torch.randn(3, length, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, length, dtype=torch.float64)
    ours, theirs = sum_by_doubling(x), x.cumsum(-1)
    assert_close(ours, theirs, **FP64)
    (slope,) = torch.autograd.grad((ours * weight).sum(), x)
    assert_close(slope, torch.autograd.grad((theirs * weight).sum(), x)[0], **FP64)


def test_no_other_cumulative_sum_stands_where_a_gpu_computes() -> None:
    """Under `trainer.deterministic` torch's own raises there."""
    package = Path(lit_rlhf.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"(?<!np\.)\bcumsum\(", path.read_text(encoding="utf-8"))
        and path.relative_to(package).parts[0] not in ("verify", "demo")  # these run on CPU
    }
    assert found == {"functional/numerics.py"}


@pytest.mark.parametrize(
    ("given", "expected"), [(torch.float16, torch.float32), (torch.float64, torch.float64)]
)
def test_half_precision_alone_is_raised(given: torch.dtype, expected: torch.dtype) -> None:
    assert f.at_least_float32(torch.ones(2, dtype=given)).dtype == expected
