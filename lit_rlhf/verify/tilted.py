"""Methods whose optimum is a tilt of the reference, or of the uniform distribution, by something else than r/beta."""

import torch

from lit_rlhf import objectives as o
from lit_rlhf.verify import populations as data, targets
from lit_rlhf.verify.preference import PreferenceCase, rows_on
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.tabular import tree
from lit_rlhf.verify.targets import tilted, tilted_per_token

_PRICE, _SPIN, _GAP = 0.4, 0.7, 0.8
PRICED, SHARED = "ref exp((r - a n)/beta)", "ref exp(n(r/beta + c))"


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
        rows_on(world, data.scored_pairs(world, _GAP))(
            "PRO (pairs, no SFT)", "exp(n(r/gap + c))", ranked, o.PRO, 0.0
        ),
    ]
