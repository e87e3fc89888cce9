"""Reward losses in the tabular world, through `RewardModelModule`: scores of completions, known up to a constant."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from lit_rlhf import objectives as o
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import RewardModelModule, RLHFModule
from lit_rlhf.types import BranchedBatch
from lit_rlhf.verify import populations as data, targets
from lit_rlhf.verify.runner import Case, Training
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree

_MARGIN = 0.6


@dataclass(frozen=True)
class RewardCase(Case):
    """A reward loss, all the data there could be, and the scores it must end in.

    Attributes:
        make_loss: A fresh loss.
        population: Its data, weighted by probability.
        centered: Scores are known up to a constant.
        head: Whose scores.
        states: Numbers of the states that these scores belong to; default: those in which completions end.
        others: Optimum of the other heads, where they are not fitted first.
    """

    method: str
    target: str
    world: TabularWorld
    make_loss: Callable[[], o.RewardLoss]
    population: data.Population
    optimum: Tensor
    centered: bool = True
    training: Training = "minimize"
    kink: bool = False
    settles: bool = True
    head: str = "reward"
    states: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)

    def module(self) -> RewardModelModule:
        """A module whose scores are all 0."""
        module = self.world.place(RewardModelModule(ModelSpec(config={}), self.make_loss()))
        module.backbone.model.requires_grad_(False)
        return module

    def expected_loss(self, module: RLHFModule) -> Tensor:
        """The loss of all data in one batch."""
        module = cast("RewardModelModule", module)
        batch = cast("BranchedBatch", self.population)
        scores, _ = module.scores(batch)
        loss = module.loss(scores, batch).loss
        weight: Tensor = self.population["weight"]
        return (loss * weight).sum()

    def write(self, module: RLHFModule, values: Tensor) -> None:
        """Make (Y,) the scores: the head's weight at the state that a completion ends in."""
        with torch.no_grad():
            for head, optimum in {**self.others, self.head: values}.items():
                module.backbone.heads[head].get_parameter("weight")[self._states()] = optimum

    def read(self, module: RLHFModule) -> Tensor:
        """The scores, (Y,)."""
        return self.table(module).detach()[self._states()]

    def nudge(self, values: Tensor, size: float) -> Tensor:
        """Move the scores along the lengths."""
        return values + size * self.world.lengths

    def table(self, module: RLHFModule) -> nn.Parameter:
        """The head's weight."""
        return module.backbone.heads[self.head].get_parameter("weight")

    def _states(self) -> Tensor:
        return self.world.final_states if self.states is None else self.states

    def distance(self, reached: Tensor) -> float:
        """Largest difference of the scores, centered where they are known up to a constant."""
        error = reached - self.optimum
        return float((error - error.mean() * self.centered).abs().max())


def reward_cases() -> list[RewardCase]:
    """Pairs and lists of Bradley-Terry and Plackett-Luce raters, ratings, and binary outcomes."""
    world, flat = tree(), bandit()
    r, pairs, edges = world.rewards, data.rated_pairs(world), data.chain(flat)
    p = torch.stack([data.preference_probabilities(flat)[i, j] for i, j in edges])
    along, ranked = data.rated_pairs(flat, edges=edges), data.rankings(flat, 3)
    shifted = {**along, "margin": torch.full((len(along["weight"]),), _MARGIN)}
    strong = {**pairs, "margin": torch.full((len(pairs["weight"]),), 2.0)}
    margins = targets.chained(targets.target_margin(p, _MARGIN))
    smooth, soft = targets.chained(targets.smoothed_margin(p, 0.1)), data.soft_pairs(world)
    smoothed, listed = partial(o.BradleyTerry, label_smoothing=0.1), data.scored_list(flat)
    tempered = partial(o.AllPairs, temperature=0.5)
    member = partial(o.HeadEnsemble, bootstrap=False)
    scores, labels = data.scalar_scores(world), data.binary_labels(world, r.sigmoid())
    level, name, text = 2.0 * flat.rewards, "BradleyTerry", "logit((1-e)p + e(1-p))"
    shift = "SimPO's margins"
    fixed, case = partial(RewardCase, centered=False), RewardCase
    return [
        case(name, "r + c", world, o.BradleyTerry, pairs, r),
        case(f"{name} (soft labels)", "r + c", world, o.BradleyTerry, soft, r),
        case(f"{name} (constant margin)", shift, flat, o.BradleyTerry, shifted, margins),
        case(f"{name} (label smoothing)", text, flat, smoothed, along, smooth),
        case("ScaledBradleyTerry", "r + c", world, o.ScaledBradleyTerry, strong, r),
        case("AllPairs", "r + c", flat, o.AllPairs, ranked, flat.rewards),
        case("AllPairs (soft labels)", "score / T + c", flat, tempered, listed, level),
        case("PlackettLuce", "r + c", flat, o.PlackettLuce, ranked, flat.rewards),
        fixed("Regression", "E[score]", world, o.Regression, scores, r),
        fixed("Outcome", "logit p", world, o.Outcome, labels, r),
        case("HeadEnsemble", "r + c", world, member, pairs, r, head="member_0"),
        _process_case(world),
        *_gaussian_cases(world),
        *_attribute_cases(world),
        *_length_cases(),
    ]


