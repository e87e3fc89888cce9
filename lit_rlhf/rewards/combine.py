"""Rewards made of rewards."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from lit_rlhf.distributed import sum_over_ranks, weighted_mean
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.masking import Moments, merge_moments
from lit_rlhf.functional.rewards import no_moments
from lit_rlhf.options import check_option
from lit_rlhf.rewards.base import Reward, scores_of
from lit_rlhf.types import Completions, Scores

_LEAST_STD = 1e-8


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


class ConstrainedReward(Reward):
    r"""$(r - \lambda c)/(1 + \lambda)$, with $\lambda$ such that the mean cost comes down to a limit.

    With it a policy module maximises $E[r] - \beta KL$ subject to $E[c] \le$ limit; in `PPOPolicyModule` it is
    PPO-Lagrangian (Safe RLHF, arXiv:2310.12773). At a fixed multiplier the optimum is
    $\pi_{ref}\exp\frac{r - \lambda c}{(1 + \lambda)\beta}/Z$.

    Dual ascent, as in the paper: after each training batch that is scored, by its mean cost over all processes,
    $\log\lambda \leftarrow \log\lambda + \text{rate}\cdot\lambda\,(\bar c - \text{limit})$. Scores seen in eval mode,
    as in validation, move nothing. The multiplier is a buffer, so a resumed run goes on with it. `parts`
    holds reward and cost, each with its parts, and the "multiplier" that was used.

    The paper has a critic each for reward and cost; here one learns the value of the combination, which moves with the
    multiplier, so a high rate outruns it.

    Args:
        reward: What is maximised.
        cost: What is held down; higher is worse. Any reward, such as a `ModelReward` trained to score harm.
        limit: Mean cost that is allowed, in units of cost; the paper's models have 0 between safe and unsafe.
        multiplier: $\lambda$ to begin with, above 0. Large values begin with the cost, small ones with the reward.
        rate: Step size of the ascent, 0 or more, in 1/cost; 0 keeps the multiplier.
        max_multiplier: The multiplier is held to this and its inverse, so that it neither runs away nor sticks at 0; no
            less than `multiplier`.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(
        self,
        reward: Reward,
        cost: Reward,
        limit: float = 0.0,
        multiplier: float = 1.0,
        rate: float = 0.1,
        max_multiplier: float = 20.0,
    ) -> None:
        super().__init__()
        most = max_multiplier
        check_option(1 <= most < math.inf, self, "max_multiplier", most, "1 or more, and finite")
        within = 1 / most <= multiplier <= most
        between = f"from 1/max_multiplier to max_multiplier={most}"
        check_option(within, self, "multiplier", multiplier, between)
        allowed = "0 (a fixed multiplier) or more: below, it would favour cost"
        check_option(rate >= 0, self, "rate", rate, allowed)
        self.reward = reward
        self.cost = cost
        self.limit = limit
        self.multiplier: Tensor
        self.register_buffer("multiplier", torch.tensor(multiplier, dtype=torch.float64))
        self.rate = rate
        self.max_multiplier = max_multiplier

    def score(self, completions: Completions) -> Scores:
        """(N,) float32."""
        (reward, cost), parts, failed = score_members(self, ["reward", "cost"], completions)
        multiplier = float(self.multiplier)
        scores = (reward - multiplier * cost) / (1 + multiplier)
        parts["multiplier"] = cost.new_full(cost.shape, multiplier)
        known = cost if failed is None else cost[~failed]
        mean_cost = float(weighted_mean(known)) if self.training else math.nan
        if math.isfinite(mean_cost):  # else the module will name the completion
            bound = math.log(self.max_multiplier)
            moved = math.log(multiplier) + self.rate * multiplier * (mean_cost - self.limit)
            self.multiplier.fill_(math.exp(min(max(moved, -bound), bound)))
        return Scores(scores, parts, failed)


