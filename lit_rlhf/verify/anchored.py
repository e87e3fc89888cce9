r"""Methods that hold each completion to a place of its own: stationary where $\phi_y'(u_y) = \pi(y)\sum\phi'$."""

from functools import partial

from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.verify import populations as data, targets
from lit_rlhf.verify.preference import MakeLoss, PreferenceCase
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.tabular import TabularWorld, bandit

_ROOT = "phi'(u) = pi * sum phi'"


def anchored_cases() -> list[PreferenceCase]:
    """On the bandit."""
    world = bandit()
    mu = data.skewed(world)
    won, lost = _shares(world, mu)
    pairs = data.rated_pairs(world, mu)

    def nca_pair(u: Tensor) -> Tensor:
        # Each of the terms of the chosen (won) and the rejected (lost), differentiated.
        s = (BETA * u).sigmoid()
        return -won * (1 - s) + 0.5 * won * s + 0.5 * lost * s

    def bco_pair(u: Tensor) -> Tensor:
        # The shift is the mean of the implicit rewards of both sides, and carries no gradient.
        shift = 0.5 * ((won + lost) * BETA * u).sum()
        s = (BETA * u - shift).sigmoid()
        return -won * (1 - s) + lost * s

    def sppo(u: Tensor) -> Tensor:
        return (won + lost) * u - 0.5 / BETA * (won - lost)

    cases = [
        _case("NCAPair", world, partial(o.NCAPair, BETA), pairs, nca_pair),
        _case("BCOPair", world, partial(o.BCOPair, BETA), pairs, bco_pair, follow=True),
        _case("SPPO", world, partial(o.SPPO, BETA), pairs, sppo),
    ]
    return [*cases, *_other_data_cases(world)]


def _other_data_cases(world: TabularWorld) -> list[PreferenceCase]:
    mu, desirable = data.skewed(world), world.rewards.sigmoid()
    labels, quality = data.binary_labels(world, desirable), world.rewards.softmax(-1)

    def bco(u: Tensor) -> Tensor:
        s = (BETA * u - (mu * BETA * u).sum()).sigmoid()
        return mu * (s - desirable)

    def nca(u: Tensor) -> Tensor:
        s = (BETA * u).sigmoid()
        return -quality * (1 - s) + s / len(u)

    return [
        _case("BCO (running shift)", world, partial(o.BCO, BETA), labels, bco, follow=True),
        _case("NCA", world, partial(o.NCA, BETA), data.scored_list(world), nca),
    ]


def degenerate_cases() -> list[PreferenceCase]:
    """Losses that saturate: no finite optimum; over two completions all goes to the one more often desirable."""
    world = bandit(2)
    pairs, best = data.rated_pairs(world, edges=[(0, 1)]), targets.greedy(world.rewards)
    labels = data.binary_labels(world, world.rewards.sigmoid())
    unwanted = data.undesirable(world, [1])
    greedy = partial(
        PreferenceCase,
        target="greedy (no finite optimum)",
        world=world,
        optimum=best,
        training="follow",
    )
    return [
        greedy("APOZero", make_loss=partial(o.APOZero, BETA), population=pairs),
        greedy("APODown", make_loss=partial(o.APODown, BETA), population=pairs),
        greedy("NPO", make_loss=partial(o.NPO, BETA), population=unwanted),
        greedy("KTO", make_loss=partial(o.KTO, BETA), population=labels),
        greedy("UnpairedAPOZero", make_loss=partial(o.UnpairedAPOZero, BETA), population=labels),
    ]


def _shares(world: TabularWorld, mu: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the completions among the chosen, and among the rejected: of two drawn from mu, either may win."""
    wins = targets.win_rates(data.preference_probabilities(world), mu)
    return 2 * mu * wins, 2 * mu * (1 - wins)


def _case(
    name: str,
    world: TabularWorld,
    loss: MakeLoss,
    population: data.Population,
    slope: targets.Function,
    follow: bool = False,
) -> PreferenceCase:
    best = targets.anchored_optimum(world.reference, slope)
    return PreferenceCase(
        name, _ROOT, world, loss, population, best, training="follow" if follow else "minimize"
    )
