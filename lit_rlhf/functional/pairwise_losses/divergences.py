r"""f-DPO: the implicit reward of each divergence (layer L1).

For a penalty $\beta D_f(\pi \| \pi_{ref})$ the implicit reward is $\beta f'(\pi/\pi_{ref})$ (arXiv:2309.16240). The
functions map the log-ratio u to $f'(e^u)$; `dpo_loss` of the mapped log-ratios is the f-DPO loss.
"""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from lit_rlhf.functional.numerics import bounded_exp


def reverse_kl_score(logratios: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""$f'(e^u) = u + 1$ of the reverse KL, $f(t) = t\log t$: f-DPO is DPO."""
    return logratios + 1


def forward_kl_score(logratios: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""$f'(e^u) = -e^{-u}$ of the forward KL, $f(t) = -\log t$.

    Below u = -30 it goes on as a straight line, so that loss and gradient stay finite.
    """
    return -bounded_exp(-logratios)


def jensen_shannon_score(logratios: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""$f'(e^u) = \log\frac{2e^u}{1 + e^u}$ of the Jensen-Shannon divergence.

    Example:
        >>> import torch
        >>> jensen_shannon_score(torch.tensor([0.0])).item()
        0.0
    """
    return math.log(2) - softplus(-logratios)


def alpha_divergence_score(
    logratios: Float[Tensor, "*shape"], alpha: float = 0.5
) -> Float[Tensor, "*shape"]:
    r"""$f'(e^u) = (1 - e^{-\alpha u})/\alpha$ of the alpha divergence.

    Args:
        logratios: u.
        alpha: In (0, 1); towards 0 the reverse KL, at 1 the forward KL.
    """
    return (1 - bounded_exp(-alpha * logratios)) / alpha
