"""Methods under other divergences, and those whose links set margins that no single reward explains."""

from functools import partial

import torch
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.verify import populations as data, stationarity, targets
from lit_rlhf.verify.preference import MakeLoss, PreferenceCase
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.tabular import bandit, tree

_SMOOTHING = 0.15
_GAMMA = 0.6
_ALPHA = 0.4


def divergence_cases() -> list[PreferenceCase]:
    """f-DPO on the tree."""
    world = tree()
    ref, r = world.reference, world.rewards
    rows: list[tuple[str, str, MakeLoss, Tensor]] = [
        (
            "ForwardKLDPO",
            "beta ref/(L - r)",
            partial(o.ForwardKLDPO, BETA),
            targets.forward_kl_optimum(ref, r, BETA),
        ),
        (
            "JensenShannonDPO",
            "ref e^s/(2 - e^s)",
            partial(o.JensenShannonDPO, BETA),
            targets.jensen_shannon_optimum(ref, r, BETA),
        ),
        (
            "AlphaDivergenceDPO",
            "ref (1 - a s)^(-1/a)",
            partial(o.AlphaDivergenceDPO, BETA, _ALPHA),
            targets.alpha_divergence_optimum(ref, r, BETA, _ALPHA),
        ),
    ]
    pairs = data.rated_pairs(world)
    return [PreferenceCase(name, text, world, loss, pairs, best) for name, text, loss, best in rows]


def margin_cases() -> list[PreferenceCase]:
    """Completions compared along a chain, so that each pair's margin can be met."""
    world = bandit()
    edges = data.chain(world)
    p = torch.stack([data.preference_probabilities(world)[i, j] for i, j in edges])
    uniform = torch.ones_like(world.reference)
    disco = [
        targets.from_margins(
            world.reference,
            targets.descent_margin(partial(stationarity.discopop_slope, temperature=tau), p) / BETA,
        )
        for tau in (0.5, 0.05)
    ]
    rows: list[tuple[str, str, MakeLoss, Tensor]] = [
        (
            "ConservativeDPO",
            "margins logit((1-e)p + e(1-p))",
            partial(o.ConservativeDPO, BETA, _SMOOTHING),
            targets.from_margins(world.reference, targets.smoothed_margin(p, _SMOOTHING) / BETA),
        ),
        (
            "EXO",
            "margins (2p-1) logit(1-e)",
            partial(o.EXO, BETA, _SMOOTHING),
            targets.from_margins(
                world.reference, targets.reverse_smoothed_margin(p, _SMOOTHING) / BETA
            ),
        ),
        (
            "DiscoPOP (tau=0.5)",
            "margins p f'(z) = (1-p) f'(-z)",
            partial(o.DiscoPOP, BETA, 0.5),
            disco[0],
        ),
        (
            "SimPO",
            "margins p s(g - z) = (1-p) s(g + z)",
            partial(o.SimPO, BETA, _GAMMA),
            targets.from_margins(uniform, targets.target_margin(p, _GAMMA) / BETA),
        ),
        (
            "AlphaPO",
            "SimPO's margins of (1 - p^-a)/a",
            partial(o.AlphaPO, BETA, _GAMMA, _ALPHA),
            _shaped(targets.target_margin(p, _GAMMA)),
        ),
    ]
    pairs = data.rated_pairs(world, edges=edges)
    valley = PreferenceCase(
        "DiscoPOP",
        "the valley next to z = 0",
        world,
        partial(o.DiscoPOP, BETA),
        pairs,
        disco[1],
        training="descend",
        rate=0.05,
    )
    return [
        *(PreferenceCase(name, text, world, loss, pairs, best) for name, text, loss, best in rows),
        valley,
        _desensitized_case(),
    ]


def _shaped(margins: Tensor) -> Tensor:
    r"""AlphaPO's rewards are f' of the alpha divergence to the constant 1: margins fix them up to L."""
    rewards = torch.cat([margins.new_zeros(1), -margins.cumsum(0)])
    return targets.alpha_divergence_optimum(torch.ones_like(rewards), rewards, BETA, _ALPHA)


def _desensitized_case() -> PreferenceCase:
    world = tree()
    best = targets.desensitized_tree(world.reference, world.rewards, BETA, _ALPHA)
    pairs = data.rated_pairs(world, edges=targets.DESENSITIZED_EDGES)
    loss = partial(o.LengthDesensitizedDPO, BETA, _ALPHA)
    return PreferenceCase(
        "LengthDesensitizedDPO", "equations of a spanning tree", world, loss, pairs, best
    )
