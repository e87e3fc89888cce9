"""Policy optimization without a critic: advantage x surrogate x reduction x place of the KL, by name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

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
    KLLoss,
    LeaveOneOut,
    Reduction,
    Reinforce,
    RewardToGo,
    SequenceClipped,
    SequenceMean,
    SequenceSum,
    TokenMean,
    UnbiasedK3,
    WeightClipped,
    Whitened,
)
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import EstimatedRollout, EvaluatedRollout, LossOutput, asked

Parts = Mapping[str, Callable[[], Any]]


class GroupPolicyModule(PolicyModule):
    r"""Policy gradients from several completions of each prompt, judged against one another.

    The parts are orthogonal and injected; the named methods below only choose them, in `default_parts`.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        advantage: Returns to advantages; default `LeaveOneOut()`.
        kl_loss: The KL to the reference as a term of the loss, weighted with `kl.value`; None puts it into the reward
            (k1 per token), where it is exact for any advantage that doesn't rescale returns.
        **kwargs: As for `PolicyModule`; `num_samples` is 8 by default.
    """

    default_parts: ClassVar[Parts] = {
        **PolicyModule.default_parts,
        "advantage": LeaveOneOut,
        "kl_loss": lambda: None,
    }
    default_samples: ClassVar[int] = 8

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        advantage: Advantage | None = None,
        kl_loss: KLLoss | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, reward, **kwargs)
        self.advantage: Advantage = self.part("advantage", advantage)
        self.kl_loss: KLLoss | None = self.part("kl_loss", kl_loss)
        if self.num_samples < self.advantage.min_samples:
            raise ConfigurationError(
                f"{type(self.advantage).__name__} compares the samples of a prompt and needs num_samples of at least "
                f"{self.advantage.min_samples}, not {self.num_samples}."
            )

    def shape_rewards(self, rollout: EvaluatedRollout) -> Tensor:
        """The score at the end; the KL per token as well, unless it is a term of the loss."""
        if self.kl_loss is None:
            return super().shape_rewards(rollout)
        return place_at_end(self.penalized_scores(rollout), rollout.response_mask)

    def estimate(self, rollout: EvaluatedRollout) -> EstimatedRollout:
        """Advantages from the rewards of the prompt's samples."""
        rewards = self.shape_rewards(rollout)
        return rollout.with_advantages(
            self.advantage(rewards, rollout.response_mask, rollout.num_samples)
        )

    def loss(self, minibatch: EvaluatedRollout) -> LossOutput:
        """The surrogate, plus the KL where it is a term of the loss."""
        if self.kl_loss is None:
            return super().loss(minibatch)
        minibatch = EstimatedRollout.of(minibatch)
        out = self.policy_forward(minibatch)
        logprobs = asked(out.logprobs)
        surrogate = self.surrogate_loss(logprobs, minibatch)
        penalty = self.kl_loss(logprobs, minibatch.old_logprobs, minibatch.ref_logprobs, out.mask)
        metrics = dict(surrogate.metrics) | {
            "loss/policy_avg": surrogate.loss,
            "loss/kl_avg": penalty,
        }
        return LossOutput(surrogate.loss + self.kl.value * penalty, metrics, surrogate.logprobs)

    def extra_state(self) -> dict[str, Any]:
        """That of the policy and of the advantage."""
        return super().extra_state() | {"advantage": self.advantage.state_dict()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        super().load_extra_state(state)
        self.advantage.load_state_dict(state["advantage"])


class REINFORCEPolicyModule(GroupPolicyModule):
    """REINFORCE (Williams 1992): rewards to go, KL in the reward, one step per rollout.

    The advantage is `RewardToGo()`, no baseline; `MovingBaseline()` has less variance. The surrogate is `Reinforce()`,
    the reduction `SequenceSum()`, and `num_samples` is 1. All are options, as for `GroupPolicyModule`.
    """

    default_parts: ClassVar[Parts] = {
        **GroupPolicyModule.default_parts,
        "advantage": RewardToGo,
        "surrogate": Reinforce,
        "reduction": SequenceSum,
    }
    default_samples: ClassVar[int] = 1


class ReinforcePPPolicyModule(GroupPolicyModule):
    """REINFORCE++ (arXiv:2501.03262): rewards to go, whitened over the whole batch, PPO's clip, KL in the reward.

    The advantage is `Whitened(RewardToGo())`, and `num_samples` is 1. Its form with a baseline is
    `advantage=Whitened(GroupCentered())` with `kl_loss=SequenceK2()`.
    """

    default_parts: ClassVar[Parts] = {
        **GroupPolicyModule.default_parts,
        "advantage": lambda: Whitened(RewardToGo()),
    }
    default_samples: ClassVar[int] = 1


class RLOOPolicyModule(GroupPolicyModule):
    """RLOO (arXiv:2402.14740): baseline from the prompt's other samples, KL in the reward, sum over the sequence.

    The reduction is `SequenceSum()`, and `num_samples` is 4; at least 2. The first step of a rollout is the paper's; in
    later ones the ratio of each token is clipped, as in PPO, where TRL clips the one of the whole sequence, which
    leaves its range with its length.
    """

    default_parts: ClassVar[Parts] = {
        **GroupPolicyModule.default_parts,
        "reduction": SequenceSum,
    }
    default_samples: ClassVar[int] = 4


class GRPOPolicyModule(GroupPolicyModule):
    """GRPO (arXiv:2402.03300): scores normalised in their group, PPO's clip, KL in the loss, mean over sequences.

    The advantage is `GroupNormalized()`, the reduction `SequenceMean()`, kl `FixedKL(0.04)`, the paper's. The paper
    differentiates k3 without its importance ratio, which pulls towards another optimum; here the KL's gradient is
    unbiased (`UnbiasedK3()`) unless `kl_loss=BiasedK3()` is asked for.
    """

    default_parts: ClassVar[Parts] = {
        **GroupPolicyModule.default_parts,
        "advantage": GroupNormalized,
        "kl_loss": UnbiasedK3,
        "kl": partial(FixedKL, 0.04),
        "reduction": SequenceMean,
    }


class DrGRPOPolicyModule(GroupPolicyModule):
    """Dr. GRPO (arXiv:2503.20783): centred but not scaled, divided by a constant length, no KL by default.

    The advantage is `GroupCentered()`; kl is `FixedKL(0)`, and `UnbiasedK3()` counts once it is above 0.

    Args:
        reduction: Default `ConstantLength(sampling.max_new_tokens)`.
        **kwargs: As for `GroupPolicyModule`.
    """

    default_parts: ClassVar[Parts] = {
        **GroupPolicyModule.default_parts,
        "advantage": GroupCentered,
        "kl_loss": UnbiasedK3,
        "kl": partial(FixedKL, 0.0),
    }

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        sampling: Sampling | None = None,
        reduction: Reduction | None = None,
        **kwargs: Any,
    ) -> None:
        length = (sampling or Sampling()).max_new_tokens
        super().__init__(
            backbone,
            reward,
            sampling=sampling,
            reduction=reduction or ConstantLength(length),
            **kwargs,
        )


class GSPOPolicyModule(GroupPolicyModule):
    """GSPO (arXiv:2507.18071): GRPO with the clip on the geometric-mean ratio of the sequence, no KL by default.

    As `GRPOPolicyModule`, with the surrogate `SequenceClipped()` and kl `FixedKL(0)`.
    """

    default_parts: ClassVar[Parts] = {
        **GRPOPolicyModule.default_parts,
        "surrogate": SequenceClipped,
        "kl": partial(FixedKL, 0.0),
    }


class CISPOPolicyModule(GroupPolicyModule):
    """CISPO (arXiv:2506.13585): the importance weight is clipped, no token loses its gradient; mean over tokens, no KL.

    As `GRPOPolicyModule`, with the surrogate `WeightClipped()`, kl `FixedKL(0)` and the reduction `TokenMean()`.
    """

    default_parts: ClassVar[Parts] = {
        **GRPOPolicyModule.default_parts,
        "surrogate": WeightClipped,
        "kl": partial(FixedKL, 0.0),
        "reduction": TokenMean,
    }
