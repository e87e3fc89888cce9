"""Proximal policy optimization with a learned value function."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.functional.advantages import gae
from lit_rlhf.functional.masking import whiten
from lit_rlhf.functional.policy_losses import clipped_value_loss, value_clip_fraction
from lit_rlhf.functional.rewards import kl_penalized_scores, place_at_end
from lit_rlhf.models import Critic, ModelSpec, ValueHead, gathered
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.rewards import Reward
from lit_rlhf.types import LossOutput, Rollout


class PPOPolicyModule(PolicyModule):
    r"""PPO for language models (arXiv:1707.06347, 1909.08593, 2203.02155).

    With $\delta_t = r_t + \gamma V_{t+1} - V_t$ the advantages are $A_t = \sum_k (\gamma\lambda)^k \delta_{t+k}$ (GAE),
    whitened over all response tokens of the iteration; returns are $A + V$ before whitening. The loss per token is
    the clipped surrogate plus `value_coef` times the clipped squared value error minus `entropy_coef` times the
    entropy. The KL to the reference sits in the reward (k1), before GAE; a reward's own normalisation and clipping act
    on the score alone, before the KL is subtracted. With `reward: ConstrainedReward` this is PPO-Lagrangian.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        value: Where values come from: `ValueHead` on the policy's hidden states, `ValueAdapter` on the same base, or
            `ValueModel`, a model of its own; the latter two start from the reward model. Default: `ValueHead()`.
        gamma: Discount per token; below 1 the optimum is no longer that of the objective.
        lam: GAE's lambda; 1 takes whole returns (no bias), lower leans on the values (less variance).
        value_clip: Values may move this far from those at sampling before the loss stops rewarding it;
            None: never.
        value_coef: Weight of the value loss.
        value_lr: Learning rate of the value function's own parameters; default: the optimizer's.
        entropy_coef: Weight of the entropy bonus.
        whiten_advantages: Shift and scale advantages to mean 0 and variance 1.
        critic_warmup: Iterations in which the value function alone learns.
        terminal_kl: Subtract the KL of the whole sequence at its last token. False: that of each token at the token,
            which tells the critic where it arose; the optimum is the same.
        **kwargs: As for `PolicyModule`; PPO's own default is `num_epochs=4`.
    """

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        value: Critic | None = None,
        gamma: float = 1.0,
        lam: float = 0.95,
        value_clip: float | None = 0.2,
        value_coef: float = 0.1,
        value_lr: float | None = None,
        entropy_coef: float = 0.0,
        whiten_advantages: bool = True,
        critic_warmup: int = 0,
        terminal_kl: bool = False,
        num_epochs: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, reward, num_epochs=num_epochs, **kwargs)
        self.value = value or ValueHead()
        self.gamma = gamma
        self.lam = lam
        self.value_clip = value_clip
        self.value_coef = value_coef
        self.value_lr = value_lr
        self.entropy_coef = entropy_coef
        self.whiten_advantages = whiten_advantages
        self.critic_warmup = critic_warmup
        self.terminal_kl = terminal_kl
        for name in ("gamma", "lam"):
            self.check(name, lambda number: 0 <= number <= 1, "in [0, 1]")
        for name in ("value_coef", "entropy_coef", "critic_warmup"):
            self.check(name, lambda number: number >= 0, "0 or more")
        self.check(
            "value_clip",
            lambda number: number is None or number > 0,
            "above 0, or null for no clipping",
        )

    @property
    def sampled_values(self) -> str | None:
        """The value head, where it reads the hidden states from which tokens are drawn: then values cost no pass."""
        return "value" if self.value.head_on_policy else None

    def configure_roles(self) -> None:
        """Add the value function to the policy's roles."""
        super().configure_roles()
        self.value.attach(self.backbone, self.reward.source())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The policy's parameters, and the value function's own with their learning rate."""
        trainable = [
            (name, parameter)
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        ]
        value: dict[str, Any] = {
            "params": [p for name, p in trainable if _of_value(name)],
            "name": "value",
        }
        if self.value_lr is not None:
            value["lr"] = self.value_lr
        return [
            {"params": [p for name, p in trainable if not _of_value(name)], "name": "policy"},
            value,
        ]

    def evaluate(self, rollout: Rollout) -> Rollout:
        """Add the values of the states the policy sampled from, where the engine didn't."""
        rollout = super().evaluate(rollout)
        if rollout.values is not None:
            return rollout
        values = torch.zeros_like(rollout.old_logprobs)
        has_weights = any(
            True for _ in self.value.parameters()
        )  # else they are on the policy's base
        with gathered(self.value if has_weights else self.backbone):
            for part, rows, length in self.parts(rollout):
                values[rows, :length] = self._values(part)
        return replace(rollout, values=values)

    def shape_rewards(self, rollout: Rollout) -> Rollout:
        """The score at the end, the KL there too or at each token."""
        if not self.terminal_kl:
            return super().shape_rewards(rollout)
        assert rollout.ref_logprobs is not None
        scores, mask = self.penalized_scores(rollout), rollout.response_mask
        returns = kl_penalized_scores(
            scores, rollout.old_logprobs, rollout.ref_logprobs, mask, self.kl.value
        )
        return replace(rollout, rewards=place_at_end(returns, mask))

    def estimate(self, rollout: Rollout) -> Rollout:
        """GAE, returns, and advantages whitened over the whole iteration."""
        assert rollout.rewards is not None and rollout.values is not None
        mask = rollout.response_mask
        advantages, returns = gae(
            rollout.rewards, rollout.values, mask, gamma=self.gamma, lam=self.lam
        )
        if self.whiten_advantages:
            advantages = whiten(advantages, mask)
        return replace(rollout, advantages=advantages, returns=returns)

    def loss(self, minibatch: Rollout) -> LossOutput:
        """Clipped surrogate, clipped value loss and entropy bonus, per token."""
        assert minibatch.values is not None and minibatch.returns is not None
        on_policy = "value" if self.value.head_on_policy else None
        out = self.policy_forward(minibatch, values=on_policy, entropy=self.entropy_coef != 0.0)
        assert out.logprobs is not None
        surrogate = self.surrogate_loss(out.logprobs, minibatch)
        values = out.values if on_policy else self._values(minibatch)
        assert values is not None
        value_loss = clipped_value_loss(
            values, minibatch.values, minibatch.returns, self.value_clip
        )
        loss = surrogate.loss + self.value_coef * value_loss
        metrics = dict(surrogate.metrics)
        if out.entropy is not None:
            loss = loss - self.entropy_coef * out.entropy
            metrics["policy/entropy_avg"] = out.entropy
        metrics |= {
            "loss/policy_avg": surrogate.loss,
            "loss/value_avg": value_loss,
        }
        if self.value_clip is not None:
            metrics["val/clipfrac_avg"] = value_clip_fraction(
                values, minibatch.values, minibatch.returns, self.value_clip
            )
        return LossOutput(loss, metrics)

    def optimizer_step_on_minibatch(self) -> Tensor:
        """Leave the policy as it is while the critic warms up: no gradient means no decay and no momentum either."""
        if self.iteration < self.critic_warmup:
            optimizer = self.optimizers()
            assert not isinstance(optimizer, list)
            for group in optimizer.param_groups:
                for parameter in group["params"] if group["name"] == "policy" else []:
                    parameter.grad = None
        return super().optimizer_step_on_minibatch()

    def _values(self, rollout: Rollout) -> Tensor:
        return self.value.values(self.backbone, self.branched(rollout), rollout.num_samples)


def _of_value(name: str) -> bool:
    """Whether a parameter belongs to the value function alone: its own model, or the adapter and head called `value`."""
    return name.startswith("value.") or any(
        f".{part}.value." in name for part in ("lora_A", "lora_B", "heads")
    )
