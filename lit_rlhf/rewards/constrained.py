"""A reward under a constraint on a cost, by a multiplier that training moves."""

import math

import torch
from torch import Tensor

from lit_rlhf.distributed import weighted_mean
from lit_rlhf.options import check_option
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rewards.combine import score_members
from lit_rlhf.types import Completions, Scores


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
        most, allowed = (
            max_multiplier,
            "0 (a fixed multiplier) or more: below, it would favour cost",
        )
        check_option(1 <= most < math.inf, self, "max_multiplier", most, "1 or more, and finite")
        within = 1 / most <= multiplier <= most
        between = f"from 1/max_multiplier to max_multiplier={most}"
        check_option(within, self, "multiplier", multiplier, between)
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
