r"""Pairwise losses that hold each completion to a place of its own, not only their difference (layer L1).

Notation as in `logistic`: u = log-ratio of a completion to the reference, w = chosen, l = rejected, h = u_w - u_l.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

Pairs = Float[Tensor, " pairs"]


def nca_pair_loss(chosen: Pairs, rejected: Pairs, beta: float = 0.01) -> Pairs:
    r"""$-\log\sigma(\beta u_w) - \frac12\log\sigma(-\beta u_w) - \frac12\log\sigma(-\beta u_l)$.

    Noise contrastive alignment of pairs, arXiv:2402.05369.

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        beta: Strength of the KL penalty to the reference.
    """
    return (
        softplus(-beta * chosen) + 0.5 * softplus(beta * chosen) + 0.5 * softplus(beta * rejected)
    )


def bco_pair_loss(
    chosen: Pairs, rejected: Pairs, shift: float | Tensor = 0.0, beta: float = 0.01
) -> Pairs:
    r"""$-\log\sigma(\beta u_w - \delta) - \log\sigma(-(\beta u_l - \delta))$ (BCO on pairs, arXiv:2404.04656).

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        shift: $\delta$, the running mean of the implicit rewards $\beta u$ of both.
        beta: Strength of the KL penalty to the reference.
    """
    return softplus(-(beta * chosen - shift)) + softplus(beta * rejected - shift)


def apo_zero_loss(chosen: Pairs, rejected: Pairs, beta: float = 0.1) -> Pairs:
    r"""$1 - \sigma(\beta u_w) + \sigma(\beta u_l)$ (APO-zero, arXiv:2408.06266).

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        beta: Strength of the KL penalty to the reference.
    """
    return (-beta * chosen).sigmoid() + (beta * rejected).sigmoid()


def apo_down_loss(chosen: Pairs, rejected: Pairs, beta: float = 0.1) -> Pairs:
    r"""$\sigma(\beta u_w) + 1 - \sigma(\beta h)$ (APO-down, arXiv:2408.06266).

    For data whose chosen completions, too, are worse than the model's own.

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        beta: Strength of the KL penalty to the reference.
    """
    return (beta * chosen).sigmoid() + (-beta * (chosen - rejected)).sigmoid()


def cal_dpo_loss(chosen: Pairs, rejected: Pairs, beta: float = 1e-3) -> Pairs:
    r"""$-\log\sigma(h) + \frac12[(u_w - \frac{1}{2\beta})^2 + (u_l + \frac{1}{2\beta})^2]$ (Cal-DPO, arXiv:2412.14516).

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        beta: The calibration pulls the log-ratios to $\pm\frac{1}{2\beta}$.
    """
    calibration = (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()
    return softplus(-(chosen - rejected)) + 0.5 * calibration


def sppo_loss(
    chosen: Pairs, rejected: Pairs, p_chosen: Float[Tensor, "..."] | float = 1.0, eta: float = 1e3
) -> Pairs:
    r"""$\frac12[(u_w - \eta(p - \frac12))^2 + (u_l - \eta(\frac12 - p))^2]$ (SPPO, arXiv:2405.00675).

    The log-ratio regressed on the win rate, in place of $\log Z$ the constant $\eta/2$: the multiplicative-weights step
    for small $\eta$ alone.

    Args:
        chosen: Log-ratios, to the last policy, of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        p_chosen: Probability that the chosen completion wins; 1 is the paper's hard form.
        eta: Step size.
    """
    target = eta * (p_chosen - 0.5)
    return 0.5 * ((chosen - target).square() + (rejected + target).square())
