"""Methods under other divergences, and those whose links set margins that no single reward explains."""

from functools import partial

import torch

from lit_rlhf import objectives as o
from lit_rlhf.verify import populations as data, stationarity, targets
from lit_rlhf.verify.preference import PreferenceCase, rows_on
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.tabular import bandit, tree
from lit_rlhf.verify.targets import from_margins

_SMOOTHING, _GAMMA, _ALPHA = 0.15, 0.6, 0.4


def divergence_cases() -> list[PreferenceCase]:
    """f-DPO on the tree, and a loss whose margins are those of a spanning tree of its completions."""
    world = tree()
    ref, r = world.reference, world.rewards
    forward, shannon = targets.forward_kl_optimum, targets.jensen_shannon_optimum
    alpha = targets.alpha_divergence_optimum(ref, r, BETA, _ALPHA)
    spanning = targets.desensitized_tree(ref, r, BETA, _ALPHA)
    row = rows_on(world, data.rated_pairs(world))
    edges = rows_on(world, data.rated_pairs(world, edges=targets.DESENSITIZED_EDGES))
    equations, loss = "equations of a spanning tree", o.LengthDesensitizedDPO
    return [
        row("ForwardKLDPO", "beta ref/(L - r)", forward(ref, r, BETA), o.ForwardKLDPO, BETA),
        row(
            "JensenShannonDPO", "ref e^s/(2 - e^s)", shannon(ref, r, BETA), o.JensenShannonDPO, BETA
        ),
        row(
            "AlphaDivergenceDPO", "ref (1 - a s)^(-1/a)", alpha, o.AlphaDivergenceDPO, BETA, _ALPHA
        ),
        edges("LengthDesensitizedDPO", equations, spanning, loss, BETA, _ALPHA),
    ]


def margin_cases() -> list[PreferenceCase]:
    """Completions compared along a chain, so that each pair's margin can be met."""
    world, edges = bandit(), data.chain(bandit())
    ref, uniform = world.reference, torch.ones_like(world.reference)
    p = torch.stack([data.preference_probabilities(world)[i, j] for i, j in edges])
    pairs = data.rated_pairs(world, edges=edges)
    row, slow = rows_on(world, pairs), rows_on(world, pairs, training="descend", rate=0.05)
    far, near = (
        targets.descent_margin(partial(stationarity.discopop_slope, temperature=tau), p) / BETA
        for tau in (0.5, 0.05)
    )
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
