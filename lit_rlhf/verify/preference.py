r"""Preference losses in the tabular world, through the batch, forward and reduction of `PreferenceModule`.

The cases go by their optimum: exact, tilted, set by margins, a root, each in its place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import PreferenceModule, RLHFModule
from lit_rlhf.objectives import PreferenceLoss
from lit_rlhf.types import BranchedBatch
from lit_rlhf.verify import populations as data, stationarity as by_hand, targets
from lit_rlhf.verify.populations import Population
from lit_rlhf.verify.runner import BETA, PI_STAR, Case, Training, optimum
from lit_rlhf.verify.stationarity import TwoCompletions
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree
from lit_rlhf.verify.targets import from_margins, tilted, tilted_per_token

MakeLoss = Callable[[], PreferenceLoss]


@dataclass(frozen=True)
class PreferenceCase(Case):
    """A loss and all the data there could be.

    Attributes:
        make_loss: A fresh loss.
        population: Its data, weighted by probability.
        by_row: Evaluate each row as a batch of its own, for losses that sort the batch.
        make_module: A module without backbone around a loss; default: `PreferenceModule`.
    """

    method: str
    target: str
    world: TabularWorld
    make_loss: MakeLoss
    population: Population
    optimum: Tensor
    training: Training = "minimize"
    rate: float = 0.3
    kink: bool = False
    by_row: bool = False
    make_module: Callable[[PreferenceLoss], PreferenceModule] = lambda loss: PreferenceModule(
        ModelSpec(config={}), loss
    )

    def module(self) -> PreferenceModule:
        """A module around a fresh loss, with the world's reference as policy and reference."""
        return self.world.place(self.make_module(self.make_loss()))

    def expected_loss(self, module: RLHFModule) -> Tensor:
        """The module's own loss of all data in one batch, or the mean of its losses of each datum."""
        module = cast("PreferenceModule", module)
        for buffer in module.objective.buffers():
            buffer.zero_()  # with all data in every batch, what running statistics tend to is the batch's own
        if not self.by_row:
            return _loss(module, self.population)
        total, data = torch.zeros((), dtype=torch.float64), dict(self.population)
        for row, weight in enumerate(data.pop("weight")):
            alone = {name: value[row : row + 1] for name, value in data.items()}
            total = total + weight * _loss(module, alone)
        return total


def rows_on(
    world: TabularWorld, population: Population, **more: Any
) -> Callable[..., PreferenceCase]:
    """Makes the cases of losses on the same data, each of a name, its target, the optimum, the loss and its options."""

    def row(
        name: str,
        target: str,
        best: Tensor,
        loss: type[PreferenceLoss],
        *options: Any,
        **named: Any,
    ) -> PreferenceCase:
        make = partial(loss, *options, **named)
        return PreferenceCase(name, target, world, make, population, best, **more)

    return row


def _loss(module: PreferenceModule, batch: Population) -> Tensor:
    rows = cast("BranchedBatch", batch)
    return module.reduce(module.loss_output(rows).loss, rows)


_PRICE, _SPIN, _GAP = 0.4, 0.7, 0.8
PRICED, SHARED = "ref exp((r - a n)/beta)", "ref exp(n(r/beta + c))"
_SMOOTHING, _GAMMA, _ALPHA = 0.15, 0.6, 0.4
_ONE_ROOT = "root of dE/dx, 2 completions"
_ROOTS = "phi'(u) = pi * sum phi'"


def preference_cases() -> list[PreferenceCase]:
    """All of them."""
    return [
        *exact_cases(),
        *tilted_cases(),
        *divergence_cases(),
        *margin_cases(),
        *two_completion_cases(),
        *corner_cases(),
        *anchored_cases(),
        *degenerate_cases(),
    ]


