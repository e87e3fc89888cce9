"""Policy gradients of the chance to win against a mixture of oneself and the initial policy."""

from functools import partial
from typing import Any, ClassVar

from lit_rlhf.functional.rewards import kl_shaped_rewards
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules.group import GroupPolicyModule, Parts, REINFORCEPolicyModule
from lit_rlhf.modules.means import Means
from lit_rlhf.modules.opponents import (
    MixtureOpponent,
    Opponent,
    meet,
    own_samples,
    win_chances,
)
from lit_rlhf.objectives import FixedKL, PreferenceOracle, SoftLabels
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import EstimatedRollout, EvaluatedRollout, Generation, PromptBatch


class NashMDPolicyModule(GroupPolicyModule):
    r"""Nash-MD in its policy-gradient form (arXiv:2312.00886): win against a mixture of oneself and the initial policy.

    The opponent is $\pi'(y_t|s_t) \propto \pi^{1-a}\pi_{ref}^a$ by token. The return is
    $P(y \succ y') - \frac12 - \beta\sum_t k_1$, and each token is credited with what follows it (rewards to go: the
    gradient is then that of the whole sequence's KL; TRL's leaves the later tokens out). The fixed point is
    $\pi_{ref}e^{P(y \succ \pi')/\beta}/Z$, a regularized Nash equilibrium; what counts is the chance to win, not the
    reward, so it isn't the optimum of RLHF even where preferences come from a reward.

    Logs `preference/win_rate`, of the policy against the mixture. Advantage, surrogate and reduction are by default
    those of `REINFORCEPolicyModule`, of the policy's own samples; kl is `FixedKL(0.1)`, TRL's, and `num_samples` is 1.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        oracle: Says from two scores which is preferred; default `SoftLabels()`.
        opponent: Whom each sample meets; default `MixtureOpponent(0.5)`, TRL's weight.
        **kwargs: As for `GroupPolicyModule`, but for kl_loss: the KL is in the reward.
    """

    default_parts: ClassVar[Parts] = {
        **REINFORCEPolicyModule.default_parts,
        "kl": partial(FixedKL, 0.1),
    }
    default_samples: ClassVar[int] = 1
    in_pairs: ClassVar[bool] = True

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        oracle: PreferenceOracle | None = None,
        opponent: Opponent | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, reward, kl_loss=None, **kwargs)
        self.oracle = oracle or SoftLabels()
        self.opponent = opponent or MixtureOpponent()
        self.reference.require_model(self)

    def sample_tokens(
        self, batch: PromptBatch, sampling: Sampling, purpose: str, num_samples: int
    ) -> Generation:
        """In training the policy's samples and their opponents by turns; else the policy's alone."""
        own = super().sample_tokens(batch, sampling, purpose, num_samples)
        if purpose != "rollout":
            return own
        request = self.rollout_request(batch, sampling, "opponent", num_samples)
        return meet(own, self.opponent.generate(self, request))

    def estimate(self, rollout: EvaluatedRollout) -> EstimatedRollout:
        """The policy's own samples: whether they win, less one half, at the end; the KL per token."""
        scores = self.penalized_scores(rollout)
        wins = win_chances(self.oracle, scores, seed=self.seed, iteration=self.iteration)[::2]
        own = own_samples(rollout)
        counts = Means()
        counts.add("preference/win_rate", wins, own.response_mask.any(-1))
        self.means.join(counts, self.device)
        mask = own.response_mask
        rewards = kl_shaped_rewards(
            wins - 0.5, own.old_logprobs, own.ref_logprobs, mask, self.kl.value
        )
        return own.with_advantages(self.advantage(rewards, mask, own.num_samples))
