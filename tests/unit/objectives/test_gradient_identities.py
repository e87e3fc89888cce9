"""Group methods held to the true policy gradient by enumeration: every group of samples of a small world, exactly.

A minibatch is one group of G sequences of the one prompt, so the expected loss is a sum over 7^G groups; its gradient
is compared with that of E[r] - beta KL(policy || reference), written out over the 7 sequences.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_rlhf.functional.advantages import discounted_returns, gae, greedy_baseline
from lit_rlhf.functional.rewards import kl_shaped_rewards, place_at_end
from lit_rlhf.objectives import (
    Advantage,
    BiasedK3,
    ClippedSurrogate,
    ConstantLength,
    GroupCentered,
    GroupNormalized,
    KLLoss,
    LeaveOneOut,
    Reduction,
    Reinforce,
    RewardToGo,
    SequenceClipped,
    SequenceK2,
    SequenceMean,
    SequenceSum,
    Surrogate,
    TokenMean,
    UnbiasedK3,
    WeightClipped,
)
from tests.reference import worlds
from tests.tolerances import FP64
from tests.walks import walk

BETA = 0.3
MASK = worlds.all_sequences().mask
POLICY, REF = worlds.random_logits(0), worlds.random_logits(2)
SCORES = worlds.random_scores()
REDUCTIONS = [TokenMean(), SequenceMean(), SequenceSum(), ConstantLength(5)]
SURROGATES = [Reinforce(), ClippedSurrogate(dual=3.0), WeightClipped(low=0.5)]


def _rewards(policy: Tensor, beta: float) -> Tensor:
    """(7, 2) of all sequences, KL in the reward."""
    return kl_shaped_rewards(
        SCORES, worlds.logprobs_of(policy), worlds.logprobs_of(REF), MASK, beta
    )


def _expected_gradient(
    policy: Tensor,
    group_size: int,
    advantages: Callable[[Tensor, Tensor], Tensor],
    surrogate: Surrogate,
    reduction: Reduction,
    kl_loss: KLLoss | None = None,
    sampler: Tensor | None = None,
) -> Tensor:
    """Gradient of the expected loss over all groups, by autograd through the objectives' own code.

    Args:
        policy: The table of logits at which the gradient is taken.
        group_size: G.
        advantages: From indices of a group's sequences and their mask to (G, 2).
        surrogate: As in a module.
        reduction: As in a module.
        kl_loss: Added to the surrogate's loss with weight BETA.
        sampler: The table that samples; default: the policy.
    """
    sampler = policy if sampler is None else sampler
    sampled = worlds.logprobs_of(sampler)
    probabilities = worlds.sequence_logprobs(sampler).exp()
    ref = worlds.logprobs_of(REF)

    def expected_loss(table: Tensor) -> Tensor:
        logprobs = worlds.logprobs_of(table)
        total = torch.zeros((), dtype=torch.float64)
        for group in itertools.product(range(7), repeat=group_size):
            rows = torch.tensor(group)
            mask = MASK[rows]
            loss = surrogate(logprobs[rows], sampled[rows], advantages(rows, mask), mask).loss
            if kl_loss is not None:
                loss = loss + BETA * kl_loss(logprobs[rows], sampled[rows], ref[rows], mask)
            reduced = reduction.numerator(loss, mask) / reduction.denominator(mask)
            total = total + probabilities[rows].prod() * reduced
        return total

    return worlds.gradient(expected_loss, policy)


def _of(
    advantage: Advantage, rewards: Tensor, group_size: int
) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda rows, mask: advantage(rewards[rows], mask, group_size)


def _true_gradient(policy: Tensor) -> Tensor:
    return worlds.gradient(lambda x: worlds.objective(x, REF, SCORES, BETA), policy)


@pytest.mark.parametrize("group_size", walk([2, 3], 2))
@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_leave_one_out_has_the_true_gradient(surrogate: Surrogate, group_size: int) -> None:
    advantages = _of(LeaveOneOut(), _rewards(POLICY, BETA), group_size)
    got = _expected_gradient(POLICY, group_size, advantages, surrogate, SequenceSum())
    assert_close(got, -_true_gradient(POLICY), **FP64)


@pytest.mark.parametrize("group_size", [2, 3])
def test_the_self_inclusive_mean_has_a_fraction_of_it(group_size: int) -> None:
    advantages = _of(GroupCentered(), _rewards(POLICY, BETA), group_size)
    got = _expected_gradient(POLICY, group_size, advantages, Reinforce(), SequenceSum())
    assert_close(got, -(group_size - 1) / group_size * _true_gradient(POLICY), **FP64)


def test_a_constant_length_scales_the_gradient_alone() -> None:
    advantages = _of(LeaveOneOut(), _rewards(POLICY, BETA), 2)
    got = _expected_gradient(POLICY, 2, advantages, Reinforce(), ConstantLength(5))
    assert_close(got, -_true_gradient(POLICY) / 5, **FP64)


def test_reward_to_go_has_the_true_gradient() -> None:
    advantages = _of(RewardToGo(), _rewards(POLICY, BETA), 1)
    got = _expected_gradient(POLICY, 1, advantages, Reinforce(), SequenceSum())
    assert_close(got, -_true_gradient(POLICY), **FP64)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_gae_with_exact_values_has_the_true_gradient_for_every_lambda(lam: float) -> None:
    rewards = _rewards(POLICY, BETA)
    estimate = gae(rewards, worlds.state_values(POLICY, rewards), MASK, 1.0, lam)
    got = _expected_gradient(
        POLICY, 1, lambda rows, _: estimate.advantages[rows], Reinforce(), SequenceSum()
    )
    assert_close(got, -_true_gradient(POLICY), **FP64)


def test_a_greedy_baseline_has_the_true_gradient() -> None:
    returns = discounted_returns(_rewards(POLICY, BETA), MASK)

    def advantages(rows: Tensor, mask: Tensor) -> Tensor:
        return greedy_baseline(returns[rows], SCORES[3].expand(len(rows)), mask)

    got = _expected_gradient(POLICY, 2, advantages, Reinforce(), SequenceSum())
    assert_close(got, -_true_gradient(POLICY), **FP64)


@pytest.mark.parametrize("kl_loss", [UnbiasedK3(), SequenceK2()], ids=lambda k: type(k).__name__)
def test_an_unbiased_kl_loss_is_as_good_as_kl_in_the_reward(kl_loss: KLLoss) -> None:
    advantages = _of(LeaveOneOut(), place_at_end(SCORES, MASK), 2)
    got = _expected_gradient(POLICY, 2, advantages, Reinforce(), SequenceSum(), kl_loss)
    assert_close(got, -_true_gradient(POLICY), **FP64)


def test_the_biased_kl_loss_is_not() -> None:
    advantages = _of(LeaveOneOut(), place_at_end(SCORES, MASK), 2)
    got = _expected_gradient(POLICY, 2, advantages, Reinforce(), SequenceSum(), BiasedK3())
    assert (got + _true_gradient(POLICY)).norm() > 1e-2


@pytest.mark.parametrize(
    "reduction", walk(REDUCTIONS, *REDUCTIONS[:2]), ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize(
    "advantage", [LeaveOneOut(), GroupCentered(), GroupNormalized()], ids=lambda a: type(a).__name__
)
def test_the_gradient_vanishes_at_the_optimum(advantage: Advantage, reduction: Reduction) -> None:
    """ref * exp(r / beta) / Z: every sample's return is the same there, whatever the reduction."""
    optimum = worlds.optimal_logits(REF, SCORES, BETA)
    assert_close(_true_gradient(optimum), torch.zeros(3, 3, dtype=torch.float64), **FP64)
    advantages = _of(advantage, _rewards(optimum, BETA), 2)
    got = _expected_gradient(optimum, 2, advantages, ClippedSurrogate(), reduction)
    assert_close(got, torch.zeros_like(got), **FP64)