def exact_cases() -> list[PreferenceCase]:
    """Pairs on the tree; then the bandit, where both completions' divergences are one state's; other data."""
    world, flat, few = tree(), bandit(), bandit(3)
    pairs, flipped = data.rated_pairs(world), data.rated_pairs(world, flip=0.15)
    labels = data.binary_labels(world, (world.rewards - 0.3).sigmoid())
    smooth, stopped = rows_on(world, pairs), rows_on(world, pairs, training="follow")
    level, alone = optimum(flat), rows_on(few, data.rated_pairs(few), by_row=True)
    rated, star, of_few = data.scalar_scores(world), optimum(world), optimum(few)
    lists, two = data.scored_list(world), data.scored_pairs(world)
    ranked = rows_on(flat, data.rankings(flat, 3))
    return [
        smooth("DPO", PI_STAR, star, o.DPO, BETA),
        smooth("ReverseKLDPO", PI_STAR, star, o.ReverseKLDPO, BETA),
        smooth("SavageGPO", PI_STAR, star, o.SavageGPO, BETA),
        stopped("WPO", PI_STAR, star, o.WPO, BETA),
        stopped("BetaDPO (drop=0)", PI_STAR, star, o.BetaDPO, BETA, drop=0.0),
        rows_on(flat, data.rated_pairs(flat))("TDPO1 (bandit)", PI_STAR, level, o.TDPO1, BETA),
        alone("AOT (batches of one)", PI_STAR, of_few, o.AOT, BETA),
        alone("UnpairedAOT (batches of one)", PI_STAR, of_few, o.UnpairedAOT, BETA),
        ranked("PlackettLuceDPO", PI_STAR, level, o.PlackettLuceDPO, BETA),
        rows_on(world, data.soft_pairs(world))("SoftLabelDPO", PI_STAR, star, o.SoftLabelDPO, BETA),
        rows_on(world, flipped)("RobustDPO", PI_STAR, star, o.RobustDPO, BETA, 0.15),
        rows_on(world, rated, training="follow")("DROV", PI_STAR, star, o.DROV, BETA),
        rows_on(world, labels)("BCO (learned shift)", PI_STAR, star, o.BCO, BETA, learn_shift=True),
        rows_on(world, lists)("InfoNCA", PI_STAR, star, o.InfoNCA, BETA),
        rows_on(world, two)("LiPOLambda (pairs)", PI_STAR, star, o.LiPOLambda, BETA),
    ]


def tilted_cases() -> list[PreferenceCase]:
    """On the tree, with all pairs of a skewed distribution; then with demonstrations and with scored pairs."""
    world = tree()
    ref, reward, n = world.reference, world.rewards / BETA, world.lengths
    uniform, row = torch.ones_like(ref), rows_on(world, data.rated_pairs(world))
    wins = targets.win_rates(data.preference_probabilities(world), data.skewed(world)) / BETA
    priced, level = reward - _PRICE / BETA * n, tilted_per_token(uniform, n, reward)
    per_token, paid = tilted_per_token(ref, n, reward), tilted(ref, priced)
    won = tilted_per_token(ref, n, wins)
    shown = tilted(ref, world.rewards)
    against = rows_on(world, data.demonstrations_against(world, shown, ref))
    alone = rows_on(world, {**world.batch([[y] for y in range(len(shown))]), "weight": shown})
    step = tilted(ref, (shown / ref).log() / _SPIN)
    ranked = tilted_per_token(uniform, n, world.rewards / _GAP)
    apart = rows_on(world, data.scored_pairs(world, _GAP))
    return [
        row("IPO", "ref exp(P(y>mu)/tau)", tilted(ref, wins), o.IPO, BETA),
        row("SquaredGPO", "ref exp(2P(y>mu)/beta)", tilted(ref, 2 * wins), o.SquaredGPO, BETA),
        row("ExponentialGPO", "ref exp(r/2beta)", tilted(ref, reward / 2), o.ExponentialGPO, BETA),
        row("MeanIPO", "ref exp(n(P/tau + c))", won, o.MeanIPO, BETA),
        row("LengthRegularizedDPO", PRICED, paid, o.LengthRegularizedDPO, BETA, _PRICE),
        row("LengthNormalizedDPO", SHARED, per_token, o.LengthNormalizedDPO, BETA),
        row("SimPO (gamma=0)", "exp(n(r/beta + c))", level, o.SimPO, BETA, 0.0),
        row("CPO (alpha=0)", "exp(r/beta)", tilted(uniform, reward), o.CPO, BETA, 0.0),
        # Of a policy that isn't in the reference's place.
        against("SPIN", "pi_t (p_data/pi_t)^(1/lambda)", step, o.SPIN, _SPIN),
        alone("NLL", "p_data", shown, o.NLL, length_normalize=False),
        apart("PRO (pairs, no SFT)", "exp(n(r/gap + c))", ranked, o.PRO, 0.0),
    ]


