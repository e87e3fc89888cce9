"""KL losses: values against the exact divergence, gradients against the divergence that each stands for."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.functional.masking import masked_sum
from lit_rlhf.objectives import BiasedK3, KLLoss, SequenceK2, UnbiasedK3
from tests.reference import worlds
from tests.reference.batches import ragged, ragged_mask
from tests.reference.preference_stats import concrete
from tests.tolerances import FP64

MASK = worlds.all_sequences().mask
POLICY, OLD, REF = (worlds.random_logits(seed) for seed in (0, 1, 2))


def test_there_are_three() -> None:
    assert concrete(KLLoss) == {"UnbiasedK3", "SequenceK2", "BiasedK3"}


def _expected(unreduced: Tensor, sampler: Tensor) -> Tensor:
    """Exact expectation of the sum over tokens, over samples of `sampler`."""
    probabilities = worlds.sequence_logprobs(sampler).detach().exp()
    return (probabilities * masked_sum(unreduced, MASK, dim=-1)).sum()


@pytest.mark.parametrize("sampler", [POLICY, OLD], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("loss", [UnbiasedK3(), SequenceK2()], ids=lambda k: type(k).__name__)
def test_unbiased_losses_have_the_gradient_of_the_reverse_divergence(
    loss: KLLoss, sampler: Tensor
) -> None:
    old, ref = worlds.logprobs_of(sampler), worlds.logprobs_of(REF)
    got = worlds.gradient(
        lambda x: _expected(loss(worlds.logprobs_of(x), old, ref, MASK), sampler), POLICY
    )
    expected = worlds.gradient(lambda x: worlds.reverse_kl(x, REF), POLICY)
    assert_close(got, expected, **FP64)


@pytest.mark.parametrize("sampler", [POLICY, OLD], ids=["on-policy", "off-policy"])
def test_the_value_of_unbiased_k3_is_the_divergence(sampler: Tensor) -> None:
    logprobs, old, ref = (worlds.logprobs_of(x) for x in (POLICY, sampler, REF))
    got = _expected(UnbiasedK3()(logprobs, old, ref, MASK), sampler)
    assert_close(got, worlds.reverse_kl(POLICY, REF), **FP64)


def test_the_biased_loss_follows_the_other_divergence() -> None:
    """On one token (a bandit): the gradient of KL(ref || policy), which is not that of KL(policy || ref)."""
    policy, ref = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    mask = torch.ones(5, 1, dtype=torch.bool)
    logq = ref.log_softmax(-1)

    def loss(x: Tensor) -> Tensor:
        logp = x.log_softmax(-1)
        unreduced = BiasedK3()(logp[:, None], logp[:, None], logq[:, None], mask)
        return (policy.softmax(-1) * unreduced.squeeze(-1)).sum()

    def forward_kl(x: Tensor) -> Tensor:
        return (logq.exp() * (logq - x.log_softmax(-1))).sum()

    def reverse_kl(x: Tensor) -> Tensor:
        return (x.softmax(-1) * (x.log_softmax(-1) - logq)).sum()

    got = worlds.gradient(loss, policy)
    assert_close(got, worlds.gradient(forward_kl, policy), **FP64)
    assert (got - worlds.gradient(reverse_kl, policy)).abs().max() > 1e-2


def test_losses_are_zero_at_the_reference() -> None:
    ref = worlds.logprobs_of(REF)
    zero = torch.zeros_like(ref)
    assert_close(UnbiasedK3()(ref, ref, ref, MASK), zero, **FP64)
    assert_close(SequenceK2()(ref, ref, ref, MASK), zero, **FP64)
    assert_close(BiasedK3()(ref, ref, ref, MASK), zero, **FP64)


@pytest.mark.parametrize(
    "loss", [UnbiasedK3(), SequenceK2(), BiasedK3()], ids=lambda k: type(k).__name__
)
def test_what_is_masked_is_as_if_it_were_not_there(loss: KLLoss) -> None:
    """Padding, and tool output between the policy's own tokens, where nan stands."""
    mask = ragged_mask((5, 1)) & torch.tensor([True, True, False, True, True])
    logprobs, old, ref = (ragged(mask, seed=seed) for seed in range(3))
    logprobs.requires_grad_()
    got = loss(logprobs, old, ref, mask)
    for row, counts in enumerate(mask):
        alone = (x[row, counts][None] for x in (logprobs, old, ref))
        expected = loss(*alone, torch.ones(1, int(counts.sum()), dtype=torch.bool))
        assert_close(got[row, counts][None], expected, **FP64)
    (gradient,) = torch.autograd.grad(got.sum(), logprobs)
    for nothing in (got[~mask], gradient[~mask]):
        assert torch.equal(nothing, torch.zeros_like(nothing))
    assert gradient.isfinite().all()
