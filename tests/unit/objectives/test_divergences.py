"""Divergences of next-token distributions: against a sum token by token, their ends, symmetries and gradients."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.kl import full_kl
from lit_rlhf.objectives import Divergence, GeneralizedJSD
from tests.reference.preference_stats import concrete
from tests.tolerances import FP32, FP64, LIMITS

BETAS = (0.0, 0.1, 0.5, 0.8, 1.0)
STUDENT, TEACHER = (
    2 * torch.randn(6, 9, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
    for s in (0, 1)
)
every_beta = pytest.mark.parametrize("beta", BETAS)


def test_there_is_one() -> None:
    assert concrete(Divergence) == {"GeneralizedJSD"}


def _by_hand(student: Tensor, teacher: Tensor, beta: float) -> float:
    """Equation 1 of the paper and its ends, of one token, in Python's numbers."""

    def probabilities(logits: Tensor) -> list[float]:
        weights = [math.exp(x) for x in logits.tolist()]
        return [w / sum(weights) for w in weights]

    def kl(p: list[float], q: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    s, t = probabilities(student), probabilities(teacher)
    if beta in (0.0, 1.0):
        return kl(t, s) if beta == 0 else kl(s, t)
    mixed = [beta * a + (1 - beta) * b for a, b in zip(t, s, strict=True)]
    return beta * kl(t, mixed) + (1 - beta) * kl(s, mixed)


@every_beta
def test_the_value_is_the_papers(beta: float) -> None:
    got = GeneralizedJSD(beta)(STUDENT.view(2, 3, 9), TEACHER.view(2, 3, 9))
    rows = [_by_hand(s, t, beta) for s, t in zip(STUDENT, TEACHER, strict=True)]
    assert_close(got.flatten(), torch.tensor(rows, dtype=torch.float64), **FP64)


@every_beta
def test_the_gradient_is_that_of_differences(beta: float) -> None:
    loss = GeneralizedJSD(beta)
    assert torch.autograd.gradcheck(
        lambda x: loss(x, TEACHER), STUDENT.clone().requires_grad_(True)
    )


@every_beta
def test_equal_distributions_have_none_and_no_slope(beta: float) -> None:
    logits = STUDENT.clone().requires_grad_(True)
    found = GeneralizedJSD(beta)(logits, STUDENT + 3.0)  # the same distribution
    assert_close(found, torch.zeros_like(found), **FP64)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    assert_close(slope, torch.zeros_like(slope), **FP64)
    assert (GeneralizedJSD(beta)(STUDENT, TEACHER) > 1e-3).all()


@every_beta
def test_student_and_teacher_change_places_with_beta_and_its_rest(beta: float) -> None:
    there, back = GeneralizedJSD(beta), GeneralizedJSD(1 - beta)
    assert_close(there(STUDENT, TEACHER), back(TEACHER, STUDENT), **FP64)
    if beta == 0.5:  # so it is symmetric
        assert_close(there(STUDENT, TEACHER), there(TEACHER, STUDENT), **FP64)


def test_scaled_limits_are_the_two_divergences() -> None:
    near = 1e-7
    forward, reverse = full_kl(TEACHER, STUDENT), full_kl(STUDENT, TEACHER)
    assert_close(GeneralizedJSD(near)(STUDENT, TEACHER) / near, forward, **LIMITS)
    assert_close(GeneralizedJSD(1 - near)(STUDENT, TEACHER) / near, reverse, **LIMITS)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_it_is_bounded_by_the_entropy_of_the_mixture(beta: float) -> None:
    far = torch.tensor([[80.0, 0.0]], dtype=torch.float64)
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert float(GeneralizedJSD(beta)(far, far.flip(-1))) == pytest.approx(bound, rel=1e-9)


@every_beta
def test_tokens_without_probability_change_nothing(beta: float) -> None:
    none = torch.full((6, 2), -torch.inf, dtype=torch.float64)
    wide = torch.cat([STUDENT, none], -1).requires_grad_(True)
    found = GeneralizedJSD(beta)(wide, torch.cat([TEACHER, none], -1))
    assert_close(found, GeneralizedJSD(beta)(STUDENT, TEACHER), **FP64)
    (slope,) = torch.autograd.grad(found.sum(), wide)
    assert torch.isfinite(slope).all()


@every_beta
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_computed_in_float32(beta: float, dtype: torch.dtype) -> None:
    student, teacher = STUDENT.to(dtype), TEACHER.to(dtype)
    found = GeneralizedJSD(beta)(student, teacher)
    assert found.dtype == torch.float32
    exact = GeneralizedJSD(beta)(student.double(), teacher.double())
    assert_close(found.double(), exact, **FP32)


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_a_beta_out_of_range_is_refused(beta: float) -> None:
    with pytest.raises(ConfigurationError, match=r"GeneralizedJSD.*beta.*\[0, 1\]"):
        GeneralizedJSD(beta)
