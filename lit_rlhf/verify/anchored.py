r"""Methods that hold each completion to a place of its own: stationary where $\phi_y'(u_y) = \pi(y)\sum\phi'$."""

from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.verify import populations as data, targets
from lit_rlhf.verify.preference import PreferenceCase, rows_on
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.tabular import bandit

_ROOT = "phi'(u) = pi * sum phi'"


def anchored_cases() -> list[PreferenceCase]:
    """On the bandit."""
    world = bandit()
    mu = data.skewed(world)
    # Shares of the completions among the chosen, and among the rejected: of two drawn from mu, either may win.
    wins = targets.win_rates(data.preference_probabilities(world), mu)
    won, lost = 2 * mu * wins, 2 * mu * (1 - wins)
    desirable, quality = world.rewards.sigmoid(), world.rewards.softmax(-1)

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

    def bco(u: Tensor) -> Tensor:
        s = (BETA * u - (mu * BETA * u).sum()).sigmoid()
        return mu * (s - desirable)

    def nca(u: Tensor) -> Tensor:
        s = (BETA * u).sigmoid()
        return -quality * (1 - s) + s / len(u)

    def best(slope: targets.Function) -> Tensor:
        return targets.anchored_optimum(world.reference, slope)

    pairs, labels = data.rated_pairs(world, mu), data.binary_labels(world, desirable)
    row, moving = rows_on(world, pairs), rows_on(world, pairs, training="follow")
    labelled = rows_on(world, labels, training="follow")
    return [
        row("NCAPair", _ROOT, best(nca_pair), o.NCAPair, BETA),
        moving("BCOPair", _ROOT, best(bco_pair), o.BCOPair, BETA),
        row("SPPO", _ROOT, best(sppo), o.SPPO, BETA),
        labelled("BCO (running shift)", _ROOT, best(bco), o.BCO, BETA),
        rows_on(world, data.scored_list(world))("NCA", _ROOT, best(nca), o.NCA, BETA),
    ]


def degenerate_cases() -> list[PreferenceCase]:
    """Losses that saturate: no finite optimum; over two completions all goes to the one more often desirable."""
    world, text = bandit(2), "greedy (no finite optimum)"
    best = targets.greedy(world.rewards)
    labels = data.binary_labels(world, world.rewards.sigmoid())
    pair, single, unwanted = (
        rows_on(world, population, training="follow")
        for population in (
            data.rated_pairs(world, edges=[(0, 1)]),
            labels,
            data.undesirable(world, [1]),
        )
    )
    return [
        pair("APOZero", text, best, o.APOZero, BETA),
        pair("APODown", text, best, o.APODown, BETA),
        unwanted("NPO", text, best, o.NPO, BETA),
        single("KTO", text, best, o.KTO, BETA),
        single("UnpairedAPOZero", text, best, o.UnpairedAPOZero, BETA),
    ]
