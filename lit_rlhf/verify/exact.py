r"""Methods whose optimum is exactly $\pi^* = \pi_{ref}e^{r/\beta}/Z$."""

from functools import partial

from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.verify import populations as data, targets
from lit_rlhf.verify.preference import MakeLoss, PreferenceCase
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree

PI_STAR = "pi* = ref exp(r/beta)"


def optimum(world: TabularWorld) -> Tensor:
    r"""$\pi^*$ of the world's rewards at `BETA`."""
    return targets.tilted(world.reference, world.rewards / BETA)


def exact_cases() -> list[PreferenceCase]:
    """Pairs on the tree, then what needs other data."""
    world, star = tree(), optimum(tree())
    pairs = data.rated_pairs(world)
    smooth: dict[str, MakeLoss] = {
        "DPO": partial(o.DPO, BETA),
        "ReverseKLDPO": partial(o.ReverseKLDPO, BETA),
        "SavageGPO": partial(o.SavageGPO, BETA),
    }
    stopped: dict[str, MakeLoss] = {
        "WPO": partial(o.WPO, BETA),
        "BetaDPO (drop=0)": partial(o.BetaDPO, BETA, drop=0.0),
    }
    return [
        *(PreferenceCase(name, PI_STAR, world, loss, pairs, star) for name, loss in smooth.items()),
        *(
            PreferenceCase(name, PI_STAR, world, loss, pairs, star, training="follow")
            for name, loss in stopped.items()
        ),
        *_flat_cases(),
        *_other_data_cases(world, star),
    ]


def _flat_cases() -> list[PreferenceCase]:
    """On the bandit, where the divergences of both completions are the same state's; and sorted batches of one."""
    flat, few = bandit(), bandit(3)
    sorted_losses: dict[str, MakeLoss] = {
        "AOT (batches of one)": partial(o.AOT, BETA),
        "UnpairedAOT (batches of one)": partial(o.UnpairedAOT, BETA),
    }
    few_pairs = data.rated_pairs(few)
    return [
        PreferenceCase(
            "TDPO1 (bandit)",
            PI_STAR,
            flat,
            partial(o.TDPO1, BETA),
            data.rated_pairs(flat),
            optimum(flat),
        ),
        *(
            PreferenceCase(name, PI_STAR, few, loss, few_pairs, optimum(few), by_row=True)
            for name, loss in sorted_losses.items()
        ),
        PreferenceCase(
            "PlackettLuceDPO",
            PI_STAR,
            flat,
            partial(o.PlackettLuceDPO, BETA),
            data.rankings(flat, 3),
            optimum(flat),
        ),
    ]


def _other_data_cases(world: TabularWorld, star: Tensor) -> list[PreferenceCase]:
    flipped, labels = (
        data.rated_pairs(world, flip=0.15),
        data.binary_labels(world, (world.rewards - 0.3).sigmoid()),
    )
    shifted = partial(o.BCO, BETA, learn_shift=True)
    return [
        PreferenceCase(
            "SoftLabelDPO",
            PI_STAR,
            world,
            partial(o.SoftLabelDPO, BETA),
            data.soft_pairs(world),
            star,
        ),
        PreferenceCase(
            "RobustDPO", PI_STAR, world, partial(o.RobustDPO, BETA, 0.15), flipped, star
        ),
        PreferenceCase(
            "DROV",
            PI_STAR,
            world,
            partial(o.DROV, BETA),
            data.scalar_scores(world),
            star,
            training="follow",
        ),
        PreferenceCase("BCO (learned shift)", PI_STAR, world, shifted, labels, star),
        PreferenceCase(
            "InfoNCA", PI_STAR, world, partial(o.InfoNCA, BETA), data.scored_list(world), star
        ),
        PreferenceCase(
            "LiPOLambda (pairs)",
            PI_STAR,
            world,
            partial(o.LiPOLambda, BETA),
            data.scored_pairs(world),
            star,
        ),
    ]