def _process_case(world: TabularWorld) -> RewardCase:
    """Each token is a step, right with a probability of its own."""
    steps = world.step_states
    states = torch.tensor(sorted({state for row in steps for state in row}))
    logits = torch.linspace(-1.0, 1.0, len(states), dtype=torch.float64)
    right = torch.zeros(int(states.max()) + 1, dtype=torch.float64)
    right[states] = logits.sigmoid()
    exists = torch.tensor([[t < len(row) for t in range(world.depth)] for row in steps])
    where = torch.tensor([[*row, *[row[0]] * (world.depth - len(row))] for row in steps])
    population = {
        **world.batch([[y] for y in range(len(steps))]),
        "step_end": torch.arange(world.depth).expand_as(where) * exists,
        "step_label": right[where],
        "step_mask": exists,
        "weight": data.skewed(world),
    }
    case = partial(RewardCase, centered=False, states=states)
    return case("Process", "logit p of each step", world, o.Process, population, logits)


def _gaussian_cases(world: TabularWorld) -> list[RewardCase]:
    """Ratings r - s and r + s, each as often."""
    mean, once = world.rewards, data.scalar_scores(world)["weight"]
    spread = torch.linspace(-0.7, 0.5, len(mean), dtype=torch.float64)
    rows = world.batch([[y] for y in range(len(mean))] * 2)
    ratings = torch.cat([mean - spread.exp(), mean + spread.exp()])
    both = {**rows, "score": ratings, "weight": once.repeat(2) / 2}
    case, loss = partial(RewardCase, centered=False, settles=False), o.GaussianRegression
    name, others = "GaussianRegression", {"reward": mean, "log_std": spread}
    return [
        case(f"{name} (mean)", "E[score]", world, loss, both, mean, others=others),
        case(f"{name} (std)", "log std", world, loss, both, spread, head="log_std", others=others),
    ]


def _attribute_cases(world: TabularWorld) -> list[RewardCase]:
    """Two attributes on either side of the reward, which is their mean: equal gates are at rest."""
    apart = torch.linspace(-0.6, 0.8, len(world.rewards), dtype=torch.float64)
    rated = torch.stack([world.rewards + apart, world.rewards - apart], -1)  # (Y, 2)
    alone = {**data.scalar_scores(world), "attributes": rated[:, None]}
    weights = data.preference_probabilities(world) * data.skewed(world).outer(data.skewed(world))
    pairs = data.labelled_pairs(world, weights)
    pairs["attributes"] = torch.stack([rated[pair] for pair in weights.nonzero()])  # (B, 2, 2)
    first, others = rated[:, 0], {"attribute_1": rated[:, 1]}
    case = partial(RewardCase, centered=False, head="attribute_0", others=others)
    fixed, gated = partial(o.Attributes, [0.5, 0.5]), partial(o.GatedAttributes, 2)
    return [
        case("Attributes", "E[rating]", world, fixed, alone, first),
        case("GatedAttributes", "E[rating]", world, gated, pairs, first),
    ]


def _length_cases() -> list[RewardCase]:
    """Rewards that grow with length: the length head takes the regression line, the quality head what is left."""
    plain = tree()
    world = replace(plain, rewards=plain.rewards + 0.8 * plain.lengths)
    centred = world.lengths - world.lengths.mean()
    slope = (centred * world.rewards).sum() / centred.square().sum()
    line = slope * centred
    parts = {"reward": world.rewards - line, "length": line}
    pairs, loss = data.rated_pairs(world), partial(o.LengthDebiased, 0.2)
    case, name = partial(RewardCase, others=parts, settles=False), "LengthDebiased"
    rest = parts["reward"]
    return [  # the corner is that of |corr(q, n)| at 0
        case(f"{name} (reward)", "r less its line in n", world, loss, pairs, rest, kink=True),
        case(f"{name} (length)", "r's line in n", world, loss, pairs, line, head="length"),
    ]
