"""Preferences against an opponent: XPO and Nash-MD. Each of the policy's samples meets a completion of another policy."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.functional.masking import masked_sum
from lit_rlhf.functional.rewards import kl_shaped_rewards
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules.group import REINFORCEPolicyModule
from lit_rlhf.modules.means import Means
from lit_rlhf.modules.online import ComparingModule, OnlineDPOPolicyModule
from lit_rlhf.objectives import Advantage, FixedKL, KLController, Surrogate
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import Sampling
from lit_rlhf.rollout.mixture import Component, sample_mixture
from lit_rlhf.types import Generation, LossOutput, PromptBatch, Rollout


class OpponentModule(ComparingModule):
    """Base of methods whose samples each meet a completion of an opponent, which stands behind it in the rollout."""

    def opponents(self, batch: PromptBatch, sampling: Sampling, num_samples: int) -> Generation:
        """A completion of the opponent for each sample."""
        raise NotImplementedError(f"{type(self).__name__} must override opponents().")

    def sample_tokens(
        self, batch: PromptBatch, sampling: Sampling, purpose: str, num_samples: int
    ) -> Generation:
        """In training the policy's samples and their opponents by turns; else the policy's alone."""
        own = super().sample_tokens(batch, sampling, purpose, num_samples)
        return (
            interleave(own, self.opponents(batch, sampling, num_samples))
            if purpose == "rollout"
            else own
        )


class XPOPolicyModule(OpponentModule, OnlineDPOPolicyModule):
    r"""Exploratory preference optimization: online DPO against the initial policy, with optimism (arXiv:2405.21046).

    Of $y \sim \pi$ and $y' \sim \pi_{ref}$ the loss is that of online DPO plus $\alpha\log\pi(y')$, which lowers what
    the initial policy already writes. The optimum is $\pi^*$ as alpha goes to 0 only: the bonus biases it.

    Logs `loss/optimism_avg` too.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        alpha: Weight of the optimism, 0 or more, of log-probs summed over the completion; 1e-5 in the paper and TRL.
        num_samples: Samples of each prompt, each with one of the initial policy; 1.
        **kwargs: As for `OnlineDPOPolicyModule`.

    Raises:
        ConfigurationError: alpha is negative.
    """

    own_of_pair = 1

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        alpha: float = 1e-5,
        num_samples: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, reward, num_samples=num_samples, **kwargs)
        self.alpha = alpha
        self.check("alpha", lambda number: number >= 0, "0 or more")

    def opponents(self, batch: PromptBatch, sampling: Sampling, num_samples: int) -> Generation:
        """Completions of the reference."""
        model, role = self.reference_model()
        return self.engine.generate(
            model,
            batch["input_ids"],
            batch["branch_ids"] == 0,
            sampling=sampling,
            seeds=self.sample_seeds(batch["index"], "opponent", num_samples),
            num_samples=num_samples,
            role=role or "reference",
        )

    def loss_of_pairs(self, logprobs: Tensor, minibatch: Rollout) -> LossOutput:
        """The pairs' loss and the optimism."""
        output = super().loss_of_pairs(logprobs, minibatch)
        optimism = masked_sum(logprobs, minibatch.response_mask, dim=-1)[1::2]
        metrics = dict(output.metrics) | {"loss/optimism_avg": optimism}
        return LossOutput(output.loss + self.alpha * optimism, metrics)

    def own_tokens(self, mask: Tensor) -> Tensor:
        """Of every second row, from the first."""
        own = torch.arange(len(mask), device=mask.device) % 2 == 0
        return mask & own[:, None]

    def finish_iteration(self, rollout: Rollout) -> None:
        """Log what the policy itself has sampled."""
        super().finish_iteration(own_samples(rollout))