def divergence_cases() -> list[PreferenceCase]:
    """f-DPO on the tree, and a loss whose margins are those of a spanning tree of its completions."""
    world = tree()
    ref, r = world.reference, world.rewards
    forward = targets.forward_kl_optimum(ref, r, BETA)
    shannon = targets.jensen_shannon_optimum(ref, r, BETA)
    alpha = targets.alpha_divergence_optimum(ref, r, BETA, _ALPHA)
    spanning = targets.desensitized_tree(ref, r, BETA, _ALPHA)
    row = rows_on(world, data.rated_pairs(world))
    edges = rows_on(world, data.rated_pairs(world, edges=targets.DESENSITIZED_EDGES))
    equations, loss = "equations of a spanning tree", o.LengthDesensitizedDPO
    power = "ref (1 - a s)^(-1/a)"
    return [
        row("ForwardKLDPO", "beta ref/(L - r)", forward, o.ForwardKLDPO, BETA),
        row("JensenShannonDPO", "ref e^s/(2 - e^s)", shannon, o.JensenShannonDPO, BETA),
        row("AlphaDivergenceDPO", power, alpha, o.AlphaDivergenceDPO, BETA, _ALPHA),
        edges("LengthDesensitizedDPO", equations, spanning, loss, BETA, _ALPHA),
    ]


def margin_cases() -> list[PreferenceCase]:
    """Completions compared along a chain, so that each pair's margin can be met."""
    world, edges = bandit(), data.chain(bandit())
    ref, uniform = world.reference, torch.ones_like(world.reference)
    p = torch.stack([data.preference_probabilities(world)[i, j] for i, j in edges])
    pairs = data.rated_pairs(world, edges=edges)
    row, slow = rows_on(world, pairs), rows_on(world, pairs, training="descend", rate=0.05)
    slopes = [partial(by_hand.discopop_slope, temperature=tau) for tau in (0.5, 0.05)]
    far, near = (targets.descent_margin(slope, p) / BETA for slope in slopes)
    smoothed, wide = targets.smoothed_margin(p, _SMOOTHING), targets.target_margin(p, _GAMMA)
    reverse = targets.reverse_smoothed_margin(p, _SMOOTHING)
    smooth, sharp = from_margins(ref, smoothed / BETA), from_margins(ref, reverse / BETA)
    # AlphaPO's rewards are f' of the alpha divergence to the constant 1: margins fix them up to L.
    shaped = targets.alpha_divergence_optimum(uniform, targets.chained(wide), BETA, _ALPHA)
    blur, mean = "margins logit((1-e)p + e(1-p))", "SimPO's margins of (1 - p^-a)/a"
    balance, skew = "margins p f'(z) = (1-p) f'(-z)", "margins p s(g - z) = (1-p) s(g + z)"
    return [
        row("ConservativeDPO", blur, smooth, o.ConservativeDPO, BETA, _SMOOTHING),
        row("EXO", "margins (2p-1) logit(1-e)", sharp, o.EXO, BETA, _SMOOTHING),
        row("DiscoPOP (tau=0.5)", balance, from_margins(ref, far), o.DiscoPOP, BETA, 0.5),
        row("SimPO", skew, from_margins(uniform, wide / BETA), o.SimPO, BETA, _GAMMA),
        row("AlphaPO", mean, shaped, o.AlphaPO, BETA, _GAMMA, _ALPHA),
        slow("DiscoPOP", "the valley next to z = 0", from_margins(ref, near), o.DiscoPOP, BETA),
    ]


