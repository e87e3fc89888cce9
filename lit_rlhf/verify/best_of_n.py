"""Best-of-n into weights: the policy must become the distribution of the best of n samples, ties and all."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lit_rlhf.modules import BestOfNPolicyModule, PolicyModule
from lit_rlhf.modules.best_of_n import AT_MOST, BELOW
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import EvaluatedRollout, Scores
from lit_rlhf.verify.policy import PolicyCase
from lit_rlhf.verify.runner import Training
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree


@dataclass(frozen=True)
class BestOfNCase(PolicyCase):
    """Each completion's place among those of the reference is the exact one: that of anchors without number."""

    def collect(self, module: PolicyModule, groups: list[tuple[int, ...]]) -> EvaluatedRollout:
        """The groups as a rollout with places."""
        rollout = super().collect(module, groups)
        picked, rewards = [y for group in groups for y in group], self.world.rewards
        lower, equal = rewards[None] < rewards[:, None], rewards[None] == rewards[:, None]
        below, at_most = (
            torch.where(kept, self.world.reference, 0.0).sum(-1)[picked]
            for kept in (lower, lower | equal)
        )
        scores = Scores(rollout.scores.total, {BELOW: below, AT_MOST: at_most})
        return replace(rollout, scores=scores)


def best_of_n(world: TabularWorld, n: int) -> Tensor:
    """(Y,): of the best of n samples of the reference, drawn one after the other; equals don't replace."""
    ref, lower = world.reference, (world.rewards[None] < world.rewards[:, None]).double()
    best = ref
    for _ in range(n - 1):
        best = best * (1 - lower.T @ ref) + ref * (lower @ best)
    return best


def best_of_n_cases() -> list[PolicyCase]:
    """Without ties, and with rewards of which several are equal."""
    deep, few = tree(), bandit(3)
    worlds: list[tuple[str, TabularWorld, Training]] = [
        ("tree", deep, "follow"),
        ("ties", replace(deep, rewards=deep.rewards.round()), "follow"),
        ("bandit", few, "descend"),
    ]
    make = partial(BestOfNPolicyModule, num_samples=2, sampling=Sampling(max_new_tokens=2))
    text = "the best of n of the reference"
    return [
        BestOfNCase(
            f"BestOfN ({name}, n={n})",
            text,
            world,
            partial(make, n=n),
            best_of_n(world, n),
            training=training,
        )
        for name, world, training in worlds
        for n in (2, 3)
    ]
