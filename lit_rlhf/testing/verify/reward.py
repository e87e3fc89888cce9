"""Reward losses in the tabular world, through `RewardModelModule`: scores of completions, known up to a constant."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from lit_rlhf import objectives as o
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import RewardModelModule, RLHFModule
from lit_rlhf.testing import populations as data
from lit_rlhf.testing import targets
from lit_rlhf.testing.tabular import TabularWorld, bandit, tree, use_double_heads
from lit_rlhf.testing.verify.runner import Case, Training

_MARGIN = 0.6


@dataclass(frozen=True)
class RewardCase(Case):
    """A reward loss, all the data there could be, and the scores it must end in.

    Attributes:
        make_loss: A fresh loss.
        population: Its data, weighted by probability.
        centered: Scores are known up to a constant.
    """

    method: str
    target: str
    world: TabularWorld
    make_loss: Callable[[], o.RewardLoss]
    population: data.Population
    optimum: Tensor
    centered: bool = True
    training: Training = "minimize"

    def module(self) -> RewardModelModule:
        """A module whose scores are all 0."""
        module = RewardModelModule(ModelSpec(config={}), self.make_loss())
        module.backbone = self.world.backbone()
        module.configure_roles()
        use_double_heads(module.backbone)
        module.backbone.model.requires_grad_(False)
        return module.train()

    def expected_loss(self, module: RLHFModule) -> Tensor:
        """The loss of all data in one batch."""
        module = cast("RewardModelModule", module)
        scores = module(self.population).scores
        loss = module.loss(scores.view(len(self.population["weight"]), -1), self.population).loss
        weight: Tensor = self.population["weight"]
        return (loss * weight).sum()

    def write(self, module: RLHFModule, values: Tensor) -> None:
        """Make (Y,) the scores: the head's weight at the state that a completion ends in."""
        with torch.no_grad():
            self.table(module)[self.world.final_states] = values

    def read(self, module: RLHFModule) -> Tensor:
        """The scores, (Y,)."""
        return self.table(module).detach()[self.world.final_states]

    def table(self, module: RLHFModule) -> nn.Parameter:
        """The head's weight."""
        weight = module.backbone.heads["reward"].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def distance(self, reached: Tensor) -> float:
        """Largest difference of the scores, centered where they are known up to a constant."""
        error = reached - self.optimum
        return float((error - error.mean() * self.centered).abs().max())


def reward_cases() -> list[RewardCase]:
    """Pairs and lists of Bradley-Terry and Plackett-Luce raters, ratings, and binary outcomes."""
    world, flat = tree(), bandit()
    r, pairs = world.rewards, data.rated_pairs(world)
    chained = data.rated_pairs(flat, edges=data.chain(flat))
    p = torch.stack([data.preference_probabilities(flat)[i, j] for i, j in data.chain(flat)])
    ranked = data.rankings(flat, 3)
    margins = {**chained, "margin": torch.full((len(chained["weight"]),), _MARGIN)}
    strong = {**pairs, "margin": torch.full((len(pairs["weight"]),), 2.0)}
    smoothed = partial(o.BradleyTerry, label_smoothing=0.1)
    labels = data.binary_labels(world, r.sigmoid())
    return [
        RewardCase("BradleyTerry", "r + c", world, o.BradleyTerry, pairs, r),
        RewardCase("BradleyTerry (soft labels)", "r + c", world, o.BradleyTerry, data.soft_pairs(world), r),
        RewardCase(
            "BradleyTerry (constant margin)",
            "SimPO's margins",
            flat,
            o.BradleyTerry,
            margins,
            _chained(targets.target_margin(p, _MARGIN)),
        ),
        RewardCase(
            "BradleyTerry (label smoothing)",
            "logit((1-e)p + e(1-p))",
            flat,
            smoothed,
            chained,
            _chained(targets.smoothed_margin(p, 0.1)),
        ),
        RewardCase("ScaledBradleyTerry", "r + c", world, o.ScaledBradleyTerry, strong, r),
        RewardCase("AllPairs", "r + c", flat, o.AllPairs, ranked, flat.rewards),
        RewardCase("PlackettLuce", "r + c", flat, o.PlackettLuce, ranked, flat.rewards),
        RewardCase("Regression", "E[score]", world, o.Regression, data.scalar_scores(world), r, centered=False),
        RewardCase("Outcome", "logit p", world, o.Outcome, labels, r, centered=False),
    ]


def _chained(margins: Tensor) -> Tensor:
    return torch.cat([margins.new_zeros(1), -margins.cumsum(0)])
