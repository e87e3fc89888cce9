r"""Pairwise losses without a reference. Notation: $l(y) = \log\pi(y|x)$ summed over tokens, n = their number."""

from torch import Tensor

from lit_rlhf.functional.pairwise_losses import (
    alpha_reward,
    alphapo_loss,
    cpo_loss,
    log_odds,
    orpo_loss,
    simpo_loss,
    slic_loss,
)
from lit_rlhf.objectives.pairwise.base import Completion, Pairs, ReferenceFreeLoss
from lit_rlhf.objectives.preference import require_positive, require_within


class SimPO(ReferenceFreeLoss):
    r"""$-\log\sigma(\beta(l_w/n_w - l_l/n_l) - \gamma)$ (SimPO, arXiv:2405.14734).

    Args:
        beta: Scale of the length-normalised reward; 2.0 to 2.5 in the paper, up to 10.
        gamma: Margin, in units of reward; the authors' README starts at $\gamma/\beta = 0.5$, hence 1.0.
    """

    def __init__(self, beta: float = 2.0, gamma: float = 1.0) -> None:
        super().__init__(beta)
        self.gamma = gamma

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        w, l = pairs.chosen, pairs.rejected  # noqa: E741 - as in the equation
        return simpo_loss(w.logprobs, l.logprobs, w.lengths, l.lengths, self.beta, self.gamma)


class AlphaPO(ReferenceFreeLoss):
    r"""SimPO with reward $(1 - p^{-\alpha})/\alpha$, $p = e^{l/n}$ (AlphaPO, arXiv:2501.03884).

    Args:
        beta: Scale of the reward; as in SimPO (the paper tunes it per model).
        gamma: Margin, in units of reward; as beta.
        alpha: Shape of the reward; 0.25 in the paper, 0 is SimPO.
    """

    def __init__(self, beta: float = 2.0, gamma: float = 1.0, alpha: float = 0.25) -> None:
        super().__init__(beta)
        self.gamma = gamma
        self.alpha = alpha

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        w, l = pairs.chosen, pairs.rejected  # noqa: E741
        return alphapo_loss(
            w.logprobs, l.logprobs, w.lengths, l.lengths, self.beta, self.gamma, self.alpha
        )

    def reward(self, completion: Completion) -> Tensor:
        """Beta times the shaped reward."""
        return self.beta * alpha_reward(completion.mean_logprobs, self.alpha)


class CPO(ReferenceFreeLoss):
    r"""$-\log\sigma(\beta(l_w - l_l)) + \alpha\,NLL(y_w)$ (CPO, arXiv:2401.08417).

    Args:
        beta: Scale of the preference term; 0.1 in the paper.
        alpha: Weight of the likelihood; 1 in the paper.
        length_normalize: NLL per token, as TRL's (there over the batch's tokens), or summed as in the paper.
    """

    def __init__(
        self, beta: float = 0.1, alpha: float = 1.0, length_normalize: bool = True
    ) -> None:
        super().__init__(beta)
        require_within(self, 0, float("inf"), alpha=alpha)
        self.alpha = alpha
        self.length_normalize = length_normalize

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        nll = -(pairs.chosen.mean_logprobs if self.length_normalize else pairs.chosen.logprobs)
        return cpo_loss(pairs.chosen.logprobs, pairs.rejected.logprobs, nll, self.beta, self.alpha)

    def reward(self, completion: Completion) -> Tensor:
        """Beta times the summed log-probs."""
        return self.beta * completion.logprobs


class ORPO(ReferenceFreeLoss):
    r"""$-\frac{l_w}{n_w} - \lambda\log\sigma(\log\frac{odds(y_w)}{odds(y_l)})$, $P = e^{l/n}$ (ORPO, arXiv:2403.07691).

    The likelihood is of the completion alone; the authors' code and TRL take in the prompt. Wants a rate of 5e-6 to
    8e-6.

    Args:
        weight: $\lambda$; 0.1 in the paper (TRL calls it beta).
    """

    def __init__(self, weight: float = 0.1) -> None:
        require_positive(self, weight=weight)
        super().__init__(weight)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        w, l = pairs.chosen, pairs.rejected  # noqa: E741
        return orpo_loss(w.logprobs, l.logprobs, w.lengths, l.lengths, self.beta)

    def reward(self, completion: Completion) -> Tensor:
        r"""$\lambda$ times the log-odds."""
        return self.beta * log_odds(completion.mean_logprobs)


class SLiC(ReferenceFreeLoss):
    r"""$\max(0, \delta - l_w + l_l) + \lambda\,NLL(y_w)$ (SLiC-HF, arXiv:2305.10425).

    The hinge has no reference. The paper's likelihood is of the SFT target; pairs have none, so it is of the chosen
    one.

    Args:
        margin: $\delta$ in nats; 1 in the paper and HALOs.
        weight: $\lambda$; 0.1 in HALOs, 0 leaves the hinge alone.
    """

    def __init__(self, margin: float = 1.0, weight: float = 0.1) -> None:
        super().__init__(1.0)
        require_positive(self, margin=margin)
        require_within(self, 0, float("inf"), weight=weight)
        self.margin = margin
        self.weight = weight

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        w, l = pairs.chosen, pairs.rejected  # noqa: E741
        return slic_loss(w.logprobs, l.logprobs, -w.logprobs, self.margin, self.weight)

    def reward(self, completion: Completion) -> Tensor:
        """The summed log-probs, whose margin the hinge looks at."""
        return completion.logprobs
