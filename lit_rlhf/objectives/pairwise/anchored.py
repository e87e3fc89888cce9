r"""Losses that hold each completion of a pair to a place of its own. Notation as in `logistic`."""

import torch
from torch import Tensor

from lit_rlhf.functional.pairwise_losses import (
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    cal_dpo_loss,
    nca_pair_loss,
    sppo_loss,
)
from lit_rlhf.objectives.pairwise.base import Pairs, PairwiseLoss
from lit_rlhf.objectives.preference import Batch, require_probabilities
from lit_rlhf.objectives.running import RunningMean


class NCAPair(PairwiseLoss):
    r"""$-\log\sigma(\beta u_w) - \frac12\log\sigma(-\beta u_w) - \frac12\log\sigma(-\beta u_l)$.

    Noise contrastive alignment of pairs, arXiv:2402.05369.

    Args:
        beta: Strength of the KL penalty; 0.01 in the paper.
    """

    def __init__(self, beta: float = 0.01) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return nca_pair_loss(pairs.chosen.logratios, pairs.rejected.logratios, self.beta)


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

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        chosen, rejected = pairs.chosen.logratios, pairs.rejected.logratios
        if self.training:
            weights = pairs.batch.get("weight")
            self.shift.update(
                self.beta * torch.cat([chosen, rejected]),
                None if weights is None else torch.cat([weights, weights]),
            )
        return bco_pair_loss(chosen, rejected, self.shift.mean, self.beta)


class APOZero(PairwiseLoss):
    r"""$1 - \sigma(\beta u_w) + \sigma(\beta u_l)$: chosen up, rejected down (APO-zero, arXiv:2408.06266).

    Args:
        beta: Strength of the KL penalty; 0.1 in the paper.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return apo_zero_loss(pairs.chosen.logratios, pairs.rejected.logratios, self.beta)


class APODown(PairwiseLoss):
    r"""$\sigma(\beta u_w) + 1 - \sigma(\beta h)$: both down, rejected more (APO-down, arXiv:2408.06266).

    Args:
        beta: Strength of the KL penalty; 0.1 in the paper.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return apo_down_loss(pairs.chosen.logratios, pairs.rejected.logratios, self.beta)


class CalDPO(PairwiseLoss):
    r"""$-\log\sigma(h) + \frac12[(u_w - \frac1{2\beta})^2 + (u_l + \frac1{2\beta})^2]$ (Cal-DPO, arXiv:2412.14516).

    Args:
        beta: Log-ratios are pulled to $\pm\frac1{2\beta}$; 1e-3 in the authors' code, where DPO's own beta is 1.
    """

    def __init__(self, beta: float = 1e-3) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return cal_dpo_loss(pairs.chosen.logratios, pairs.rejected.logratios, self.beta)


class SPPO(PairwiseLoss):
    r"""$\frac12[(u_w - \eta(p-\frac12))^2 + (u_l - \eta(\frac12-p))^2]$, $\eta = 1/\beta$ (SPPO, arXiv:2405.00675).

    The reference is the last iteration's policy. p is the column `p_chosen` where there is one, else 1 (the paper's
    hard form).

    Args:
        beta: $1/\eta$; 1e-3 in the paper.
    """

    def __init__(self, beta: float = 1e-3) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        p_chosen = pairs.batch.get("p_chosen", 1.0)
        return sppo_loss(pairs.chosen.logratios, pairs.rejected.logratios, p_chosen, 1 / self.beta)

    def check(self, batch: Batch) -> None:
        """`p_chosen`, where given, is in [0, 1]."""
        if "p_chosen" in batch:
            require_probabilities(self, batch, "p_chosen")
