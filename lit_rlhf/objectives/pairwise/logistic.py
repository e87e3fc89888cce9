r"""DPO and the losses that differ from it in labels, lengths or an added likelihood.

Notation: $u(y) = \log\pi(y|x) - \log\pi_{ref}(y|x)$ of a whole completion; w = chosen, l = rejected; $h = u_w - u_l$.
"""

from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.pairwise_losses import (
    conservative_dpo_loss,
    dpo_loss,
    dpop_loss,
    length_desensitized_logprobs,
    length_normalized_dpo_loss,
    length_regularized_dpo_loss,
    robust_dpo_loss,
    rpo_loss,
    soft_label_dpo_loss,
    spin_loss,
)
from lit_rlhf.objectives.pairwise.base import Pairs, PairwiseLoss
from lit_rlhf.objectives.preference import (
    Batch,
    require_columns,
    require_positive,
    require_probabilities,
    require_within,
)
from lit_rlhf.types import SequenceStats


class DPO(PairwiseLoss):
    r"""Direct preference optimization, $-\log\sigma(\beta h)$ (arXiv:2305.18290).

    Args:
        beta: Strength of the KL penalty to the reference; 0.1 in the paper (0.5 for TL;DR), 0.01 to 0.5 in use.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return dpo_loss(pairs.chosen.logratios, pairs.rejected.logratios, self.beta)


class ConservativeDPO(PairwiseLoss):
    r"""cDPO, $-(1-\epsilon)\log\sigma(\beta h) - \epsilon\log\sigma(-\beta h)$ (E. Mitchell's note, 2023).

    Biased: margins shrink even where the labels are right. With a known flip rate use `RobustDPO`.

    Args:
        beta: As in DPO.
        label_smoothing: $\epsilon$ in [0, 0.5); the note uses 0.1 to 0.2.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.1) -> None:
        super().__init__(beta)
        require_within(self, 0, 0.5, "[)", label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return conservative_dpo_loss(
            pairs.chosen.logratios, pairs.rejected.logratios, self.label_smoothing, self.beta
        )


class RobustDPO(PairwiseLoss):
    r"""rDPO, $\frac{-(1-\epsilon)\log\sigma(\beta h) + \epsilon\log\sigma(-\beta h)}{1-2\epsilon}$ (arXiv:2403.00409).

    Unbiased for labels flipped with probability $\epsilon$; single losses may be negative and are unbounded below.

    Args:
        beta: As in DPO; 0.1 in the paper.
        label_smoothing: $\epsilon$ in [0, 0.5); 0.1 in the paper.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.1) -> None:
        super().__init__(beta)
        require_within(self, 0, 0.5, "[)", label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return robust_dpo_loss(
            pairs.chosen.logratios, pairs.rejected.logratios, self.label_smoothing, self.beta
        )


class SoftLabelDPO(PairwiseLoss):
    r"""$-p\log\sigma(\beta h) - (1-p)\log\sigma(-\beta h)$ with p the column `p_chosen`.

    Hard labels where raters disagree drive margins to infinity; soft ones keep DPO's optimum with far fewer pairs.

    Args:
        beta: As in DPO.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        require_columns(self, pairs.batch, ["p_chosen"])
        p_chosen = pairs.batch["p_chosen"]
        return soft_label_dpo_loss(
            pairs.chosen.logratios, pairs.rejected.logratios, p_chosen, self.beta
        )

    def check(self, batch: Batch) -> None:
        """`p_chosen` is there and in [0, 1]."""
        require_columns(self, batch, ["p_chosen"])
        require_probabilities(self, batch, "p_chosen")


class LengthRegularizedDPO(PairwiseLoss):
    r"""R-DPO, $-\log\sigma(\beta h + \alpha(n_w - n_l))$ (arXiv:2403.19159): DPO of the reward $r - \alpha n$.

    Args:
        beta: As in DPO.
        alpha: Price of a token in units of reward; the paper tries 0.005 to 0.5, the default is 0.01.
    """

    def __init__(self, beta: float = 0.1, alpha: float = 0.01) -> None:
        super().__init__(beta)
        self.alpha = alpha

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        w, l = pairs.chosen, pairs.rejected  # noqa: E741 - as in the equation
        return length_regularized_dpo_loss(
            w.logratios, l.logratios, w.lengths, l.lengths, self.beta, self.alpha
        )


class LengthNormalizedDPO(PairwiseLoss):
    r"""LN-DPO, $-\log\sigma(\beta(u_w/n_w - u_l/n_l))$ (arXiv:2411.15124).

    Args:
        beta: Strength of the penalty per token; 5 in Tulu 3.
    """

    def __init__(self, beta: float = 5.0) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        w, l = pairs.chosen, pairs.rejected  # noqa: E741
        return length_normalized_dpo_loss(w.logratios, l.logratios, w.lengths, l.lengths, self.beta)


class LengthDesensitizedDPO(PairwiseLoss):
    r"""LD-DPO: DPO whose tokens beyond the pair's shorter completion weigh $\alpha$ (arXiv:2409.06411).

    Args:
        beta: As in DPO.
        alpha: Weight of the excess, in [0, 1]; 1 is DPO. 0.5 is within the paper's range and TRL's documentation.
    """

    statistics = frozenset(["tokens"])

    def __init__(self, beta: float = 0.1, alpha: float = 0.5) -> None:
        super().__init__(beta)
        require_within(self, 0, 1, alpha=alpha)
        self.alpha = alpha

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        if pairs.reference is None:
            raise ConfigurationError("LengthDesensitizedDPO needs a reference.")
        policy, reference = (
            self._desensitized(stats, pairs.policy) for stats in (pairs.policy, pairs.reference)
        )
        logratios = policy - reference
        return dpo_loss(logratios[:, 0], logratios[:, 1], self.beta)

    def _desensitized(self, stats: SequenceStats, policy: SequenceStats) -> Tensor:
        if stats.token_logprobs is None or policy.token_mask is None:
            raise ConfigurationError(
                "LengthDesensitizedDPO needs log-probs by token, also of the reference: precomputed sums don't do."
            )
        return length_desensitized_logprobs(stats.token_logprobs, policy.token_mask, self.alpha)


class DPOP(PairwiseLoss):
    r"""DPO-positive, $-\log\sigma(\beta(h - \lambda\max(0, -u_w)))$ (Smaug, arXiv:2402.13228).

    Args:
        beta: As in DPO; 0.3 in the paper.
        penalty: $\lambda$, price of a chosen completion less likely than under the reference; 50 in the paper, 0 is
            DPO.
    """

    def __init__(self, beta: float = 0.3, penalty: float = 50.0) -> None:
        super().__init__(beta)
        require_within(self, 0, float("inf"), penalty=penalty)
        self.penalty = penalty

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return dpop_loss(pairs.chosen.logratios, pairs.rejected.logratios, self.beta, self.penalty)


class RPO(PairwiseLoss):
    r"""DPO + likelihood, $-\log\sigma(\beta h) + \alpha\,NLL(y_w)$ (arXiv:2404.19733, 2405.16436).

    Args:
        beta: As in DPO; 0.1.
        alpha: Weight of the likelihood; 1 per token (2404.19733), 0.005 summed (2405.16436).
        length_normalize: NLL per token (2404.19733) or summed (2405.16436).
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
        return rpo_loss(
            pairs.chosen.logratios, pairs.rejected.logratios, nll, self.beta, self.alpha
        )


class SPIN(PairwiseLoss):
    r"""Self-play fine-tuning, $-\log\sigma(\lambda(u(y) - u(y')))$ (arXiv:2401.01335).

    y is a demonstration (chosen), y' the last iteration's policy's own completion (rejected), the reference that
    policy.

    Args:
        scale: $\lambda$; 0.1 in the paper.
    """

    def __init__(self, scale: float = 0.1) -> None:
        require_positive(self, scale=scale)
        super().__init__(scale)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return spin_loss(pairs.chosen.logratios, pairs.rejected.logratios, self.beta)
