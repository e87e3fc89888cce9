r"""Losses that hold each completion of a pair to a place of its own. Notation as in `logistic`."""

import torch
from torch.nn.functional import softplus

from lit_rlhf.functional.shapes import Rows
from lit_rlhf.objectives.preference import Completion, PairwiseLoss
from lit_rlhf.objectives.running import RunningMean


class NCAPair(PairwiseLoss):
    r"""$-\log\sigma(\beta u_w) - \frac12\log\sigma(-\beta u_w) - \frac12\log\sigma(-\beta u_l)$.

    Noise contrastive alignment of pairs, arXiv:2402.05369.

    Args:
        beta: Strength of the KL penalty; 0.01 in the paper.
    """

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__(beta)

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        zw, zl = self.beta * chosen.logratios, self.beta * rejected.logratios
        return softplus(-zw) + 0.5 * softplus(zw) + 0.5 * softplus(zl)


class BCOPair(PairwiseLoss):
    r"""$-\log\sigma(\beta u_w - \delta) - \log\sigma(-(\beta u_l - \delta))$ (BCO on pairs, arXiv:2404.04656).

    $\delta$ is the mean of $\beta u$ over all chosen and rejected completions trained on so far (all processes); it
    moves in training only and is saved. TRL 1.x has lost it.

    Args:
        beta: Strength of the KL penalty; 0.01 in the paper.
    """

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__(beta)
        self.shift = RunningMean()

    def forward(
        self, chosen: Completion, rejected: Completion, *, weight: Rows | None = None
    ) -> Rows:
        """`weight` is that of each pair in the running mean."""
        zw, zl = self.beta * chosen.logratios, self.beta * rejected.logratios
        if self.training:
            weights = None if weight is None else torch.cat([weight, weight])
            self.shift.update(torch.cat([zw, zl]), weights)
        return softplus(-(zw - self.shift.mean)) + softplus(zl - self.shift.mean)


class APOZero(PairwiseLoss):
    r"""$1 - \sigma(\beta u_w) + \sigma(\beta u_l)$: chosen up, rejected down (APO-zero, arXiv:2408.06266).

    Args:
        beta: Strength of the KL penalty; 0.1 in the paper.
    """

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        zw, zl = self.beta * chosen.logratios, self.beta * rejected.logratios
        return (-zw).sigmoid() + zl.sigmoid()


class APODown(PairwiseLoss):
    r"""$\sigma(\beta u_w) + 1 - \sigma(\beta h)$: both down, rejected more (APO-down, arXiv:2408.06266).

    For data whose chosen completions, too, are worse than the model's own.

    Args:
        beta: Strength of the KL penalty; 0.1 in the paper.
    """

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        h = chosen.logratios - rejected.logratios
        return (self.beta * chosen.logratios).sigmoid() + (-self.beta * h).sigmoid()


class CalDPO(PairwiseLoss):
    r"""$-\log\sigma(h) + \frac12[(u_w - \frac1{2\beta})^2 + (u_l + \frac1{2\beta})^2]$ (Cal-DPO, arXiv:2412.14516).

    Args:
        beta: Log-ratios are pulled to $\pm\frac1{2\beta}$; 1e-3 in the authors' code, where DPO's own beta is 1.
    """

    def __init__(self, beta: float = 1e-3) -> None:
        super().__init__(beta)

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        uw, ul, target = chosen.logratios, rejected.logratios, 0.5 / self.beta
        return softplus(-(uw - ul)) + 0.5 * ((uw - target).square() + (ul + target).square())


class SPPO(PairwiseLoss):
    r"""$\frac12[(u_w - \eta(p-\frac12))^2 + (u_l - \eta(\frac12-p))^2]$, $\eta = 1/\beta$ (SPPO, arXiv:2405.00675).

    The log-ratio regressed on the win rate, in place of $\log Z$ the constant $\eta/2$: the multiplicative-weights step
    for small $\eta$ alone. The reference is the last iteration's policy. p is the column `p_chosen` where there is one,
    else 1 (the paper's hard form).

    Args:
        beta: $1/\eta$; 1e-3 in the paper.
    """

    def __init__(self, beta: float = 1e-3) -> None:
        super().__init__(beta)

    def forward(
        self, chosen: Completion, rejected: Completion, *, p_chosen: Rows | float = 1.0
    ) -> Rows:
        """`p_chosen` is the probability that the chosen completion wins."""
        target = (p_chosen - 0.5) / self.beta
        uw, ul = chosen.logratios, rejected.logratios
        return 0.5 * ((uw - target).square() + (ul + target).square())
