r"""f-DPO: DPO under other divergences than the reverse KL (arXiv:2309.16240)."""

from abc import abstractmethod

from torch import Tensor

from lit_rlhf.functional.pairwise_losses import (
    alpha_divergence_score,
    dpo_loss,
    forward_kl_score,
    jensen_shannon_score,
    reverse_kl_score,
)
from lit_rlhf.objectives.pairwise.base import Completion, Pairs, PairwiseLoss
from lit_rlhf.objectives.preference import require_within


class FDPO(PairwiseLoss):
    r"""Base of $-\log\sigma(\beta f'(e^{u_w}) - \beta f'(e^{u_l}))$ (arXiv:2309.16240): a subclass gives $f'(e^u)$.

    Args:
        beta: Strength of the penalty $\beta D_f(\pi\|\pi_{ref})$; 0.1 in the paper.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    @abstractmethod
    def score(self, logratios: Tensor) -> Tensor:
        """f'(e^u)."""

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return dpo_loss(
            self.score(pairs.chosen.logratios), self.score(pairs.rejected.logratios), self.beta
        )

    def reward(self, completion: Completion) -> Tensor:
        r"""$\beta f'(e^u)$."""
        return self.beta * self.score(completion.logratios)


class ReverseKLDPO(FDPO):
    r"""f-DPO of the reverse KL, $f' = u + 1$: DPO."""

    def score(self, logratios: Tensor) -> Tensor:
        """See the class."""
        return reverse_kl_score(logratios)


class ForwardKLDPO(FDPO):
    r"""f-DPO of the forward KL, $f' = -e^{-u}$; covers all that the reference does, and its gradients are large."""

    def score(self, logratios: Tensor) -> Tensor:
        """See the class."""
        return forward_kl_score(logratios)


class JensenShannonDPO(FDPO):
    r"""f-DPO of the Jensen-Shannon divergence, $f' = \log\frac{2e^u}{1+e^u}$."""

    def score(self, logratios: Tensor) -> Tensor:
        """See the class."""
        return jensen_shannon_score(logratios)


class AlphaDivergenceDPO(FDPO):
    r"""f-DPO of the alpha divergence, $f' = (1 - e^{-\alpha u})/\alpha$.

    Args:
        beta: Strength of the penalty.
        alpha: In (0, 1); towards 0 the reverse KL, 1 would be the forward KL. The paper tries 0.3, 0.5 and 0.7.
    """

    def __init__(self, beta: float = 0.1, alpha: float = 0.5) -> None:
        super().__init__(beta)
        require_within(self, 0, 1, "()", alpha=alpha)
        self.alpha = alpha

    def score(self, logratios: Tensor) -> Tensor:
        """See the class."""
        return alpha_divergence_score(logratios, self.alpha)
