"""Methods whose optimum over two completions is the root of one equation, or a corner."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.verify import populations as data, stationarity as by_hand, targets
from lit_rlhf.verify.preference import MakeLoss, PreferenceCase
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.stationarity import TwoCompletions
from lit_rlhf.verify.tabular import bandit

_ROOT = "root of dE/dx, 2 completions"


def two_completion_cases() -> list[PreferenceCase]:
    """Smooth losses with a term that no policy over more completions satisfies in closed form."""
    world = bandit(2)
    pairs = data.rated_pairs(world, edges=[(0, 1)])
    both = partial(o.WeightedSum, [o.DPO(BETA), o.NLL()], [1.0, 0.5])
    rows: list[tuple[str, MakeLoss, Tensor]] = [
        (
            "RPO",
            partial(o.RPO, BETA, 0.5),
            _root(partial(by_hand.dpo_and_nll, beta=BETA, alpha=0.5)),
        ),
        (
            "WeightedSum (DPO + NLL)",
            both,
            _root(partial(by_hand.dpo_and_nll, beta=BETA, alpha=0.5)),
        ),
        ("CPO", partial(o.CPO, BETA, 0.5), _root(partial(by_hand.cpo, beta=BETA, alpha=0.5))),
        ("ORPO", partial(o.ORPO, 0.5), _root(partial(by_hand.orpo, weight=0.5))),
        ("CalDPO", partial(o.CalDPO, BETA), _root(partial(by_hand.cal_dpo, beta=BETA))),
        ("DPOP", partial(o.DPOP, BETA, 1.0), _root(partial(by_hand.dpop, beta=BETA, penalty=1.0))),
    ]
    gap = data.scored_pairs(world, 0.8, edges=[(0, 1)])
    pro = _root(partial(by_hand.pro, gap=0.8, sft_weight=0.3))
    rrhf = _root(partial(by_hand.rrhf, weight=0.5))
    tdpo2 = _root(partial(by_hand.tdpo2, beta=BETA, alpha=0.5))
    return [
        *(PreferenceCase(name, _ROOT, world, loss, pairs, best) for name, loss, best in rows),
        PreferenceCase(
            "TDPO2", _ROOT, world, partial(o.TDPO2, BETA), pairs, tdpo2, training="follow"
        ),
        PreferenceCase("PRO", _ROOT, world, partial(o.PRO, 0.3), gap, pro),
        PreferenceCase("RRHF", _ROOT, world, partial(o.RRHF, rank_weight=0.5), gap, rrhf),
    ]


def corner_cases() -> list[PreferenceCase]:
    """Hinges: whatever the raters' certainty, the margin is the one asked for."""
    world = bandit(2)
    pairs = data.rated_pairs(world, edges=[(0, 1)])
    margin = torch.tensor([1.0], dtype=torch.float64)
    hinge = partial(PreferenceCase, world=world, population=pairs, training="descend", kink=True)
    return [
        hinge(
            "RSOHinge",
            "h = 1/gamma",
            make_loss=partial(o.RSOHinge, 0.8),
            optimum=targets.from_margins(world.reference, margin / 0.8),
        ),
        hinge(
            "SLiC",
            "l_w - l_l = delta",
            make_loss=o.SLiC,
            optimum=targets.from_margins(torch.ones(2).double(), margin),
        ),
    ]


def _root(condition: Callable[[TwoCompletions], Tensor]) -> Tensor:
    world = bandit(2)
    p = data.preference_probabilities(world)[0, 1]
    return targets.two_completions(lambda x: condition(TwoCompletions(x, world.reference, p)))
