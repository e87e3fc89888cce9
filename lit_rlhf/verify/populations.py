"""All the data there could be in a tabular world, each datum once, with its probability in the column `weight`.

A module's loss of such a batch is the exact expectation of its loss.
"""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.verify.tabular import TabularWorld

Population = dict[str, Any]
"""A branched batch with `weight` (B,) float64 that sums to 1."""


def preference_probabilities(world: TabularWorld) -> Tensor:
    r"""(Y, Y): $P(y \succ y') = \sigma(r(y) - r(y'))$, Bradley-Terry raters."""
    return (world.rewards[:, None] - world.rewards[None, :]).sigmoid()


def skewed(world: TabularWorld) -> Tensor:
    """A distribution (Y,) over the completions that is neither uniform nor the reference."""
    weights = torch.linspace(1.0, 2.0, len(world.completions), dtype=torch.float64)
    return weights / weights.sum()


def labelled_pairs(world: TabularWorld, weights: Tensor) -> Population:
    """Pairs (chosen, rejected) with the given weights (Y, Y); those of weight 0 are left out."""
    rows = weights.nonzero().tolist()
    picked = torch.stack([weights[w, l] for w, l in rows])  # noqa: E741
    return {**world.batch(rows), "weight": picked / picked.sum()}


def rated_pairs(
    world: TabularWorld,
    mu: Tensor | None = None,
    flip: float = 0.0,
    edges: Sequence[tuple[int, int]] | None = None,
) -> Population:
    """Two completions drawn independently from mu, labelled by Bradley-Terry raters.

    Args:
        world: The world.
        mu: (Y,); default: `skewed`.
        flip: Probability that a label is turned round.
        edges: Compare these pairs of completions alone, each as often.
    """
    mu = skewed(world) if mu is None else mu
    p = preference_probabilities(world)
    p = (1 - flip) * p + flip * (1 - p)
    drawn = mu[:, None] * mu[None, :]
    if edges is not None:
        drawn = torch.zeros_like(p)
        for i, j in edges:
            drawn[i, j] = drawn[j, i] = 1.0
    return labelled_pairs(world, drawn * p)


def chain(world: TabularWorld) -> list[tuple[int, int]]:
    """Each completion compared with the next: any margins on these pairs belong to exactly one policy."""
    return [(y, y + 1) for y in range(len(world.completions) - 1)]


def soft_pairs(world: TabularWorld, mu: Tensor | None = None) -> Population:
    """Two completions drawn independently from mu, with the raters' probability as `p_chosen`."""
    mu = skewed(world) if mu is None else mu
    batch = labelled_pairs(world, mu[:, None] * mu[None, :])
    rows = (mu[:, None] * mu[None, :]).nonzero()
    return {**batch, "p_chosen": preference_probabilities(world)[rows[:, 0], rows[:, 1]]}


def demonstrations_against(world: TabularWorld, data: Tensor, generated: Tensor) -> Population:
    """Pairs of a completion of `data` (chosen) and an independent one of `generated` (rejected), (Y,) each."""
    return labelled_pairs(world, data[:, None] * generated[None, :])


def binary_labels(world: TabularWorld, p_desirable: Tensor, mu: Tensor | None = None) -> Population:
    """Completions drawn from mu, each labelled desirable with its own probability (Y,)."""
    mu = skewed(world) if mu is None else mu
    everything = list(range(len(world.completions)))
    rows = [[y] for y in everything] * 2
    labels = torch.tensor([True] * len(everything) + [False] * len(everything))
    weight = torch.cat([mu * p_desirable, mu * (1 - p_desirable)])
    return {**world.batch(rows), "label": labels, "weight": weight}


def undesirable(world: TabularWorld, completions: Sequence[int]) -> Population:
    """These completions, each as often, to be unlearned."""
    labels = torch.zeros(len(completions), dtype=torch.bool)
    weight = torch.full((len(completions),), 1 / len(completions), dtype=torch.float64)
    return {**world.batch([[y] for y in completions]), "label": labels, "weight": weight}


def scalar_scores(world: TabularWorld, mu: Tensor | None = None) -> Population:
    """Completions drawn from mu with their rewards as `score`."""
    rows = [[y] for y in range(len(world.completions))]
    mu = skewed(world) if mu is None else mu
    return {**world.batch(rows), "score": world.rewards, "weight": mu}


def rankings(world: TabularWorld, size: int) -> Population:
    """All lists of `size` completions ranked by Plackett-Luce raters; the score falls with the rank."""
    rows = list(permutations(range(len(world.completions)), size))
    strength = world.rewards.exp()
    picked = strength[torch.tensor(rows)]  # (rows, size)
    weight = (picked / picked.flip(1).cumsum(1).flip(1)).prod(1)
    weight = weight / weight.sum()
    score = torch.arange(size, 0, -1, dtype=torch.float64).expand(len(rows), -1)
    return {**world.batch(rows), "score": score, "branch_mask": score > 0, "weight": weight}


def scored_pairs(
    world: TabularWorld, gap: float = 1.0, edges: Sequence[tuple[int, int]] | None = None
) -> Population:
    """Lists of two, the one that Bradley-Terry raters prefer scored `gap` and the other 0; see `rated_pairs`."""
    batch = rated_pairs(world, edges=edges)
    score = torch.tensor([[gap, 0.0]], dtype=torch.float64).expand(len(batch["weight"]), -1)
    return {**batch, "score": score, "branch_mask": torch.ones_like(score, dtype=torch.bool)}


def scored_list(world: TabularWorld) -> Population:
    """One list of all completions with their rewards as scores."""
    score = world.rewards[None]
    mask = torch.ones_like(score, dtype=torch.bool)
    rows = world.batch([range(len(world.completions))])
    return {**rows, "score": score, "branch_mask": mask, "weight": torch.ones(1).double()}
