"""Regression to relative rewards instead of a policy gradient."""

from dataclasses import replace
from typing import Any

from lit_rlhf.functional.masking import masked_sum
from lit_rlhf.functional.policy_losses import relative_reward_loss, token_ratio
from lit_rlhf.functional.rewards import place_at_end
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.objectives import SequenceSum
from lit_rlhf.objectives.surrogates import drift_metrics
from lit_rlhf.rewards import Reward
from lit_rlhf.types import LossOutput, Rollout


class REBELPolicyModule(PolicyModule):
    r"""REBEL (arXiv:2404.16767): the difference of two log-ratios is fitted to the difference of two rewards.

    $\left(\frac1\eta\left[\log\frac{\pi(y)}{\pi_t(y)} - \log\frac{\pi(y')}{\pi_t(y')}\right] - [R(y) -
    R(y')]\right)^2$, averaged over the pairs of completions of a prompt, with $\pi_t$ the policy that sampled and
    $R = r - \beta\,\mathrm{KL}$ of whole sequences (k1). Fitted to the end, an iteration gives
    $\pi_{t+1} \propto \pi_t e^{\eta R}$, whose fixed point is $\pi_{ref}e^{r/\beta}/Z$. The paper has pairs; more
    samples are compared all with all. It is a loss of whole sequences, so there is neither surrogate nor reduction to
    choose.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        eta: Step size of an iteration, above 0, in nats per unit of reward; the authors' default is 1. Larger moves the
            policy further per iteration and needs more steps to be fitted.
        num_samples: Completions per prompt, 2 or more; the paper's are 2.
        num_epochs: Default 4, as in the authors' code: one step alone would be that of a policy gradient.
        **kwargs: As for `PolicyModule`, but for surrogate, reduction and importance_correction.
    """

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        eta: float = 1.0,
        num_samples: int = 2,
        num_epochs: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone,
            reward,
            num_samples=num_samples,
            num_epochs=num_epochs,
            surrogate=None,
            reduction=SequenceSum(),
            importance_correction=None,
            **kwargs,
        )
        self.eta = eta
        self.check("eta", lambda number: number > 0, "above 0")
        self.check(
            "num_samples",
            lambda number: number >= 2,
            "at least 2: rewards are compared within a prompt",
        )

    def estimate(self, rollout: Rollout) -> Rollout:
        """Returns of whole sequences; there are no advantages."""
        assert rollout.rewards is not None
        returns = masked_sum(rollout.rewards, rollout.response_mask, dim=-1)
        return replace(rollout, returns=place_at_end(returns, rollout.response_mask))

    def loss(self, minibatch: Rollout) -> LossOutput:
        """The squared error of each sequence against the others of its prompt, at its last token."""
        out = self.policy_forward(minibatch)
        assert out.logprobs is not None and minibatch.returns is not None
        loss = relative_reward_loss(
            out.logprobs,
            minibatch.old_logprobs,
            minibatch.returns,
            out.mask,
            minibatch.num_samples,
            self.eta,
        )
        ratio = token_ratio(out.logprobs, minibatch.old_logprobs, out.mask)
        metrics = drift_metrics(ratio, out.logprobs, minibatch.old_logprobs, out.mask)
        return LossOutput(place_at_end(loss, out.mask), metrics | {"loss/policy_avg": loss})
