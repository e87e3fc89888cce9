"""The methods that `verify` checks, each with the data it is for and the optimum that ALGORITHMS-style derivations give it."""

from functools import partial

import torch
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.testing import populations as data
from lit_rlhf.testing import stationarity as two
from lit_rlhf.testing import targets
from lit_rlhf.testing.tabular import TabularWorld, bandit, tree
from lit_rlhf.testing.verify import Case

BETA = 0.5
PI_STAR = "pi* = ref exp(r/beta)"


def all_cases() -> list[Case]:
    """One case for each method of the preference family, some methods with several."""
    return [
        *_exact_cases(),
        *_tilted_cases(),
        *_divergence_cases(),
        *_margin_cases(),
        *_two_completion_cases(),
        *_corner_cases(),
        *_anchored_cases(),
        *_listwise_cases(),
        *_degenerate_cases(),
    ]


def optimum(world: TabularWorld) -> Tensor:
    r"""$\pi^*$ of the world's rewards at `BETA`."""
    return targets.tilted(world.reference, world.rewards / BETA)


def _exact_cases() -> list[Case]:
    world, flat, few = tree(), bandit(), bandit(3)
    pairs, star = data.rated_pairs(world), optimum(world)
    beta_dpo = partial(o.BetaDPO, BETA, drop=0.0)
    return [
        Case("DPO", PI_STAR, world, partial(o.DPO, BETA), pairs, star),
        Case("SoftLabelDPO", PI_STAR, world, partial(o.SoftLabelDPO, BETA), data.soft_pairs(world), star),
        Case("RobustDPO", PI_STAR, world, partial(o.RobustDPO, BETA, 0.15), data.rated_pairs(world, flip=0.15), star),
        Case("ReverseKLDPO", PI_STAR, world, partial(o.ReverseKLDPO, BETA), pairs, star),
        Case("SavageGPO", PI_STAR, world, partial(o.SavageGPO, BETA), pairs, star),
        Case("WPO", PI_STAR, world, partial(o.WPO, BETA), pairs, star, training="follow"),
        Case("BetaDPO (drop=0)", PI_STAR, world, beta_dpo, pairs, star, training="follow"),
        Case("TDPO1 (bandit)", PI_STAR, flat, partial(o.TDPO1, BETA), data.rated_pairs(flat), optimum(flat)),
        Case("AOT (batches of one)", PI_STAR, few, partial(o.AOT, BETA), data.rated_pairs(few), optimum(few), by_row=True),
        Case(
            "UnpairedAOT (batches of one)", PI_STAR, few, partial(o.UnpairedAOT, BETA), data.rated_pairs(few), optimum(few), by_row=True
        ),
        Case("DROV", f"{PI_STAR}, V = V*", world, partial(o.DROV, BETA), data.scalar_scores(world), star, training="follow"),
        Case(
            "BCO (learned shift)",
            PI_STAR,
            world,
            partial(o.BCO, BETA, learn_shift=True),
            data.binary_labels(world, (world.rewards - 0.3).sigmoid()),
            star,
        ),
        Case("PlackettLuceDPO", PI_STAR, flat, partial(o.PlackettLuceDPO, BETA), data.rankings(flat, 3), optimum(flat)),
        Case("InfoNCA", PI_STAR, world, partial(o.InfoNCA, BETA), data.scored_list(world), star),
        Case("LiPOLambda (pairs)", PI_STAR, world, partial(o.LiPOLambda, BETA), data.scored_pairs(world), star),
    ]


def _tilted_cases() -> list[Case]:
    world = tree()
    pairs, uniform = data.rated_pairs(world), torch.ones_like(world.reference)
    wins = targets.win_rates(data.preference_probabilities(world), data.skewed(world))
    demonstrated = targets.tilted(world.reference, world.rewards)
    spin = data.demonstrations_against(world, demonstrated, world.reference)
    per_token = partial(targets.tilted_per_token, lengths=world.lengths)
    return [
        Case("IPO", "ref exp(P(y>mu)/tau)", world, partial(o.IPO, BETA), pairs, targets.tilted(world.reference, wins / BETA)),
        Case(
            "MeanIPO",
            "ref exp(n(P(y>mu)/tau + c))",
            world,
            partial(o.MeanIPO, BETA),
            pairs,
            per_token(world.reference, exponent=wins / BETA),
        ),
        Case(
            "SquaredGPO",
            "ref exp(2P(y>mu)/beta)",
            world,
            partial(o.SquaredGPO, BETA),
            pairs,
            targets.tilted(world.reference, 2 * wins / BETA),
        ),
        Case(
            "ExponentialGPO",
            "ref exp(r/2beta)",
            world,
            partial(o.ExponentialGPO, BETA),
            pairs,
            targets.tilted(world.reference, world.rewards / (2 * BETA)),
        ),
        Case(
            "LengthRegularizedDPO",
            "ref exp((r - a n)/beta)",
            world,
            partial(o.LengthRegularizedDPO, BETA, 0.4),
            pairs,
            targets.tilted(world.reference, (world.rewards - 0.4 * world.lengths) / BETA),
        ),
        Case(
            "LengthNormalizedDPO",
            "ref exp(n(r/beta + c))",
            world,
            partial(o.LengthNormalizedDPO, BETA),
            pairs,
            per_token(world.reference, exponent=world.rewards / BETA),
        ),
        Case(
            "SimPO (gamma=0)",
            "exp(n(r/beta + c))",
            world,
            partial(o.SimPO, BETA, 0.0),
            pairs,
            per_token(uniform, exponent=world.rewards / BETA),
        ),
        Case("CPO (alpha=0)", "exp(r/beta)/Z", world, partial(o.CPO, BETA, 0.0), pairs, (world.rewards / BETA).softmax(-1)),
        Case(
            "SPIN",
            "pi_t (p_data/pi_t)^(1/lambda)",
            world,
            partial(o.SPIN, 0.7),
            spin,
            targets.tilted(world.reference, (demonstrated / world.reference).log() / 0.7),
        ),
        Case("NLL", "p_data", world, o.NLL, data.scored_list(world) | _demonstrations(world, demonstrated), demonstrated),
    ]


def _demonstrations(world: TabularWorld, p_data: Tensor) -> data.Population:
    return {**world.batch([[y] for y in range(len(p_data))]), "weight": p_data}
