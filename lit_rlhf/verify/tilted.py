"""Methods whose optimum is a tilt of the reference, or of the uniform distribution, by something else than r/beta."""

from functools import partial

import torch
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.verify import populations as data, targets
from lit_rlhf.verify.preference import MakeLoss, PreferenceCase
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.tabular import tree

_TOKEN_PRICE = 0.4
_SPIN_SCALE = 0.7


def tilted_cases() -> list[PreferenceCase]:
    """On the tree, with all pairs of a skewed distribution."""
    world = tree()
    ref, reward, lengths = world.reference, world.rewards / BETA, world.lengths
    pairs, uniform = data.rated_pairs(world), torch.ones_like(ref)
    wins = targets.win_rates(data.preference_probabilities(world), data.skewed(world)) / BETA
    priced = reward - _TOKEN_PRICE / BETA * lengths
    rows: list[tuple[str, str, MakeLoss, Tensor]] = [
        ("IPO", "ref exp(P(y>mu)/tau)", partial(o.IPO, BETA), targets.tilted(ref, wins)),
        (
            "SquaredGPO",
            "ref exp(2P(y>mu)/beta)",
            partial(o.SquaredGPO, BETA),
            targets.tilted(ref, 2 * wins),
        ),
        (
            "ExponentialGPO",
            "ref exp(r/2beta)",
            partial(o.ExponentialGPO, BETA),
            targets.tilted(ref, reward / 2),
        ),
        (
            "MeanIPO",
            "ref exp(n(P/tau + c))",
            partial(o.MeanIPO, BETA),
            targets.tilted_per_token(ref, lengths, wins),
        ),
        (
            "LengthRegularizedDPO",
            "ref exp((r - a n)/beta)",
            partial(o.LengthRegularizedDPO, BETA, _TOKEN_PRICE),
            targets.tilted(ref, priced),
        ),
        (
            "LengthNormalizedDPO",
            "ref exp(n(r/beta + c))",
            partial(o.LengthNormalizedDPO, BETA),
            targets.tilted_per_token(ref, lengths, reward),
        ),
        (
            "SimPO (gamma=0)",
            "exp(n(r/beta + c))",
            partial(o.SimPO, BETA, 0.0),
            targets.tilted_per_token(uniform, lengths, reward),
        ),
        (
            "CPO (alpha=0)",
            "exp(r/beta)",
            partial(o.CPO, BETA, 0.0),
            targets.tilted(uniform, reward),
        ),
    ]
    return [
        *(PreferenceCase(name, text, world, loss, pairs, best) for name, text, loss, best in rows),
        *_imitating_cases(),
        _pro_case(),
    ]


def _imitating_cases() -> list[PreferenceCase]:
    """Losses of demonstrations: those of a policy that isn't in the reference's place."""
    world = tree()
    shown = targets.tilted(world.reference, world.rewards)
    against = data.demonstrations_against(world, shown, world.reference)
    step = targets.tilted(world.reference, (shown / world.reference).log() / _SPIN_SCALE)
    alone = {**world.batch([[y] for y in range(len(shown))]), "weight": shown}
    return [
        PreferenceCase(
            "SPIN",
            "pi_t (p_data/pi_t)^(1/lambda)",
            world,
            partial(o.SPIN, _SPIN_SCALE),
            against,
            step,
        ),
        PreferenceCase(
            "NLL", "p_data", world, partial(o.NLL, length_normalize=False), alone, shown
        ),
    ]


def _pro_case() -> PreferenceCase:
    world, gap = tree(), 0.8
    best = targets.tilted_per_token(
        torch.ones_like(world.reference), world.lengths, world.rewards / gap
    )
    return PreferenceCase(
        "PRO (pairs, no SFT)",
        "exp(n(r/gap + c))",
        world,
        partial(o.PRO, 0.0),
        data.scored_pairs(world, gap),
        best,
    )
