"""Policy gradients with the policy's own greedy completion as baseline."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from lit_rlhf.functional.advantages import discounted_returns, greedy_baseline
from lit_rlhf.functional.rewards import missing_eos_penalty
from lit_rlhf.models import ModelSpec, evaluating
from lit_rlhf.modules.collect import score_completions
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.objectives import Reinforce, SequenceSum
from lit_rlhf.options import check_option
from lit_rlhf.rewards import Reward
from lit_rlhf.types import (
    EstimatedRollout,
    EvaluatedRollout,
    PromptBatch,
    Sample,
    ScoredRollout,
    Scores,
)

GREEDY = "greedy"
"""The part of the scores that is a prompt's greedy score."""


class ReMaxPolicyModule(PolicyModule):
    r"""ReMax (arXiv:2310.10505): $A_t = \sum_{s\ge t}\gamma^{s-t}R_s - r(x, y_{greedy})$, one step per rollout.

    One further completion of each prompt is decoded greedily and scored; its score is what the policy can be expected
    to earn, and needs no critic. As in the authors' code the baseline is the score alone, with the missing-EOS penalty
    and without its KL: any number that the sampled actions have no part in leaves the gradient as it is. The rewards to
    go hold the KL, per token. A `NormalizedReward` scales greedy scores too, without counting them.

    Logs `rewards/greedy/mean`. The surrogate is `Reinforce()` by default; a clipped one allows several steps per
    rollout. The reduction is `SequenceSum()`; means over each sequence's tokens are biased with this baseline.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        gamma: Discount per token in [0, 1]; below 1 changes the objective (the authors' scripts have 0.99).
        **kwargs: As for `PolicyModule`.
    """

    default_parts: ClassVar[Mapping[str, Callable[[], Any]]] = {
        **PolicyModule.default_parts,
        "surrogate": Reinforce,
        "reduction": SequenceSum,
    }

    def __init__(
        self, backbone: ModelSpec, reward: Reward, *, gamma: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(backbone, reward, **kwargs)
        self.gamma = gamma
        check_option(0 <= gamma <= 1, self, "gamma", gamma, "in [0, 1]")

    def draw(self, batch: PromptBatch) -> tuple[ScoredRollout, list[Sample]]:
        """Sampled completions, and the score of each prompt's greedy one as their baseline."""
        rollout, samples = super().draw(batch)
        greedy = self._greedy_scores(batch)
        baseline = greedy.total.repeat_interleave(self.num_samples)
        scores = replace(rollout.scores, parts={**rollout.scores.parts, GREEDY: baseline})
        failed = greedy.left_out.repeat_interleave(self.num_samples)
        rollout = replace(rollout, scores=scores)
        return rollout.leave_out(scores.left_out | failed), samples

    def estimate(self, rollout: EvaluatedRollout) -> EstimatedRollout:
        """Rewards to go minus the greedy score."""
        mask = rollout.response_mask
        returns = discounted_returns(self.shape_rewards(rollout), mask, self.gamma)  # (N, T)
        baselines = rollout.scores.parts[GREEDY]  # (N,)
        return rollout.with_advantages(greedy_baseline(returns, baselines, mask))

    def _greedy_scores(self, batch: PromptBatch) -> Scores:
        sampling = replace(self.sampling, temperature=0.0)
        rollout, completions = self.generate(batch, sampling, "greedy", 1)
        with self.phases("reward"), evaluating(self.reward), evaluating(self.backbone):
            scores = score_completions(self.reward, completions, self.iteration)
        self.count_generated(rollout.response_mask)
        finished = rollout.completions.finished
        penalized = missing_eos_penalty(scores.total, finished, self.missing_eos_penalty)
        return replace(scores, total=penalized)