@pytest.mark.parametrize(
    "sampler", [POLICY, worlds.random_logits(1)], ids=["on-policy", "off-policy"]
)
def test_the_sequence_ratio_has_the_gradient_of_gspo_written_out(sampler: Tensor) -> None:
    """mean_i s_i A_i with s the geometric-mean ratio, differentiated directly; the clip is out of reach."""
    rewards, advantage = _rewards(sampler, BETA), GroupCentered()
    surrogate = SequenceClipped(low=1.0, high=1e6)
    got = _expected_gradient(
        POLICY, 2, _of(advantage, rewards, 2), surrogate, SequenceMean(), sampler=sampler
    )
    sampled = worlds.logprobs_of(sampler)
    probabilities, returns = worlds.sequence_logprobs(sampler).exp(), rewards.sum(-1)

    def written_out(table: Tensor) -> Tensor:
        change = torch.where(MASK, worlds.logprobs_of(table) - sampled, 0.0)
        ratio = (change.sum(-1) / MASK.sum(-1)).exp()
        total = torch.zeros((), dtype=torch.float64)
        for i, j in itertools.product(range(7), repeat=2):
            half = (returns[i] - returns[j]) / 2
            total = (
                total
                - probabilities[i] * probabilities[j] * (ratio[i] * half - ratio[j] * half) / 2
            )
        return total

    assert_close(got, worlds.gradient(written_out, POLICY), **FP64)
