r"""DPO and the losses that differ from it in labels, lengths or an added likelihood.

Notation: $u(y) = \log\pi(y|x) - \log\pi_{ref}(y|x)$ of a whole completion; w = chosen, l = rejected; $h = u_w - u_l$;
n = number of tokens.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lit_rlhf.functional.shapes import Rows
from lit_rlhf.objectives.preference import Completion, PairwiseLoss
from lit_rlhf.options import check_option


class DPO(PairwiseLoss):
    r"""Direct preference optimization, $-\log\sigma(\beta h)$ (arXiv:2305.18290).

    Args:
        beta: Strength of the KL penalty to the reference; 0.1 in the paper (0.5 for TL;DR), 0.01 to 0.5 in use.

    Example:
        >>> y = Completion(torch.tensor([-5.0]), torch.tensor([4]), torch.tensor([-6.0]))
        >>> DPO(beta=0.1)(y, y)
        tensor([0.6931])
    """

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        return softplus(-self.beta * (chosen.logratios - rejected.logratios))


class ConservativeDPO(PairwiseLoss):
    r"""cDPO, $-(1-\epsilon)\log\sigma(\beta h) - \epsilon\log\sigma(-\beta h)$ (E. Mitchell's note, 2023).

    Biased: margins shrink even where the labels are right. With a known flip rate use `RobustDPO`.

    Args:
        beta: As in DPO.
        label_smoothing: $\epsilon$ in [0, 0.5); the note uses 0.1 to 0.2.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.1) -> None:
        super().__init__(beta)
        valid = 0 <= label_smoothing < 0.5
        check_option(valid, self, "label_smoothing", label_smoothing, "in [0, 0.5)")
        self.label_smoothing = label_smoothing

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        z, e = self.beta * (chosen.logratios - rejected.logratios), self.label_smoothing
        return (1 - e) * softplus(-z) + e * softplus(z)


class RobustDPO(ConservativeDPO):
    r"""rDPO, $\frac{-(1-\epsilon)\log\sigma(\beta h) + \epsilon\log\sigma(-\beta h)}{1-2\epsilon}$ (arXiv:2403.00409).

    Its expectation over labels flipped with probability $\epsilon$ is the DPO loss of the true labels. Single losses
    may be negative, and are unbounded below as h goes to minus infinity.

    Args:
        beta: As in DPO; 0.1 in the paper.
        label_smoothing: $\epsilon$ in [0, 0.5); 0.1 in the paper.
    """

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        z, e = self.beta * (chosen.logratios - rejected.logratios), self.label_smoothing
        return ((1 - e) * softplus(-z) - e * softplus(z)) / (1 - 2 * e)


class SoftLabelDPO(PairwiseLoss):
    r"""$-p\log\sigma(\beta h) - (1-p)\log\sigma(-\beta h)$ with p the column `p_chosen`.

    Hard labels where raters disagree drive margins to infinity; soft ones keep DPO's optimum with far fewer pairs.

    Args:
        beta: As in DPO.
    """

    def forward(self, chosen: Completion, rejected: Completion, *, p_chosen: Rows) -> Rows:
        """`p_chosen` is the probability in [0, 1] that a rater prefers the chosen completion."""
        z = self.beta * (chosen.logratios - rejected.logratios)
        return p_chosen * softplus(-z) + (1 - p_chosen) * softplus(z)


class LengthRegularizedDPO(PairwiseLoss):
    r"""R-DPO, $-\log\sigma(\beta h + \alpha(n_w - n_l))$ (arXiv:2403.19159): DPO of the reward $r - \alpha n$.

    Args:
        beta: As in DPO.
        alpha: Price of a token in units of reward, positive to make completions shorter; the paper tries 0.005 to 0.5,
            the default is 0.01.
    """

    def __init__(self, beta: float = 0.1, alpha: float = 0.01) -> None:
        super().__init__(beta)
        self.alpha = alpha

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        h = chosen.logratios - rejected.logratios
        excess = (chosen.lengths - rejected.lengths).to(h.dtype)
        return softplus(-(self.beta * h + self.alpha * excess))


