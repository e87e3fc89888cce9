r"""Alignment via optimal transport: losses of sorted batches (layer L1; AOT, arXiv:2406.05882).

First-order stochastic dominance of one distribution over another asks for dominance quantile by quantile, so both sides
are sorted before they are compared. The loss depends on the batch: sort over the global batch.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

Pairs = Float[Tensor, " pairs"]


def aot_loss(margins: Pairs, ref_margins: Pairs, beta: float = 0.01) -> Pairs:
    r"""$-\log\sigma(\beta(\mathrm{sort}(l_w - l_l) - \mathrm{sort}(l^{ref}_w - l^{ref}_l)))$: AOT of paired data.

    Args:
        margins: $l_w - l_l$ of the policy's summed log-probs, of the whole global batch.
        ref_margins: The same of the reference's.
        beta: Strength of the penalty.

    Returns:
        Losses by rank, smallest margin first; not in the order of the batch.
    """
    return softplus(-beta * (margins.sort().values - ref_margins.sort().values))


def aot_unpaired_loss(chosen: Pairs, rejected: Pairs, beta: float = 0.01) -> Pairs:
    r"""$-\log\sigma(\beta(\mathrm{sort}(u_w) - \mathrm{sort}(u_l)))$: AOT where chosen and rejected need not be paired.

    Args:
        chosen: Log-ratios of the chosen completions of the whole global batch.
        rejected: Log-ratios of the rejected ones.
        beta: Strength of the penalty.

    Returns:
        Losses by rank, smallest log-ratio first; not in the order of the batch.
    """
    return softplus(-beta * (chosen.sort().values - rejected.sort().values))