class NormalizedReward(Reward):
    r"""$\mathrm{clip}((r - \mu) / \sigma, -c, c)$ of another reward.

    It stands before the KL penalty: the policy module subtracts $\beta\,KL$ from what is returned here, so this
    rescales the reward alone, and $\beta$ is in units of the normalised reward. To divide by $\sigma$ is therefore the
    same as to multiply $\beta$ by it; a running $\sigma$ moves that trade-off during training, a fixed one doesn't. The
    penalty for a missing EOS comes after it too.

    Mean and deviation are fixed where they are given. Otherwise they are those of all scores seen so far, of all
    processes (Welford's sums in float64): a batch is counted first and then normalised. Scores seen in eval mode, as in
    validation, are normalised but not counted. They are a buffer, which checkpoints hold.

    Args:
        reward: The reward to normalise.
        mean: $\mu$, fixed; give it together with `std`.
        std: $\sigma > 0$, fixed.
        center: Subtract $\mu$. Off, only the scale changes, and a reward keeps its sign.
        clip: $c > 0$, in standard deviations; None clips nothing.

    Raises:
        ConfigurationError: Only one of mean and std, or a value out of its range.
    """

    def __init__(
        self,
        reward: Reward,
        mean: float | None = None,
        std: float | None = None,
        center: bool = True,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ConfigurationError(
                f"NormalizedReward has mean={mean} and std={std}: give both (fixed) or neither (running statistics)."
            )
        check_option(std is None or std > 0, self, "std", std, "above 0")
        allowed = "above 0, or null for no clipping"
        check_option(clip is None or clip > 0, self, "clip", clip, allowed)
        self.reward = reward
        self.fixed = (mean, std) if mean is not None and std is not None else None
        self.center = center
        self.clip = clip
        if self.fixed is None:
            self.counted: Tensor  # number, mean and sum of squared deviations of the scores seen
            moments = torch.stack(no_moments(torch.zeros((), dtype=torch.float64)))
            self.register_buffer("counted", moments)

    def score(self, completions: Completions) -> Scores:
        """(N,) float32; the parts hold the score before normalisation as "raw"."""
        found = scores_of(self.reward, completions)
        raw = found.total
        if self.fixed is None and self.training:
            self._count(raw[~found.left_out])
        mean, std = self.moments()
        scores = (raw - mean) / std if self.center else raw / std
        if self.clip is not None:
            scores = scores.clamp(-self.clip, self.clip)
        return Scores(scores, {"raw": raw, **found.parts}, found.failed)

    @property
    def seen(self) -> Moments:
        """Of the scores counted so far."""
        return Moments(*self.counted)

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation in use; 0 and 1 before anything was counted, and 1 while all are alike."""
        if self.fixed is not None:
            return self.fixed
        std = float((self.seen.m2 / self.seen.n.clamp_min(1)).sqrt())
        return float(self.seen.mean), std if std > _LEAST_STD else 1.0

    def _count(self, scores: Tensor) -> None:
        scores = scores.detach().double()
        sums = torch.stack([scores.new_tensor(float(len(scores))), scores.sum()])
        count, total = sum_over_ranks(sums).tolist()
        if count == 0:
            return
        mean = total / count
        squares = float(sum_over_ranks((scores - mean).square().sum()))
        new = self.counted.new_tensor([count, mean, squares])
        merged = merge_moments(Moments(*torch.stack([self.counted, new], -1)))
        self.counted.copy_(torch.stack(merged))


def score_members(
    reward: Reward, names: list[str], completions: Completions
) -> tuple[list[Tensor], dict[str, Tensor], Tensor | None]:
    """The score (N,) of every member, all of them with their parts by name, and what any of them couldn't score."""
    found = [scores_of(member, completions) for member in reward.members()]
    known = [scores.failed for scores in found if scores.failed is not None]
    failed = torch.stack(known).any(0) if known else None
    return [scores.total for scores in found], parts_of(names, found), failed


def parts_of(names: list[str], found: list[Scores]) -> dict[str, Tensor]:
    """Scores by name, each with its parts."""
    parts: dict[str, Tensor] = {}
    for name, scores in zip(names, found, strict=True):
        own = {f"{name}/{part}": value for part, value in scores.parts.items()}
        parts |= {name: scores.total} | own
    return parts
