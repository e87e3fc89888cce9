r"""Pairwise losses without a reference. Notation: $l(y) = \log\pi(y|x)$ summed over tokens, n = their number."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from lit_rlhf.functional.numerics import bounded_exp, log1mexp
from lit_rlhf.functional.shapes import Rows
from lit_rlhf.objectives.preference import Completion, PairwiseLoss
from lit_rlhf.options import check_option


class ReferenceFreeLoss(PairwiseLoss):
    r"""Base of pairwise losses without a reference: the implicit reward is $\beta\,l/n$."""

    needs_reference = False

    def reward(self, completion: Completion) -> Float[Tensor, "*rows"]:
        r"""$\beta$ times the log-probs per token."""
        return self.beta * completion.mean_logprobs


class SimPO(ReferenceFreeLoss):
    r"""$-\log\sigma(\beta(l_w/n_w - l_l/n_l) - \gamma)$ (SimPO, arXiv:2405.14734).

    Args:
        beta: Scale of the length-normalised reward; 2.0 to 2.5 in the paper, up to 10.
        gamma: Margin, in units of reward (not divided by beta), 0.1 to 0.8 times beta; the authors' README starts at
            $\gamma/\beta = 0.5$, hence 1.0.
    """

    def __init__(self, beta: float = 2.0, gamma: float = 1.0) -> None:
        super().__init__(beta)
        self.gamma = gamma

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        return softplus(self.gamma - (self.reward(chosen) - self.reward(rejected)))


class AlphaPO(SimPO):
    r"""SimPO with reward $\beta(1 - p^{-\alpha})/\alpha$, $p = e^{l/n}$ (AlphaPO, arXiv:2501.03884).

    Args:
        beta: Scale of the reward; as in SimPO (the paper tunes it per model).
        gamma: Margin, in units of reward; as beta.
        alpha: Shape of the reward, positive bends it down where p is small; 0.25 in the paper, 0 is SimPO.
    """

    def __init__(self, beta: float = 2.0, gamma: float = 1.0, alpha: float = 0.25) -> None:
        super().__init__(beta, gamma)
        self.alpha = alpha

    def reward(self, completion: Completion) -> Float[Tensor, "*rows"]:
        """The shaped reward."""
        mean = completion.mean_logprobs
        if self.alpha == 0:
            return self.beta * mean
        return self.beta * (1 - bounded_exp(-self.alpha * mean)) / self.alpha


class CPO(ReferenceFreeLoss):
    r"""$-\log\sigma(\beta(l_w - l_l)) + \alpha\,NLL(y_w)$ (CPO, arXiv:2401.08417).

    Args:
        beta: Scale of the preference term; 0.1 in the paper.
        alpha: Weight of the likelihood, 0 or more; 1 in the paper.
        length_normalize: NLL per token, each pair's own mean (TRL's is over the batch's tokens), or summed as in the
            paper.
    """

    def __init__(
        self, beta: float = 0.1, alpha: float = 1.0, length_normalize: bool = True
    ) -> None:
        super().__init__(beta)
        check_option(alpha >= 0, self, "alpha", alpha, "0 or more")
        self.alpha = alpha
        self.length_normalize = length_normalize

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        nll = -(chosen.mean_logprobs if self.length_normalize else chosen.logprobs)
        return softplus(-self.beta * (chosen.logprobs - rejected.logprobs)) + self.alpha * nll

    def reward(self, completion: Completion) -> Float[Tensor, "*rows"]:
        """Beta times the summed log-probs."""
        return self.beta * completion.logprobs


class ORPO(ReferenceFreeLoss):
    r"""$-\frac{l_w}{n_w} - \lambda\log\sigma(\log\frac{odds(y_w)}{odds(y_l)})$, $P = e^{l/n}$ (ORPO, arXiv:2403.07691).

    The odds are $\frac{P}{1 - P}$ of the mean token probability. The likelihood is of the completion alone; the
    authors' code and TRL take in the prompt. Wants a rate of 5e-6 to 8e-6.

    Args:
        weight: $\lambda$; 0.1 in the paper (TRL calls it beta).
    """

    def __init__(self, weight: float = 0.1) -> None:
        check_option(weight > 0, self, "weight", weight, "above 0")
        super().__init__(weight)

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        ratio = self._log_odds(chosen) - self._log_odds(rejected)
        return -chosen.mean_logprobs + self.beta * softplus(-ratio)

    def reward(self, completion: Completion) -> Float[Tensor, "*rows"]:
        r"""$\lambda$ times the log-odds."""
        return self.beta * self._log_odds(completion)

    def _log_odds(self, completion: Completion) -> Float[Tensor, "*rows"]:
        """Finite even for P = 1 in the precision at hand."""
        return completion.mean_logprobs - log1mexp(completion.mean_logprobs)


class SLiC(ReferenceFreeLoss):
    r"""$\max(0, \delta - l_w + l_l) + \lambda\,NLL(y_w)$ (SLiC-HF, arXiv:2305.10425).

    The hinge has no reference. The paper's likelihood is of the SFT target; pairs have none, so it is of the chosen
    one, summed over its tokens.

    Args:
        margin: $\delta$ in nats; 1 in the paper and HALOs.
        weight: $\lambda$, 0 or more; 0.1 in HALOs, 0 leaves the hinge alone.
    """

    def __init__(self, margin: float = 1.0, weight: float = 0.1) -> None:
        super().__init__(1.0)
        check_option(margin > 0, self, "margin", margin, "above 0")
        check_option(weight >= 0, self, "weight", weight, "0 or more")
        self.margin = margin
        self.weight = weight

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        hinge = (self.margin - chosen.logprobs + rejected.logprobs).clamp_min(0)
        return hinge + self.weight * -chosen.logprobs

    def reward(self, completion: Completion) -> Float[Tensor, "*rows"]:
        """The summed log-probs, whose margin the hinge looks at."""
        return completion.logprobs