class LengthNormalizedDPO(PairwiseLoss):
    r"""LN-DPO, $-\log\sigma(\beta(u_w/n_w - u_l/n_l))$ (arXiv:2411.15124).

    Args:
        beta: Strength of the penalty per token, so larger than DPO's by about the length; 5 in Tulu 3.
    """

    def __init__(self, beta: float = 5.0) -> None:
        super().__init__(beta)

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        return softplus(-self.beta * (chosen.mean_logratios - rejected.mean_logratios))


class LengthDesensitizedDPO(PairwiseLoss):
    r"""LD-DPO: DPO whose tokens beyond the pair's shorter completion weigh $\alpha$ (arXiv:2409.06411).

    $-\log\sigma(\beta(\tilde u_w - \tilde u_l))$, $\tilde u = \sum_{t\le m}u_t + \alpha\sum_{t>m}u_t$, m the shorter
    completion's number of tokens. It needs log-probs by token, also of the reference.

    Args:
        beta: As in DPO.
        alpha: Weight of the excess, in [0, 1]; 1 is DPO. 0.5 is within the paper's range and TRL's documentation.
    """

    statistics = frozenset(["tokens"])

    def __init__(self, beta: float = 0.1, alpha: float = 0.5) -> None:
        super().__init__(beta)
        check_option(0 <= alpha <= 1, self, "alpha", alpha, "in [0, 1]")
        self.alpha = alpha

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        shared = torch.minimum(chosen.lengths, rejected.lengths)
        return softplus(-self.beta * (self._sum(chosen, shared) - self._sum(rejected, shared)))

    def _sum(self, completion: Completion, shared: Tensor) -> Rows:
        """Log-ratios summed over tokens, those beyond the first `shared` weighing less."""
        completion.logratios  # noqa: B018 - says that a reference is missing before its tokens are
        mask = completion.statistic("token_mask")
        ratios = completion.statistic("token_logprobs") - completion.statistic("ref_token_logprobs")
        beyond = torch.arange(mask.shape[-1], device=mask.device) >= shared[:, None]
        weight = 1 - (1 - self.alpha) * beyond.to(ratios.dtype)
        return torch.where(mask, ratios * weight, 0.0).sum(-1)


class DPOP(PairwiseLoss):
    r"""DPO-positive, $-\log\sigma(\beta(h - \lambda\max(0, -u_w)))$ (Smaug, arXiv:2402.13228).

    Args:
        beta: As in DPO; 0.3 in the paper.
        penalty: $\lambda$, price of a chosen completion less likely than under the reference; 50 in the paper, 0 is
            DPO.
    """

    def __init__(self, beta: float = 0.3, penalty: float = 50.0) -> None:
        super().__init__(beta)
        check_option(penalty >= 0, self, "penalty", penalty, "0 or more")
        self.penalty = penalty

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        uw, ul = chosen.logratios, rejected.logratios
        return softplus(-self.beta * (uw - ul - self.penalty * (-uw).clamp_min(0)))


class RPO(PairwiseLoss):
    r"""DPO + likelihood, $-\log\sigma(\beta h) + \alpha\,NLL(y_w)$ (arXiv:2404.19733, 2405.16436).

    The likelihood per token is each pair's own mean, as in 2404.19733; TRL's (`rpo_alpha`) is the mean over all chosen
    tokens of the batch, in which long completions weigh more.

    Args:
        beta: As in DPO; 0.1.
        alpha: Weight of the likelihood, 0 or more; 1 per token (2404.19733), 0.005 summed (2405.16436).
        length_normalize: NLL per token (2404.19733) or summed (2405.16436).
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
        margin = chosen.logratios - rejected.logratios
        return softplus(-self.beta * margin) + self.alpha * nll


class SPIN(DPO):
    r"""Self-play fine-tuning, $-\log\sigma(\lambda(u(y) - u(y')))$ (arXiv:2401.01335).

    y is a demonstration (chosen), y' the last iteration's policy's own completion (rejected), the reference that
    policy.

    Args:
        scale: $\lambda$; 0.1 in the paper.
    """

    def __init__(self, scale: float = 0.1) -> None:
        check_option(scale > 0, self, "scale", scale, "above 0")
        super().__init__(scale)
