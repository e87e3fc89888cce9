"""Proximal policy optimization with a learned value function."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lit_rlhf.functional.advantages import gae as gae_advantages
from lit_rlhf.functional.masking import whiten
from lit_rlhf.functional.policy_losses import clipped_value_loss, value_clip_fraction
from lit_rlhf.functional.rewards import kl_penalized_scores, place_at_end
from lit_rlhf.models import Critic, ModelSpec, ValueHead
from lit_rlhf.modules.minibatches import by_parts, rollout_batch
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.modules.steps import gradients
from lit_rlhf.options import check_option
from lit_rlhf.rewards import Reward
from lit_rlhf.types import (
    EstimatedRollout,
    EvaluatedRollout,
    LossOutput,
    Rollout,
    ScoredRollout,
    asked,
)


@dataclass
class GAE:
    r"""Generalised advantage estimation (arXiv:1506.02438): $A_t = \sum_k (\gamma\lambda)^k \delta_{t+k}$.

    Attributes:
        gamma: Discount per token, in [0, 1]; below 1 the optimum is no longer that of the objective.
        lam: $\lambda$ in [0, 1]; 1 takes whole returns (no bias), lower leans on the values (less variance).
        whiten: Shift and scale advantages to mean 0 and variance 1 over all response tokens of the iteration.

    Raises:
        ConfigurationError: A number is out of its range.
    """

    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True

    def __post_init__(self) -> None:
        check_option(0 <= self.gamma <= 1, self, "gamma", self.gamma, "in [0, 1]")
        check_option(0 <= self.lam <= 1, self, "lam", self.lam, "in [0, 1]")


@dataclass
class ValueLoss:
    """How the value function is trained.

    Attributes:
        coef: Weight of its loss beside the surrogate, 0 or more.
        clip: Values may move this far from those at sampling before the loss stops rewarding it; None: never.
        lr: Learning rate of the value function's own parameters; default: the optimizer's.
        warmup: Iterations in which the value function alone learns.

    Raises:
        ConfigurationError: A number is out of its range.
    """

    coef: float = 0.1
    clip: float | None = 0.2
    lr: float | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        clip = self.clip
        check_option(self.coef >= 0, self, "coef", self.coef, "0 or more")
        check_option(self.warmup >= 0, self, "warmup", self.warmup, "0 or more")
        check_option(
            clip is None or clip > 0, self, "clip", clip, "above 0, or null for no clipping"
        )


@dataclass(frozen=True)
class ValuedRollout(EvaluatedRollout):
    """With the values of the states that the policy sampled from."""

    values: Tensor  # (N, T)


@dataclass(frozen=True)
class PPORollout(EstimatedRollout):
    """With values, and what they are to become."""

    values: Tensor  # (N, T)
    returns: Tensor  # (N, T)


class PPOPolicyModule(PolicyModule):
    r"""PPO for language models (arXiv:1707.06347, 1909.08593, 2203.02155).

    With $\delta_t = r_t + \gamma V_{t+1} - V_t$ the advantages are $A_t = \sum_k (\gamma\lambda)^k \delta_{t+k}$ (GAE),
    whitened over all response tokens of the iteration; returns are $A + V$ before whitening. The loss per token is
    the clipped surrogate plus `value_loss.coef` times the clipped squared value error minus `entropy_coef` times the
    entropy. The KL to the reference sits in the reward (k1), before GAE; a reward's own normalisation and clipping act
    on the score alone, before the KL is subtracted. With `reward: ConstrainedReward` this is PPO-Lagrangian.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        value: Where values come from: `ValueHead` on the policy's hidden states, `ValueAdapter` on the same base, or
            `ValueModel`, a model of its own; the latter two start from the reward model. Default: `ValueHead()`.
        value_loss: How they are trained; see `ValueLoss`.
        gae: From rewards and values to advantages; see `GAE`.
        entropy_coef: Weight of the entropy bonus, 0 or more.
        terminal_kl: Subtract the KL of the whole sequence at its last token. False: that of each token at the token,
            which tells the critic where it arose; the optimum is the same.
        **kwargs: As for `PolicyModule`; PPO's own default is 4 epochs.
    """

    default_epochs: ClassVar[int] = 4

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        value: Critic | None = None,
        value_loss: ValueLoss | None = None,
        gae: GAE | None = None,
        entropy_coef: float = 0.0,
        terminal_kl: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, reward, **kwargs)
        self.value = value or ValueHead()
        # It reads the hidden states from which tokens are drawn: then values cost no pass.
        self.sampled_values = "value" if self.value.head_on_policy else None
        self.value_loss = value_loss or ValueLoss()
        self.gae = gae or GAE()
        self.entropy_coef = entropy_coef
        self.terminal_kl = terminal_kl
        check_option(entropy_coef >= 0, self, "entropy_coef", entropy_coef, "0 or more")

    def configure_roles(self) -> None:
        """Add the value function to the policy's roles."""
        super().configure_roles()
        self.value.attach(self.backbone, self.reward.source())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The policy's parameters, and the value function's own with their learning rate."""
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        policy = [p for name, p in trained.items() if not _of_value(name)]
        value: dict[str, Any] = {
            "params": [p for name, p in trained.items() if _of_value(name)],
            "name": "value",
        }
        if self.value_loss.lr is not None:
            value["lr"] = self.value_loss.lr
        return [{"params": policy, "name": "policy"}, value]

    def evaluate(self, rollout: ScoredRollout) -> ValuedRollout:
        """Add the values of the states the policy sampled from, where the engine didn't."""
        evaluated = super().evaluate(rollout)
        values = rollout.completions.values
        if values is None:
            # A critic without weights of its own is on the policy's base.
            own = any(True for _ in self.value.parameters())
            values = by_parts(
                rollout,
                self.value if own else self.backbone,
                self.microbatch_size.tokens,
                self._values,
            )
        return evaluated.to_stage(ValuedRollout, values=values)

    def shape_rewards(self, rollout: EvaluatedRollout) -> Tensor:
        """The score at the end, the KL there too or at each token."""
        if not self.terminal_kl:
            return super().shape_rewards(rollout)
        mask = rollout.response_mask
        returns = kl_penalized_scores(
            self.penalized_scores(rollout),
            rollout.old_logprobs,
            rollout.ref_logprobs,
            mask,
            self.kl.value,
        )
        return place_at_end(returns, mask)

    def estimate(self, rollout: EvaluatedRollout) -> PPORollout:
        """GAE, returns, and advantages whitened over the whole iteration."""
        rollout = ValuedRollout.of(rollout)
        mask, rewards = rollout.response_mask, self.shape_rewards(rollout)  # (N, T)
        advantages, returns = gae_advantages(
            rewards, rollout.values, mask, gamma=self.gae.gamma, lam=self.gae.lam
        )
        if self.gae.whiten:
            advantages = whiten(advantages, mask)
        return rollout.to_stage(PPORollout, advantages=advantages, returns=returns)

    def loss(self, minibatch: EvaluatedRollout) -> LossOutput:
        """Clipped surrogate, clipped value loss and entropy bonus, per token."""
        minibatch = PPORollout.of(minibatch)
        head = self.sampled_values
        bonus = self.entropy_coef != 0.0
        out = self.policy_forward(minibatch, values=head, entropy=bonus, entropy_grad=bonus)
        surrogate = self.surrogate_loss(asked(out.logprobs), minibatch)
        values = asked(out.values) if head else self._values(minibatch)
        clip = self.value_loss.clip
        value_loss = clipped_value_loss(values, minibatch.values, minibatch.returns, clip)
        loss = surrogate.loss + self.value_loss.coef * value_loss
        metrics = dict(surrogate.metrics)
        if out.entropy is not None:
            loss = loss - self.entropy_coef * out.entropy
            metrics["policy/entropy_avg"] = out.entropy
        metrics |= {"loss/policy_avg": surrogate.loss, "loss/value_avg": value_loss}
        if clip is not None:
            metrics["val/clipfrac_avg"] = value_clip_fraction(
                values, minibatch.values, minibatch.returns, clip
            )
        return LossOutput(loss, metrics, surrogate.logprobs)

    def take_step(self) -> Tensor:
        """Leave the policy as it is while the critic warms up: no gradient means no decay and no momentum either."""
        if self.iteration < self.value_loss.warmup:
            values = {id(p) for name, p in self.named_parameters() if _of_value(name)}
            optimizer: Any = self.optimizers()
            for parameter in gradients(optimizer):
                if id(parameter) not in values:
                    parameter.grad = None
        return super().take_step()

    def _values(self, rollout: Rollout) -> Tensor:
        batch = rollout_batch(rollout, self.backbone.pad_token_id)
        return self.value.values(self.backbone, batch, rollout.num_samples)


def _of_value(name: str) -> bool:
    """Whether a parameter is the value function's alone: its own model, or adapter and head called `value`."""
    return name.startswith("value.") or any(
        f".{part}.value." in name for part in ("lora_A", "lora_B", "heads")
    )
