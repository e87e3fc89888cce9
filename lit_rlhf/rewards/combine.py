"""Rewards made of rewards."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.options import check_option
from lit_rlhf.rewards.base import Reward, failed_of, scores_of
from lit_rlhf.types import Completions, Scores


class WeightedSum(Reward):
    r"""$\sum_i w_i r_i$ of named rewards.

    `parts` holds each reward before weighting under its name, and the parts of a reward that has any as "name/part".

    Args:
        rewards: Rewards by name.
        weights: Weight of each, by the same names; 1 for those left out.

    Raises:
        ConfigurationError: No rewards, or a weight for a name that isn't there.
    """

    def __init__(self, rewards: dict[str, Reward], weights: dict[str, float] | None = None) -> None:
        super().__init__()
        if not rewards:
            raise ConfigurationError("WeightedSum.rewards is empty: name at least one reward.")
        unknown = sorted(set(weights or {}) - set(rewards))
        if unknown:
            raise ConfigurationError(
                f"WeightedSum.weights names {unknown}; the rewards are {sorted(rewards)}."
            )
        self.names = list(rewards)
        self.weights = [float((weights or {}).get(name, 1.0)) for name in self.names]
        self.rewards = nn.ModuleList(rewards.values())

    def score(self, completions: Completions) -> Scores:
        """(N,) float32."""
        scores, parts, failed = score_members(self, self.names, completions)
        weighted = [weight * part for weight, part in zip(self.weights, scores, strict=True)]
        return Scores(torch.stack(weighted).sum(0), parts, failed)


class Ensemble(Reward):
    """Several rewards of the same thing, such as reward models from different seeds, as one (arXiv:2310.02743).

    Over-optimization finds what one model overrates by mistake; members that disagree show where that is. Different
    pretrained bases help most (arXiv:2312.09244). Members must be on one scale: normalise each if they aren't. `parts`
    holds each member under its number, and their standard deviation as "std". A subclass says in `combine` what becomes
    of them.

    Args:
        rewards: The members.

    Raises:
        ConfigurationError: Fewer than two members.
    """

    def __init__(self, rewards: list[Reward]) -> None:
        super().__init__()
        if len(rewards) < 2:
            raise ConfigurationError(
                f"{type(self).__name__}.rewards has {len(rewards)} members; an ensemble needs at least 2."
            )
        self.rewards = nn.ModuleList(rewards)

    def score(self, completions: Completions) -> Scores:
        """(N,) float32."""
        names = [str(i) for i in range(len(self.rewards))]
        members, parts, failed = score_members(self, names, completions)
        scores = torch.stack(members)  # (members, N)
        return Scores(self.combine(scores), {**parts, "std": scores.std(0, correction=0)}, failed)

    @abstractmethod
    def combine(self, scores: Tensor) -> Tensor:
        """(N,) from the members' scores (members, N)."""


class EnsembleMean(Ensemble):
    r"""$\frac{1}{M} \sum_m r_m$ of the members; see `Ensemble`."""

    def combine(self, scores: Tensor) -> Tensor:
        """The mean."""
        return scores.mean(0)


class EnsembleWorst(Ensemble):
    r"""$\min_m r_m$: what the most critical member says, for each completion; see `Ensemble`."""

    def combine(self, scores: Tensor) -> Tensor:
        """The least."""
        return scores.amin(0)


class EnsembleUncertainty(Ensemble):
    r"""$\frac{1}{M} \sum_m r_m - \lambda \,\mathrm{Var}_m\, r_m$: where members disagree, less (arXiv:2310.02743).

    Args:
        rewards: The members.
        coefficient: $\lambda \ge 0$, in units of 1 over the reward; 0 is the mean. The variance is that of the members
            themselves (over M, not M - 1).

    Raises:
        ConfigurationError: The coefficient is negative, which would seek disagreement.
    """

    def __init__(self, rewards: list[Reward], coefficient: float = 1.0) -> None:
        super().__init__(rewards)
        allowed = "0 or more: below, it would reward disagreement"
        check_option(coefficient >= 0, self, "coefficient", coefficient, allowed)
        self.coefficient = coefficient

    def combine(self, scores: Tensor) -> Tensor:
        """Mean less a multiple of the variance."""
        return scores.mean(0) - self.coefficient * scores.var(0, correction=0)


class MonitoredReward(Reward):
    r"""A reward that is optimized, and others that only watch: gold against proxy (arXiv:2210.10760).

    The score is that of `reward`; the others score the same completions for the logs alone. So a better judge, too dear
    or too precious to be optimized, shows where the policy goes on to please its reward and no longer anyone else.
    `parts` holds the reward as "proxy" and each monitor under its name, which policy modules log as
    `rewards/<name>/mean`, in training and validation; `CollapseGuard(max_gold_drop=...)` acts on the one called "gold".

    Args:
        reward: What is optimized.
        monitors: What watches, by name; they cost their scoring in every iteration.

    Raises:
        ConfigurationError: There are no monitors, or one is called "proxy".
    """

    def __init__(self, reward: Reward, monitors: dict[str, Reward]) -> None:
        super().__init__()
        if not monitors or "proxy" in monitors:
            raise ConfigurationError(
                f"MonitoredReward.monitors={sorted(monitors)}: name at least one reward, and none of them 'proxy', "
                "which is the name of the reward that is optimized."
            )
        self.names = ["proxy", *monitors]
        self.rewards = nn.ModuleList([reward, *monitors.values()])

    def score(self, completions: Completions) -> Scores:
        """(N,) float32: the reward's alone, and so is what it couldn't score."""
        found = [scores_of(member, completions) for member in self.members()]
        return Scores(found[0].total, parts_of(self.names, found), found[0].failed)


def score_members(
    reward: Reward, names: list[str], completions: Completions
) -> tuple[list[Tensor], dict[str, Tensor], Tensor | None]:
    """The score (N,) of every member, all of them with their parts by name, and what any of them couldn't score."""
    found = [scores_of(member, completions) for member in reward.members()]
    return [scores.total for scores in found], parts_of(names, found), failed_of(found)


def parts_of(names: list[str], found: list[Scores]) -> dict[str, Tensor]:
    """Scores by name, each with its parts."""
    parts: dict[str, Tensor] = {}
    for name, scores in zip(names, found, strict=True):
        own = {f"{name}/{part}": value for part, value in scores.parts.items()}
        parts |= {name: scores.total} | own
    return parts