def two_completion_cases() -> list[PreferenceCase]:
    """Smooth losses with a term that no policy over more completions satisfies in closed form."""
    world, edges = bandit(2), [(0, 1)]
    pairs, gap = data.rated_pairs(world, edges=edges), data.scored_pairs(world, 0.8, edges=edges)
    row, scored = rows_on(world, pairs), rows_on(world, gap)
    both, parts = _root(by_hand.dpo_and_nll, beta=BETA, alpha=0.5), [o.DPO(BETA), o.NLL()]
    cal, dpop = _root(by_hand.cal_dpo, beta=BETA), _root(by_hand.dpop, beta=BETA, penalty=1.0)
    pro = _root(by_hand.pro, gap=0.8, sft_weight=0.3)
    tdpo2 = _root(by_hand.tdpo2, beta=BETA, alpha=0.5)
    return [
        row("RPO", _ONE_ROOT, both, o.RPO, BETA, 0.5),
        row("WeightedSum (DPO + NLL)", _ONE_ROOT, both, o.WeightedSum, parts, [1.0, 0.5]),
        row("CPO", _ONE_ROOT, _root(by_hand.cpo, beta=BETA, alpha=0.5), o.CPO, BETA, 0.5),
        row("ORPO", _ONE_ROOT, _root(by_hand.orpo, weight=0.5), o.ORPO, 0.5),
        row("CalDPO", _ONE_ROOT, cal, o.CalDPO, BETA),
        row("DPOP", _ONE_ROOT, dpop, o.DPOP, BETA, 1.0),
        rows_on(world, pairs, training="follow")("TDPO2", _ONE_ROOT, tdpo2, o.TDPO2, BETA),
        scored("PRO", _ONE_ROOT, pro, o.PRO, 0.3),
        scored("RRHF", _ONE_ROOT, _root(by_hand.rrhf, weight=0.5), o.RRHF, rank_weight=0.5),
    ]


def corner_cases() -> list[PreferenceCase]:
    """Hinges: whatever the raters' certainty, the margin is the one asked for."""
    world = bandit(2)
    pairs, margin = data.rated_pairs(world, edges=[(0, 1)]), torch.ones(1, dtype=torch.float64)
    hinge = rows_on(world, pairs, training="descend", kink=True)
    rso = targets.from_margins(world.reference, margin / 0.8)
    slic = targets.from_margins(torch.ones(2).double(), margin)
    return [
        hinge("RSOHinge", "h = 1/gamma", rso, o.RSOHinge, 0.8),
        hinge("SLiC", "l_w - l_l = delta", slic, o.SLiC),
    ]


def _root(condition: Callable[..., Tensor], **options: float) -> Tensor:
    world = bandit(2)
    p = data.preference_probabilities(world)[0, 1]
    at = partial(TwoCompletions, reference=world.reference, p=p)
    return targets.two_completions(lambda x: condition(at(x), **options))


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
        row("NCAPair", _ROOTS, best(nca_pair), o.NCAPair, BETA),
        moving("BCOPair", _ROOTS, best(bco_pair), o.BCOPair, BETA),
        row("SPPO", _ROOTS, best(sppo), o.SPPO, BETA),
        labelled("BCO (running shift)", _ROOTS, best(bco), o.BCO, BETA),
        rows_on(world, data.scored_list(world))("NCA", _ROOTS, best(nca), o.NCA, BETA),
    ]


def degenerate_cases() -> list[PreferenceCase]:
    """Losses that saturate: no finite optimum; over two completions all goes to the one more often desirable."""
    world, text = bandit(2), "greedy (no finite optimum)"
    best = targets.greedy(world.rewards)
    labels = data.binary_labels(world, world.rewards.sigmoid())
    populations = data.rated_pairs(world, edges=[(0, 1)]), labels, data.undesirable(world, [1])
    pair, single, unwanted = (rows_on(world, each, training="follow") for each in populations)
    return [
        pair("APOZero", text, best, o.APOZero, BETA),
        pair("APODown", text, best, o.APODown, BETA),
        unwanted("NPO", text, best, o.NPO, BETA),
        single("KTO", text, best, o.KTO, BETA),
        single("UnpairedAPOZero", text, best, o.UnpairedAPOZero, BETA),
    ]