class NashMDPolicyModule(OpponentModule, REINFORCEPolicyModule):
    r"""Nash-MD in its policy-gradient form (arXiv:2312.00886): win against a mixture of oneself and the initial policy.

    The opponent is $\pi'(y_t|s_t) \propto \pi^{1-a}\pi_{ref}^a$ by token, a = `mixture`. The return is
    $P(y \succ y') - \frac12 - \beta\sum_t k_1$, and each token is credited with what follows it (rewards to go: the
    gradient is then that of the whole sequence's KL; TRL's leaves the later tokens out). The fixed point is
    $\pi_{ref}e^{P(y \succ \pi')/\beta}/Z$, a regularized Nash equilibrium; what counts is the chance to win, not the
    reward, so it isn't the optimum of RLHF even where preferences come from a reward.

    Logs `preference/win_rate`, of the policy against the mixture.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        oracle: Default `SoftLabels()`.
        mixture: a in [0, 1]: 0 is self-play, 1 plays against the initial policy; 0.5 in TRL.
        kl: Default `FixedKL(0.1)`, TRL's.
        advantage: As in `REINFORCEPolicyModule`, of the policy's own samples.
        surrogate: As in `REINFORCEPolicyModule`.
        **kwargs: As for `REINFORCEPolicyModule`; the opponent is always sampled by `NativeEngine`'s decode.

    Raises:
        ConfigurationError: The mixture is out of range.
    """

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        mixture: float = 0.5,
        kl: KLController | None = None,
        advantage: Advantage | None = None,
        surrogate: Surrogate | None = None,
        **kwargs: Any,
    ) -> None:
        # Named, for jsonargparse doesn't find them behind two bases.
        parts: dict[str, Any] = {"advantage": advantage, "surrogate": surrogate}
        super().__init__(backbone, reward, kl=kl or FixedKL(0.1), kl_loss=None, **parts, **kwargs)
        self.mixture = mixture
        self.check("mixture", lambda number: 0 <= number <= 1, "in [0, 1]")

    def opponents(self, batch: PromptBatch, sampling: Sampling, num_samples: int) -> Generation:
        """Completions of the mixture."""
        model, role = self.reference_model()
        parts = [
            Component(self.backbone, "policy", 1 - self.mixture),
            Component(model, role, self.mixture),
        ]
        return sample_mixture(
            [part for part in parts if part.weight > 0],
            batch["input_ids"],
            batch["branch_ids"] == 0,
            sampling=sampling,
            seeds=self.sample_seeds(batch["index"], "opponent", num_samples),
            num_samples=num_samples,
        )

    def shape_rewards(self, rollout: Rollout) -> Rollout:
        """The policy's own samples: whether they win, less one half, at the end; the KL per token."""
        own = own_samples(self.compare(rollout))
        assert own.wins is not None and own.ref_logprobs is not None
        counts = Means()
        counts.add("preference/win_rate", own.wins)
        self._count_means(counts)
        rewards = kl_shaped_rewards(
            own.wins - 0.5, own.old_logprobs, own.ref_logprobs, own.response_mask, self.kl.value
        )
        return replace(own, rewards=rewards)


def interleave(own: Generation, others: Generation) -> Generation:
    """Completions of both by turns, (2N, T)."""
    width = max(own.tokens.shape[1], others.tokens.shape[1])
    known = own.logprobs is not None and others.logprobs is not None
    return Generation(
        tokens=_by_turns(own.tokens, others.tokens, width),
        mask=_by_turns(own.mask, others.mask, width),
        finished=torch.stack([own.finished, others.finished], dim=1).flatten(),
        logprobs=_by_turns(own.logprobs, others.logprobs, width) if known else None,  # type: ignore[arg-type]
    )


def own_samples(rollout: Rollout) -> Rollout:
    """A rollout without the opponents, which are every second completion."""
    chosen = {
        item.name: getattr(rollout, item.name)[::2]
        for item in fields(rollout)
        if not item.name.startswith("prompt") and getattr(rollout, item.name) is not None
    }
    return replace(rollout, **chosen)


def _by_turns(first: Tensor, second: Tensor, width: int) -> Tensor:
    padded = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in (first, second)]
    return torch.stack(padded, dim=1).flatten(0, 1)
