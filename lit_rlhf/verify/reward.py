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
from lit_rlhf.verify import populations as data, targets
from lit_rlhf.verify.runner import Case, Training
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree, use_double_heads

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
        module = RewardModelModule(ModelSpec(config={}), self.make_loss())
        module.backbone = self.world.backbone()
        module.configure_roles()
        use_double_heads(module.backbone)
        module.backbone.model.requires_grad_(False)
        return module.train()

    def expected_loss(self, module: RLHFModule) -> Tensor:
        """The loss of all data in one batch."""
        module = cast("RewardModelModule", module)
        scores, _ = module.scores(self.population)  # type: ignore[arg-type]
        loss = module.loss(scores, self.population).loss  # type: ignore[arg-type]
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
        RewardCase(
            "BradleyTerry (soft labels)", "r + c", world, o.BradleyTerry, data.soft_pairs(world), r
        ),
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
        RewardCase(
            "AllPairs (soft labels)",
            "score / T + c",
            flat,
            partial(o.AllPairs, temperature=0.5),
            data.scored_list(flat),
            2.0 * flat.rewards,
        ),
        RewardCase("PlackettLuce", "r + c", flat, o.PlackettLuce, ranked, flat.rewards),
        RewardCase(
            "Regression",
            "E[score]",
            world,
            o.Regression,
            data.scalar_scores(world),
            r,
            centered=False,
        ),
        RewardCase("Outcome", "logit p", world, o.Outcome, labels, r, centered=False),
        RewardCase(
            "HeadEnsemble",
            "r + c",
            world,
            partial(o.HeadEnsemble, bootstrap=False),
            pairs,
            r,
            head="member_0",
        ),
        _process_case(world),
        *_gaussian_cases(world),
        *_length_cases(),
    ]


def _process_case(world: TabularWorld) -> RewardCase:
    """Each token is a step, right with a probability of its own."""
    steps = world.step_states
    states = torch.tensor(sorted({state for row in steps for state in row}))
    logits = torch.linspace(-1.0, 1.0, len(states), dtype=torch.float64)
    right = torch.zeros(int(states.max()) + 1, dtype=torch.float64).index_copy(
        0, states, logits.sigmoid()
    )
    exists = torch.tensor([[t < len(row) for t in range(world.depth)] for row in steps])
    where = torch.tensor([[*row, *[row[0]] * (world.depth - len(row))] for row in steps])
    population = {
        **world.batch([[y] for y in range(len(steps))]),
        "step_end": torch.arange(world.depth).expand_as(where) * exists,
        "step_label": right[where],
        "step_mask": exists,
        "weight": data.skewed(world),
    }
    return RewardCase(
        "Process",
        "logit p of each step",
        world,
        o.Process,
        population,
        logits,
        False,
        states=states,
    )


def _gaussian_cases(world: TabularWorld) -> list[RewardCase]:
    """Ratings r - s and r + s, each as often."""
    once, spread = (
        data.scalar_scores(world),
        torch.linspace(-0.7, 0.5, len(world.rewards), dtype=torch.float64),
    )
    rows = [[y] for y in range(len(world.rewards))] * 2
    ratings = torch.cat([world.rewards - spread.exp(), world.rewards + spread.exp()])
    population = {**world.batch(rows), "score": ratings, "weight": once["weight"].repeat(2) / 2}
    case = partial(
        RewardCase,
        world=world,
        make_loss=o.GaussianRegression,
        population=population,
        centered=False,
        settles=False,
    )
    return [
        case(
            "GaussianRegression (mean)",
            "E[score]",
            optimum=world.rewards,
            others={"log_std": spread},
        ),
        case(
            "GaussianRegression (std)",
            "log std",
            optimum=spread,
            head="log_std",
            others={"reward": world.rewards},
        ),
    ]


def _length_cases() -> list[RewardCase]:
    """Rewards that grow with length: the length head takes the regression line, the quality head what is left."""
    plain = tree()
    world = replace(plain, rewards=plain.rewards + 0.8 * plain.lengths)
    centred = world.lengths - world.lengths.mean()
    slope = (centred * world.rewards).sum() / centred.square().sum()
    parts = {"reward": world.rewards - slope * centred, "length": slope * centred}
    population = data.rated_pairs(world)
    return [
        RewardCase(
            f"LengthDebiased ({head})",
            text,
            world,
            partial(o.LengthDebiased, 0.2),
            population,
            parts[head],
            head=head,
            others=parts,
            kink=head == "reward",  # of |corr(q, n)| at 0
            settles=False,
        )
        for head, text in (("reward", "r less its line in n"), ("length", "r's line in n"))
    ]


def _chained(margins: Tensor) -> Tensor:
    return torch.cat([margins.new_zeros(1), -margins.cumsum(0)])
