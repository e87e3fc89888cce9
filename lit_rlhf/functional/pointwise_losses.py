r"""Losses of single labelled completions (layer L1): pure, unreduced.

Notation: $u = \log\pi(y|x) - \log\pi_{ref}(y|x)$ of a whole completion; a label says whether it is desirable.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

Examples = Float[Tensor, " examples"]
Labels = Bool[Tensor, " examples"]


def kto_loss(
    logratios: Examples,
    labels: Labels,
    reference_point: float | Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Examples:
    r"""$\lambda_D(1 - \sigma(\beta u - \beta z_0))$ if desirable, $\lambda_U(1 - \sigma(\beta z_0 - \beta u))$ if not.

    Kahneman-Tversky optimization, arXiv:2402.01306.

    Args:
        logratios: u.
        labels: Whether each completion is desirable.
        reference_point: $z_0$, see `kto_reference_point`.
        beta: Strength of the KL penalty to the reference.
        desirable_weight: $\lambda_D$.
        undesirable_weight: $\lambda_U$; the paper wants $\lambda_D n_D : \lambda_U n_U$ within 1:1 to 4:3.

    Example:
        >>> kto_loss(torch.zeros(2), torch.tensor([True, False]), 0.0).tolist()
        [0.5, 0.5]
    """
    z = beta * (logratios - reference_point)
    return torch.where(labels, desirable_weight * (-z).sigmoid(), undesirable_weight * z.sigmoid())


def kto_reference_point(total: Float[Tensor, ""], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    r"""$z_0 = \max(0, \mathrm{sg}\,\frac1m\sum_j u(x_j, y'_j))$ with y' the completion of another prompt.

    KTO, arXiv:2402.01306. An estimate of $KL(\pi\|\pi_{ref})$; 0 where there is nothing to average.

    Args:
        total: Sum of the mismatched completions' log-ratios, over all ranks.
        count: Their number, over all ranks.
    """
    return (total / count.clamp_min(torch.finfo(count.dtype).tiny)).detach().clamp_min(0)


def bco_loss(
    logratios: Examples, labels: Labels, shift: float | Tensor = 0.0, beta: float = 0.01
) -> Examples:
    r"""$-\log\sigma(\beta u - \delta)$ if desirable, $-\log\sigma(-(\beta u - \delta))$ if not (BCO, arXiv:2404.04656).

    A binary classifier whose logit is the implicit reward. Its optimum is that of RLHF if labels follow
    $\sigma(r - c)$ and $\delta$ is free; with $\delta$ the running mean of $\beta u$, as in the paper, it is not.

    Args:
        logratios: u.
        labels: Whether each completion is desirable.
        shift: $\delta$.
        beta: Strength of the KL penalty to the reference.
    """
    z = beta * logratios - shift
    return torch.where(labels, softplus(-z), softplus(z))


def apo_zero_unpaired_loss(logratios: Examples, labels: Labels, beta: float = 0.1) -> Examples:
    r"""$1 - \sigma(\beta u)$ if desirable, $\sigma(\beta u)$ if not (APO-zero without pairs, arXiv:2408.06266).

    Args:
        logratios: u.
        labels: Whether each completion is desirable.
        beta: Strength of the KL penalty to the reference.
    """
    z = beta * logratios
    return torch.where(labels, (-z).sigmoid(), z.sigmoid())


def dro_v_loss(
    logratios: Examples, scores: Examples, values: Examples, tau: float = 1.0
) -> Examples:
    r"""$\frac12(r - V(x) - \tau u)^2$ (DRO-V, arXiv:2405.19107).

    Log-ratios are sums over tokens. Policy and value must not share parameters that both move, or one fits the other's
    residual.

    Args:
        logratios: u.
        scores: r, a scalar reward of each completion.
        values: $V(x)$, learned along.
        tau: Strength of the KL penalty to the reference.
    """
    return 0.5 * (scores - values - tau * logratios).square()


def npo_loss(logratios: Examples, beta: float = 0.1) -> Examples:
    r"""$-\frac2\beta\log\sigma(-\beta u)$ (negative preference optimization, arXiv:2404.05868).

    Unlearning: as beta goes to 0 it becomes gradient ascent on the likelihood. Unbounded drift without a term that
        retains.

    Args:
        logratios: u of completions to unlearn.
        beta: How soon the push fades as a completion becomes less likely than under the reference.
    """
    return 2 / beta * softplus(beta * logratios)
