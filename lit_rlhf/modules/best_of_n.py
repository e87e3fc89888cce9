"""Best-of-n without its n samples: a policy whose distribution is that of the best of n."""

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_rlhf.models import ModelSpec, evaluating
from lit_rlhf.modules.group import GroupPolicyModule, Parts, RLOOPolicyModule
from lit_rlhf.modules.opponents import ReferenceOpponent
from lit_rlhf.objectives import BestOfN, FixedKL, places_among
from lit_rlhf.options import check_option
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import Generation, PromptBatch, Sample, ScoredRollout

BELOW, AT_MOST = "reference_below", "reference_at_most"
"""Parts of the scores: which share of the reference scores lower than a sample, and at most as high."""
_ANCHORS = "anchors"


class BestOfNPolicyModule(GroupPolicyModule):
    r"""Best-of-n into weights (vBoN, arXiv:2407.06057): the reward is $\log\pi_{bon}(y)/\pi_{ref}(y)$, the KL counts 1.

    The optimum is $\pi_{bon}$, the distribution of the best of n samples of the initial policy, at the cost of one:
    no policy has more of the reward's order at its KL, and nothing is gained by the size of a score. $\pi_{bon}$ is
    known by how many samples of the reference score lower (see `BestOfN`): of each prompt `num_anchors` are drawn and
    scored beside the policy's, and the sample itself counts as one more, so that shares are never 0. The fewer they
    are, the flatter the optimum: they tell quantiles no finer than $1/(m+1)$.

    With `MovingReference(1.0)` each renewal starts again from the best of n of the one before, so that k of them end at
    the best of $n^k$, with a small n (as J-BOND does by a moving average).

    Logs `rewards/reference_below/mean` and `rewards/reference_at_most/mean`, which go from 1/2 to n/(n+1);
    `objective/scores` are the reward's own.

    Args:
        backbone: The initial policy.
        reward: Scores completions.
        n: 2 or more. The KL at the optimum is at most $\log n - (n-1)/n$; large n make the worst samples count much.
        num_anchors: m, 1 or more: samples of the reference per prompt and iteration; about n or more.
        **kwargs: As for `GroupPolicyModule`; advantage, reduction and samples are by default those of RLOO. kl is
            `FixedKL(1)`, and another coefficient leads to $\pi_{ref}(\pi_{bon}/\pi_{ref})^{1/\beta}/Z$.

    Raises:
        ConfigurationError: n or num_anchors is too low.
    """

    default_parts: ClassVar[Parts] = {
        **RLOOPolicyModule.default_parts,
        "kl": partial(FixedKL, 1.0),
    }
    default_samples: ClassVar[int] = RLOOPolicyModule.default_samples

    def __init__(
        self,
        backbone: ModelSpec,
        reward: Reward,
        *,
        n: int = 8,
        num_anchors: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, reward, **kwargs)
        check_option(n >= 2, self, "n", n, "2 or more: 1 is the initial policy")
        check_option(num_anchors >= 1, self, "num_anchors", num_anchors, "at least 1")
        self.best_of = BestOfN(n)
        self.num_anchors = num_anchors
        self.reference.require_model(self)

    def sample_tokens(
        self, batch: PromptBatch, sampling: Sampling, purpose: str, num_samples: int
    ) -> Generation:
        """Completions by the policy, and anchors by the reference."""
        if purpose == _ANCHORS:
            request = self.rollout_request(batch, sampling, "opponent", num_samples)
            return ReferenceOpponent().generate(self, request)
        return super().sample_tokens(batch, sampling, purpose, num_samples)

    def draw(self, batch: PromptBatch) -> tuple[ScoredRollout, list[Sample]]:
        """Sampled completions, and where they stand among those of the reference."""
        rollout, samples = super().draw(batch)
        with evaluating(self.reward):  # anchors don't count in running statistics
            anchors, _ = self.sample(batch, self.sampling, _ANCHORS, self.num_anchors)
        self.count_generated(anchors.response_mask)
        known = super().penalized_scores(anchors).masked_fill(anchors.scores.left_out, torch.nan)
        places = places_among(
            super().penalized_scores(rollout).view(rollout.num_prompts, -1),
            known.view(rollout.num_prompts, -1),
        )
        parts = dict(zip((BELOW, AT_MOST), (each.flatten() for each in places), strict=True))
        scores = replace(rollout.scores, parts={**rollout.scores.parts, **parts})
        return replace(rollout, scores=scores), samples

    def penalized_scores(self, rollout: ScoredRollout) -> Tensor:
        """(N,): the log-ratio of the best of n to the reference; penalties have counted in the comparison."""
        return self.best_of(rollout.scores.parts[BELOW], rollout.scores.parts[AT_MOST])
