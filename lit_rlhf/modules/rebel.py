"""Regression to relative rewards instead of a policy gradient."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lit_rlhf.functional.masking import masked_sum
from lit_rlhf.functional.policy_losses import relative_reward_loss, token_ratio
from lit_rlhf.functional.rewards import place_at_end
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.objectives import SequenceSum
from lit_rlhf.objectives.surrogates import drift_metrics
from lit_rlhf.options import check_option
from lit_rlhf.rewards import Reward
from lit_rlhf.types import EvaluatedRollout, LossOutput, asked


@dataclass(frozen=True)
class ReturnsRollout(EvaluatedRollout):
    """With the returns of whole sequences."""

    returns: Tensor  # (N, T), at the last token


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
        **kwargs: As for `PolicyModule`, but for surrogate, reduction and importance_correction. `num_samples` is 2 or
            more; the paper's are 2. There are 4 epochs by default, as in the authors' code: one step alone would be
            that of a policy gradient.
    """

    default_parts: ClassVar[Mapping[str, Callable[[], Any]]] = {
        **PolicyModule.default_parts,
        "reduction": SequenceSum,
    }
    default_epochs: ClassVar[int] = 4
    default_samples: ClassVar[int] = 2

    def __init__(
        self, backbone: ModelSpec, reward: Reward, *, eta: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(
            backbone,
            reward,
            surrogate=None,
            reduction=None,
            importance_correction=None,
            **kwargs,
        )
        self.eta = eta
        check_option(eta > 0, self, "eta", eta, "above 0")
        samples = self.num_samples
        what = "at least 2: rewards are compared within a prompt"
        check_option(samples >= 2, self, "num_samples", samples, what)

    def estimate(self, rollout: EvaluatedRollout) -> ReturnsRollout:
        """Returns of whole sequences; there are no advantages."""
        mask = rollout.response_mask
        returns = masked_sum(self.shape_rewards(rollout), mask, dim=-1)
        return rollout.to_stage(ReturnsRollout, returns=place_at_end(returns, mask))

    def loss(self, minibatch: EvaluatedRollout) -> LossOutput:
        """The squared error of each sequence against the others of its prompt, at its last token."""
        minibatch = ReturnsRollout.of(minibatch)
        logprobs, mask = asked(self.policy_forward(minibatch).logprobs), minibatch.response_mask
        old = minibatch.old_logprobs
        loss = relative_reward_loss(
            logprobs, old, minibatch.returns, mask, minibatch.num_samples, self.eta
        )
        metrics = drift_metrics(token_ratio(logprobs, old, mask), logprobs, old, mask)
        metrics = metrics | {"loss/policy_avg": loss}
        return LossOutput(place_at_end(loss, mask), metrics, logprobs.detach())
