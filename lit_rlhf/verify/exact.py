r"""Methods whose optimum is exactly $\pi^* = \pi_{ref}e^{r/\beta}/Z$."""

from torch import Tensor

from lit_rlhf import objectives as o
from lit_rlhf.verify import populations as data, targets
from lit_rlhf.verify.preference import PreferenceCase, rows_on
from lit_rlhf.verify.runner import BETA
from lit_rlhf.verify.tabular import TabularWorld, bandit, tree

PI_STAR = "pi* = ref exp(r/beta)"


def optimum(world: TabularWorld) -> Tensor:
    r"""$\pi^*$ of the world's rewards at `BETA`."""
    return targets.tilted(world.reference, world.rewards / BETA)


def exact_cases() -> list[PreferenceCase]:
    """Pairs on the tree; then the bandit, where both completions' divergences are one state's; other data."""
    world, flat, few = tree(), bandit(), bandit(3)
    pairs, flipped = data.rated_pairs(world), data.rated_pairs(world, flip=0.15)
    labels = data.binary_labels(world, (world.rewards - 0.3).sigmoid())
    smooth, stopped = rows_on(world, pairs), rows_on(world, pairs, training="follow")
    level, alone = optimum(flat), rows_on(few, data.rated_pairs(few), by_row=True)
    rated, star, of_few = data.scalar_scores(world), optimum(world), optimum(few)
    lists, two = data.scored_list(world), data.scored_pairs(world)
    return [
        smooth("DPO", PI_STAR, star, o.DPO, BETA),
        smooth("ReverseKLDPO", PI_STAR, star, o.ReverseKLDPO, BETA),
        smooth("SavageGPO", PI_STAR, star, o.SavageGPO, BETA),
        stopped("WPO", PI_STAR, star, o.WPO, BETA),
        stopped("BetaDPO (drop=0)", PI_STAR, star, o.BetaDPO, BETA, drop=0.0),
        rows_on(flat, data.rated_pairs(flat))("TDPO1 (bandit)", PI_STAR, level, o.TDPO1, BETA),
        alone("AOT (batches of one)", PI_STAR, of_few, o.AOT, BETA),
        alone("UnpairedAOT (batches of one)", PI_STAR, of_few, o.UnpairedAOT, BETA),
        rows_on(flat, data.rankings(flat, 3))(
            "PlackettLuceDPO", PI_STAR, level, o.PlackettLuceDPO, BETA
        ),
        rows_on(world, data.soft_pairs(world))("SoftLabelDPO", PI_STAR, star, o.SoftLabelDPO, BETA),
        rows_on(world, flipped)("RobustDPO", PI_STAR, star, o.RobustDPO, BETA, 0.15),
        rows_on(world, rated, training="follow")("DROV", PI_STAR, star, o.DROV, BETA),
        rows_on(world, labels)("BCO (learned shift)", PI_STAR, star, o.BCO, BETA, learn_shift=True),
        rows_on(world, lists)("InfoNCA", PI_STAR, star, o.InfoNCA, BETA),
        rows_on(world, two)("LiPOLambda (pairs)", PI_STAR, star, o.LiPOLambda, BETA),
    ]
