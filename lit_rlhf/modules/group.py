"""Policy optimization without a critic: advantage x surrogate x reduction x place of the KL, and the named points in between."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.rewards import place_at_end
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.objectives import (
    Advantage,
    ConstantLength,
    FixedKL,
    GroupCentered,
    GroupNormalized,
    KLController,
    KLLoss,
    LeaveOneOut,
    Reduction,
    Reinforce,
    RewardToGo,
    SequenceClipped,
    SequenceMean,
    SequenceSum,
    Surrogate,
    TokenMean,
    UnbiasedK3,
    WeightClipped,
    Whitened,
)
from lit_rlhf.rewards import Reward
from lit_rlhf.types import LossOutput, Rollout


class GroupPolicyModule(PolicyModule):
    r"""Policy gradients from several completions of each prompt, judged against one another.

    The parts are orthogonal and injected; the named methods below only choose them.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        advantage: Returns to advantages; default `LeaveOneOut()`.
        kl_loss: The KL to the reference as a term of the loss, weighted with `kl.value`; None puts it into the reward
            (k1 per token), where it is exact for any advantage that doesn't rescale returns.
        **kwargs: As for `PolicyModule`.
    """

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        advantage: Advantage | None = None,
        kl_loss: KLLoss | None = None,
        num_samples: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, reward, num_samples=num_samples, **kwargs)
        self.advantage = advantage or LeaveOneOut()
        self.kl_loss = kl_loss
        if num_samples < self.advantage.min_samples:
            raise ConfigurationError(
                f"{type(self.advantage).__name__} compares the samples of a prompt and needs num_samples of at least "
                f"{self.advantage.min_samples}, not {num_samples}."
            )

    def shape_rewards(self, rollout: Rollout) -> Rollout:
        """The score at the end; the KL per token as well, unless it is a term of the loss."""
        if self.kl_loss is None:
            return super().shape_rewards(rollout)
        return replace(
            rollout, rewards=place_at_end(self.penalized_scores(rollout), rollout.response_mask)
        )

    def estimate(self, rollout: Rollout) -> Rollout:
        """Advantages from the rewards of the prompt's samples."""
        assert rollout.rewards is not None
        advantages = self.advantage(rollout.rewards, rollout.response_mask, rollout.num_samples)
        return replace(rollout, advantages=advantages)

    def loss(self, minibatch: Rollout) -> LossOutput:
        """The surrogate, plus the KL where it is a term of the loss."""
        if self.kl_loss is None:
            return super().loss(minibatch)
        out = self.policy_forward(minibatch)
        assert out.logprobs is not None and minibatch.ref_logprobs is not None
        surrogate = self.surrogate_loss(out.logprobs, minibatch)
        penalty = self.kl_loss(
            out.logprobs, minibatch.old_logprobs, minibatch.ref_logprobs, out.mask
        )
        metrics = dict(surrogate.metrics) | {
            "loss/policy_avg": surrogate.loss,
            "loss/kl_avg": penalty,
        }
        return LossOutput(surrogate.loss + self.kl.value * penalty, metrics)

    def extra_state(self) -> dict[str, Any]:
        """That of the policy and of the advantage."""
        return super().extra_state() | {"advantage": self.advantage.state_dict()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        super().load_extra_state(state)
        self.advantage.load_state_dict(state["advantage"])


class REINFORCEPolicyModule(GroupPolicyModule):
    """REINFORCE (Williams 1992): rewards to go, KL in the reward, one step per rollout.

    Args:
        advantage: Default `RewardToGo()`, no baseline; `MovingBaseline()` has less variance.
        surrogate: Default `Reinforce()`.
        reduction: Default `SequenceSum()`.
        **kwargs: As for `GroupPolicyModule`.
    """

    def __init__(
        self,
        *args: Any,
        advantage: Advantage | None = None,
        surrogate: Surrogate | None = None,
        reduction: Reduction | None = None,
        num_samples: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            advantage=advantage or RewardToGo(),
            surrogate=surrogate or Reinforce(),
            reduction=reduction or SequenceSum(),
            num_samples=num_samples,
            **kwargs,
        )


class ReinforcePPPolicyModule(GroupPolicyModule):
    """REINFORCE++ (arXiv:2501.03262): rewards to go, whitened over the whole batch, PPO's clip, KL in the reward.

    Its form with a baseline is `advantage=Whitened(GroupCentered())` with `kl_loss=SequenceK2()`.

    Args:
        advantage: Default `Whitened(RewardToGo())`.
        **kwargs: As for `GroupPolicyModule`.
    """

    def __init__(
        self, *args: Any, advantage: Advantage | None = None, num_samples: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(
            *args, advantage=advantage or Whitened(RewardToGo()), num_samples=num_samples, **kwargs
        )


class RLOOPolicyModule(GroupPolicyModule):
    """RLOO (arXiv:2402.14740): baseline from the prompt's other samples, KL in the reward, sum over the sequence.

    Args:
        reduction: Default `SequenceSum()`.
        num_samples: At least 2; default 4.
        **kwargs: As for `GroupPolicyModule`.
    """

    def __init__(
        self, *args: Any, reduction: Reduction | None = None, num_samples: int = 4, **kwargs: Any
    ) -> None:
        super().__init__(
            *args, reduction=reduction or SequenceSum(), num_samples=num_samples, **kwargs
        )


class GRPOPolicyModule(GroupPolicyModule):
    """GRPO (arXiv:2402.03300): scores normalised in their group, PPO's clip, KL in the loss, mean over sequences.

    The paper differentiates k3 without its importance ratio, which pulls towards another optimum; here the KL's
    gradient is unbiased unless `kl_loss=BiasedK3()` is asked for.

    Args:
        advantage: Default `GroupNormalized()`.
        kl_loss: Default `UnbiasedK3()`.
        kl: Default `FixedKL(0.04)`, the paper's.
        reduction: Default `SequenceMean()`.
        **kwargs: As for `GroupPolicyModule`.
    """

    def __init__(
        self,
        *args: Any,
        advantage: Advantage | None = None,
        kl_loss: KLLoss | None = None,
        kl: KLController | None = None,
        reduction: Reduction | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            advantage=advantage or GroupNormalized(),
            kl_loss=kl_loss or UnbiasedK3(),
            kl=kl or FixedKL(0.04),
            reduction=reduction or SequenceMean(),
            **kwargs,
        )


class DrGRPOPolicyModule(GroupPolicyModule):
    """Dr. GRPO (arXiv:2503.20783): centred but not scaled, divided by a constant length, no KL by default.

    Args:
        advantage: Default `GroupCentered()`.
        kl: Default `FixedKL(0)`.
        kl_loss: Default `UnbiasedK3()`, which counts once `kl` is above 0.
        reduction: Default `ConstantLength(sampling.max_new_tokens)`.
        **kwargs: As for `GroupPolicyModule`.
    """

    def __init__(
        self,
        *args: Any,
        advantage: Advantage | None = None,
        kl: KLController | None = None,
        kl_loss: KLLoss | None = None,
        reduction: Reduction | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            advantage=advantage or GroupCentered(),
            kl=kl or FixedKL(0.0),
            kl_loss=kl_loss or UnbiasedK3(),
            reduction=reduction,
            **kwargs,
        )
        if reduction is None:
            self.reduction = ConstantLength(self.sampling.max_new_tokens)


class GSPOPolicyModule(GRPOPolicyModule):
    """GSPO (arXiv:2507.18071): GRPO with the clip on the geometric-mean ratio of the sequence, no KL by default.

    Args:
        surrogate: Default `SequenceClipped()`.
        kl: Default `FixedKL(0)`.
        **kwargs: As for `GRPOPolicyModule`.
    """

    def __init__(
        self,
        *args: Any,
        surrogate: Surrogate | None = None,
        kl: KLController | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args, surrogate=surrogate or SequenceClipped(), kl=kl or FixedKL(0.0), **kwargs
        )


class CISPOPolicyModule(GRPOPolicyModule):
    """CISPO (arXiv:2506.13585): the importance weight is clipped, no token loses its gradient; mean over tokens, no KL.

    Args:
        surrogate: Default `WeightClipped()`.
        kl: Default `FixedKL(0)`.
        reduction: Default `TokenMean()`.
        **kwargs: As for `GRPOPolicyModule`.
    """

    def __init__(
        self,
        *args: Any,
        surrogate: Surrogate | None = None,
        kl: KLController | None = None,
        reduction: Reduction | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            surrogate=surrogate or WeightClipped(),
            kl=kl or FixedKL(0.0),
            reduction=reduction or TokenMean(),
            **kwargs,
        )
