"""KL estimates: values against the exact divergence, gradients against the divergence that each loss stands for."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.functional.kl import (
    full_kl,
    k1,
    k2,
    k3,
)
from lit_rlhf.functional.masking import masked_sum
from tests.reference import worlds
from tests.tolerances import FP32, FP64

MASK = worlds.all_sequences().mask
POLICY, OLD, REF = (worlds.random_logits(seed) for seed in (0, 1, 2))


def _expected(unreduced: Tensor, sampler: Tensor) -> Tensor:
    """Exact expectation of the sum over tokens, over samples of `sampler`."""
    probabilities = worlds.sequence_logprobs(sampler).detach().exp()
    return (probabilities * masked_sum(unreduced, MASK, dim=-1)).sum()


def test_estimators_are_zero_at_the_reference_and_match_their_formulas() -> None:
    logprobs, ref = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    for estimate in (k1, k2, k3):
        assert_close(estimate(ref, ref), torch.zeros_like(ref), **FP64)
    ratio = ref.exp() / logprobs.exp()
    assert_close(k1(logprobs, ref), -ratio.log(), **FP64)
    assert_close(k2(logprobs, ref), ratio.log() ** 2 / 2, **FP64)
    assert_close(k3(logprobs, ref), ratio - 1 - ratio.log(), **FP64)
    assert (k3(logprobs, ref) > 0).all()


def test_k3_keeps_its_digits_near_zero() -> None:
    u = torch.tensor([1e-3])
    assert_close(k3(u, torch.zeros(1)), torch.tensor([0.5e-6]), rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("estimate", [k1, k3])
def test_k1_and_k3_of_sequences_have_the_divergence_as_mean(estimate: object) -> None:
    logp, logq = worlds.sequence_logprobs(POLICY), worlds.sequence_logprobs(REF)
    assert callable(estimate)
    assert_close((logp.exp() * estimate(logp, logq)).sum(), worlds.reverse_kl(POLICY, REF), **FP64)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_full_kl_matches_torch_distributions(temperature: float) -> None:
    logits, ref = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    p, q = (torch.distributions.Categorical(logits=x / temperature) for x in (logits, ref))
    assert_close(full_kl(logits, ref, temperature), torch.distributions.kl_divergence(p, q), **FP32)
    assert full_kl(logits.bfloat16(), ref.bfloat16()).dtype == torch.float32


def test_full_kl_leaves_out_what_both_exclude() -> None:
    logits = torch.tensor([0.3, -0.2, -torch.inf], requires_grad=True)
    ref = torch.tensor([0.1, 0.5, -torch.inf])
    kl = full_kl(logits, ref)
    assert_close(kl, full_kl(logits[:2], ref[:2]), **FP32)
    (grad,) = torch.autograd.grad(kl, logits)
    assert torch.isfinite(grad).all()
    assert full_kl(ref, torch.tensor([0.0, -torch.inf, -torch.inf])) == torch.inf


def test_gradcheck_of_full_kl() -> None:
    logits, ref = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(full_kl, (logits, ref))


def test_k1_as_a_loss_teaches_nothing() -> None:
    ref = worlds.logprobs_of(REF)
    got = worlds.gradient(lambda x: _expected(k1(worlds.logprobs_of(x), ref), POLICY), POLICY)
    assert_close(got, torch.zeros_like(got), **FP64)
