r"""Pairwise losses with another link than the logistic (layer L1).

Notation as in `logistic`: u = log-ratio of a completion to the reference, h = u_w - u_l, z = beta * h.
"""

import math

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from lit_rlhf.functional.numerics import bounded_exp, per_token

Pairs = Float[Tensor, " pairs"]
Lengths = Int[Tensor, " pairs"]


def ipo_loss(chosen: Pairs, rejected: Pairs, tau: float = 0.1) -> Pairs:
    r"""$(h - \frac{1}{2\tau})^2$ with log-probs summed over tokens (IPO as in the paper, arXiv:2310.12036).

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        tau: Strength of the KL penalty to the reference; smaller asks for larger margins.

    Example:
        >>> import torch
        >>> ipo_loss(torch.tensor([0.0]), torch.tensor([0.0]), tau=0.5).item()
        1.0
    """
    return (chosen - rejected - 1 / (2 * tau)).square()


def ipo_mean_loss(
    chosen: Pairs,
    rejected: Pairs,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    tau: float = 0.1,
) -> Pairs:
    r"""$(u_w/n_w - u_l/n_l - \frac{1}{2\tau})^2$: IPO of log-probs averaged over tokens, as TRL and HALOs have it.

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        chosen_lengths: Tokens of the chosen completions.
        rejected_lengths: Tokens of the rejected ones.
        tau: As in `ipo_loss`, but per token: the same number means a far stronger pull away from the reference.
    """
    return ipo_loss(per_token(chosen, chosen_lengths), per_token(rejected, rejected_lengths), tau)


def rso_hinge_loss(chosen: Pairs, rejected: Pairs, gamma: float = 0.05) -> Pairs:
    r"""$\max(0, 1 - \gamma h)$ (the normalised hinge of RSO, arXiv:2309.06657).

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        gamma: Inverse of the margin asked for.
    """
    return (1 - gamma * (chosen - rejected)).clamp_min(0)


def gpo_exponential_loss(chosen: Pairs, rejected: Pairs, beta: float = 0.1) -> Pairs:
    r"""$e^{-\beta h}$ (GPO with the exponential link, arXiv:2402.05749); above e^30 it goes on as a straight line.

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        beta: Strength of the KL penalty; acts as twice DPO's beta.
    """
    return bounded_exp(-beta * (chosen - rejected))


def gpo_savage_loss(chosen: Pairs, rejected: Pairs, beta: float = 0.1) -> Pairs:
    r"""$(1 + e^{\beta h})^{-2}$ (GPO with Savage's link, arXiv:2402.05749); bounded, so outliers can't dominate.

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        beta: Strength of the KL penalty to the reference.
    """
    return (-beta * (chosen - rejected)).sigmoid().square()


def gpo_squared_loss(chosen: Pairs, rejected: Pairs, beta: float = 0.1) -> Pairs:
    r"""$(1 - \beta h)^2$ (GPO with the squared link, arXiv:2402.05749); has the optimum of IPO with $\tau = \beta/2$.

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        beta: Strength of the KL penalty to the reference.
    """
    return (1 - beta * (chosen - rejected)).square()


def exo_loss(
    chosen: Pairs, rejected: Pairs, beta: float = 0.1, label_smoothing: float = 1e-3
) -> Pairs:
    r"""$q\log\frac{q}{1-\epsilon} + (1-q)\log\frac{1-q}{\epsilon}$ with $q = \sigma(\beta h)$.

    EXO-pref, arXiv:2402.00856: the KL divergence of the policy's preference from the smoothed label: the reverse of
    cDPO's.

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        beta: Strength of the KL penalty to the reference.
        label_smoothing: $\epsilon$ in (0, 0.5); at 0 the loss would be infinite.
    """
    z = beta * (chosen - rejected)
    agree = z.sigmoid() * (logsigmoid(z) - math.log1p(-label_smoothing))
    return agree + (-z).sigmoid() * (logsigmoid(-z) - math.log(label_smoothing))


def discopop_loss(
    chosen: Pairs, rejected: Pairs, beta: float = 0.05, temperature: float = 0.05
) -> Pairs:
    r"""$(1-m)\log(1+e^{-z}) + m\,e^{-z}$ with $z = \beta h$, $m = \sigma(z/\tau)$ (DiscoPOP, arXiv:2406.08414).

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        beta: Strength of the KL penalty to the reference.
        temperature: $\tau < 1$, width of the passage from the logistic (z < 0) to the exponential link (z > 0).
    """
    z = beta * (chosen - rejected)
    modulation = z / temperature
    # m * e^-z in logs: for z -> -inf the factors are 0 and infinite, their product is 0.
    exponential = (logsigmoid(modulation) - z).exp()
    return (-modulation).sigmoid() * softplus(-z) + exponential
