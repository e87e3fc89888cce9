r"""Stationarity conditions of losses over two completions, derived by hand.

Each is $dE[L]/dx$ at the logit $x = \log\pi_1/\pi_2$. The first completion is preferred with probability p. $\pi_1 =
\sigma(x)$, $u_k = \log\pi_k/\pi_{ref,k}$, so $du_1/dx = \pi_2$, $du_2/dx = -\pi_1$, and $h = u_1 - u_2 = x - x_0$ has
slope 1. Divide a condition by what you like that is
positive: only its root counts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TwoCompletions:
    r"""Quantities at a logit.

    Attributes:
        x: $\log\pi_1/\pi_2$, (1,).
        reference: (2,).
        p: Probability that the first is preferred.
    """

    x: Tensor
    reference: Tensor
    p: Tensor

    @property
    def pi1(self) -> Tensor:
        """Probability of the first."""
        return self.x.sigmoid()

    @property
    def pi2(self) -> Tensor:
        """Probability of the second."""
        return (-self.x).sigmoid()

    @property
    def u1(self) -> Tensor:
        """Log-ratio of the first."""
        return torch.nn.functional.logsigmoid(self.x) - self.reference[0].log()

    @property
    def u2(self) -> Tensor:
        """Log-ratio of the second."""
        return torch.nn.functional.logsigmoid(-self.x) - self.reference[1].log()

    @property
    def h(self) -> Tensor:
        """Difference of the log-ratios."""
        return self.u1 - self.u2


def dpo_and_nll(s: TwoCompletions, beta: float, alpha: float) -> Tensor:
    r"""RPO: $-\beta(p - \sigma(\beta h)) - \alpha(p - \pi_1)$; the likelihood alone would stop at $\pi_1 = p$."""
    return -beta * (s.p - (beta * s.h).sigmoid()) - alpha * (s.p - s.pi1)


def cpo(s: TwoCompletions, beta: float, alpha: float) -> Tensor:
    r"""CPO: as RPO with $l_1 - l_2 = x$ in place of h."""
    return -beta * (s.p - (beta * s.x).sigmoid()) - alpha * (s.p - s.pi1)


def orpo(s: TwoCompletions, weight: float) -> Tensor:
    r"""ORPO: the log-odds of $\pi_1$ are x and of $\pi_2$ -x, so $-(p - \pi_1) - 2\lambda(p - \sigma(2x))$."""
    return -(s.p - s.pi1) - 2 * weight * (s.p - (2 * s.x).sigmoid())


def pro(s: TwoCompletions, gap: float, sft_weight: float) -> Tensor:
    r"""PRO of two completions: $\log(1 + e^{-d(l_1 - l_2)})$ and the likelihood of the better one."""
    return -gap * (s.p - (gap * s.x).sigmoid()) - sft_weight * (s.p - s.pi1)


def rrhf(s: TwoCompletions, weight: float) -> Tensor:
    r"""RRHF above x = 0: the hinge pushes only where the rater preferred the less likely one, by $w(1 - p)$."""
    return weight * (1 - s.p) - (s.p - s.pi1)


def dpop(s: TwoCompletions, beta: float, penalty: float) -> Tensor:
    r"""DPOP above $x_0$, where only $u_2 < 0$: the second's win has $z_2 = \beta(-h + \lambda u_2)$."""
    z2 = beta * (-s.h + penalty * s.u2)
    return -s.p * (-beta * s.h).sigmoid() + (1 - s.p) * (-z2).sigmoid() * (1 + penalty * s.pi1)


def cal_dpo(s: TwoCompletions, beta: float) -> Tensor:
    r"""Cal-DPO: $-(p - \sigma(h)) + (u_1 - c)\pi_2 - (u_2 + c)\pi_1$ with $c = (2p - 1)/2\beta$, the mean target."""
    c = (2 * s.p - 1) / (2 * beta)
    return -(s.p - s.h.sigmoid()) + (s.u1 - c) * s.pi2 - (s.u2 + c) * s.pi1


def tdpo2(s: TwoCompletions, beta: float, alpha: float) -> Tensor:
    r"""TDPO2: both share D, whose slope is $\pi_1 - \pi_{ref,1}$; its value cancels, the sg keeps its slope.

    $-(p - \sigma(\beta h)) + \alpha(\pi_1 - \pi_{ref,1})(p\,\sigma(-\beta h) + (1-p)\,\sigma(\beta h))$.
    """
    z = beta * s.h
    pull = alpha * (s.pi1 - s.reference[0]) * (s.p * (-z).sigmoid() + (1 - s.p) * z.sigmoid())
    return -(s.p - z.sigmoid()) + pull


def discopop_slope(z: Tensor, temperature: float) -> Tensor:
    r"""$\phi'$ of $\phi = (1-m)\log(1+e^{-z}) + m e^{-z}$, $m = \sigma(z/\tau)$, $m' = m(1-m)/\tau$."""
    m = (z / temperature).sigmoid()
    rise = m * (1 - m) / temperature * ((-z).exp() - torch.nn.functional.softplus(-z))
    return rise - (1 - m) * (-z).sigmoid() - m * (-z).exp()
