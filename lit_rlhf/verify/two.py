"""Methods whose optimum over two completions is the root of one equation, or a corner."""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.verify import populations as data, stationarity as by_hand, targets
from lit_rlhf.verify.preference import PreferenceCase, rows_on
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.stationarity import TwoCompletions
from lit_rlhf.verify.tabular import bandit

_ROOT = "root of dE/dx, 2 completions"


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
        row("RPO", _ROOT, both, o.RPO, BETA, 0.5),
        row("WeightedSum (DPO + NLL)", _ROOT, both, o.WeightedSum, parts, [1.0, 0.5]),
        row("CPO", _ROOT, _root(by_hand.cpo, beta=BETA, alpha=0.5), o.CPO, BETA, 0.5),
        row("ORPO", _ROOT, _root(by_hand.orpo, weight=0.5), o.ORPO, 0.5),
        row("CalDPO", _ROOT, cal, o.CalDPO, BETA),
        row("DPOP", _ROOT, dpop, o.DPOP, BETA, 1.0),
        rows_on(world, pairs, training="follow")("TDPO2", _ROOT, tdpo2, o.TDPO2, BETA),
        scored("PRO", _ROOT, pro, o.PRO, 0.3),
        scored("RRHF", _ROOT, _root(by_hand.rrhf, weight=0.5), o.RRHF, rank_weight=0.5),
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
    return targets.two_completions(
        lambda x: condition(TwoCompletions(x, world.reference, p), **options)
    )
