"""Policy gradients with the policy's own greedy completion as baseline."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from lit_rlhf.functional.advantages import discounted_returns, greedy_baseline
from lit_rlhf.functional.rewards import missing_eos_penalty
from lit_rlhf.models import ModelSpec, evaluating
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.objectives import Reduction, Reinforce, SequenceSum, Surrogate
from lit_rlhf.rewards import Reward
from lit_rlhf.types import PromptBatch, Rollout


class ReMaxPolicyModule(PolicyModule):
    r"""ReMax (arXiv:2310.10505): $A_t = \sum_{s\ge t}\gamma^{s-t}R_s - r(x, y_{greedy})$, one step per rollout.

    One further completion of each prompt is decoded greedily and scored; its score is what the policy can be expected
    to earn, and needs no critic. As in the authors' code the baseline is the score alone, with the missing-EOS penalty
    and
    without its KL: any number that the sampled actions have no part in leaves the gradient as it is. The rewards to go
    hold the KL, per token. A `NormalizedReward` scales greedy scores too, without counting them.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        gamma: Discount per token in [0, 1]; below 1 changes the objective (the authors' scripts have 0.99).
        surrogate: Default `Reinforce()`; a clipped one allows several steps per rollout.
        reduction: Default `SequenceSum()`. Means over each sequence's tokens are biased with this baseline.
        **kwargs: As for `PolicyModule`.
    """

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        gamma: float = 1.0,
        surrogate: Surrogate | None = None,
        reduction: Reduction | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone,
            reward,
            surrogate=surrogate or Reinforce(),
            reduction=reduction or SequenceSum(),
            **kwargs,
        )
        self.gamma = gamma
        self.check("gamma", lambda number: 0 <= number <= 1, "in [0, 1]")

    def draw(self, batch: PromptBatch) -> Rollout:
        """Sampled completions, and the score of each prompt's greedy one as their baseline."""
        rollout = super().draw(batch)
        return replace(
            rollout, baselines=self._greedy_scores(batch).repeat_interleave(self.num_samples)
        )

    def estimate(self, rollout: Rollout) -> Rollout:
        """Rewards to go minus the greedy score."""
        assert rollout.rewards is not None and rollout.baselines is not None
        mask = rollout.response_mask
        returns = discounted_returns(rollout.rewards, mask, self.gamma)
        return replace(rollout, advantages=greedy_baseline(returns, rollout.baselines, mask))

    def _greedy_scores(self, batch: PromptBatch) -> Tensor:
        generation, completions = self.generate(
            batch, replace(self.sampling, temperature=0.0), "greedy", 1
        )
        with self.phases("reward"), evaluating(self.reward):
            scores = self.score(completions)
        self.count_generated(generation.mask)
        return missing_eos_penalty(scores, generation.finished, self.missing_eos_penalty)
