r"""Other links than the logistic: IPO, hinges, GPO, EXO, DiscoPOP. Notation as in `logistic`; $z = \beta h$."""

from torch import Tensor

from lit_rlhf.functional.pairwise_losses import (
    discopop_loss,
    exo_loss,
    gpo_exponential_loss,
    gpo_savage_loss,
    gpo_squared_loss,
    ipo_loss,
    ipo_mean_loss,
    rso_hinge_loss,
)
from lit_rlhf.objectives.pairwise.base import Pairs, PairwiseLoss
from lit_rlhf.objectives.preference import require_positive, require_within


class IPO(PairwiseLoss):
    r"""Identity preference optimization as in the paper, $(h - \frac1{2\tau})^2$, log-probs summed (arXiv:2310.12036).

    Args:
        tau: Strength of the KL penalty; 0.1 in the paper. TRL's and HALOs' IPO is `MeanIPO`.
    """

    def __init__(self, tau: float = 0.1) -> None:
        require_positive(self, tau=tau)
        super().__init__(tau)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return ipo_loss(pairs.chosen.logratios, pairs.rejected.logratios, self.beta)


class MeanIPO(PairwiseLoss):
    r"""IPO of log-probs per token, $(u_w/n_w - u_l/n_l - \frac1{2\tau})^2$, as TRL and HALOs have it.

    Args:
        tau: Strength of the KL penalty per token; 0.1 in TRL. Not comparable with `IPO`'s: the optimum's log-ratios are
            larger by the number of tokens.
    """

    def __init__(self, tau: float = 0.1) -> None:
        require_positive(self, tau=tau)
        super().__init__(tau)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        w, l = pairs.chosen, pairs.rejected  # noqa: E741 - as in the equation
        return ipo_mean_loss(w.logratios, l.logratios, w.lengths, l.lengths, self.beta)


class RSOHinge(PairwiseLoss):
    r"""The normalised hinge of RSO, $\max(0, 1 - \gamma h)$ (arXiv:2309.06657); TRL's `hinge`.

    Args:
        gamma: Inverse of the margin; 0.05 in the paper.
    """

    def __init__(self, gamma: float = 0.05) -> None:
        require_positive(self, gamma=gamma)
        super().__init__(gamma)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return rso_hinge_loss(pairs.chosen.logratios, pairs.rejected.logratios, self.beta)


class ExponentialGPO(PairwiseLoss):
    r"""GPO with $f(z) = e^{-z}$ (arXiv:2402.05749).

    Args:
        beta: Strength of the KL penalty; acts as twice DPO's. 0.1 as in DPO.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return gpo_exponential_loss(pairs.chosen.logratios, pairs.rejected.logratios, self.beta)


class SavageGPO(PairwiseLoss):
    r"""GPO with Savage's link, $f(z) = (1 + e^z)^{-2}$ (arXiv:2402.05749).

    Args:
        beta: Strength of the KL penalty; 0.1 as in DPO, whose optimum it shares.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return gpo_savage_loss(pairs.chosen.logratios, pairs.rejected.logratios, self.beta)


class SquaredGPO(PairwiseLoss):
    r"""GPO with $f(z) = (1 - z)^2$ (arXiv:2402.05749): the optimum of IPO with $\tau = \beta/2$.

    Args:
        beta: Strength of the KL penalty; 0.1 as in DPO.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return gpo_squared_loss(pairs.chosen.logratios, pairs.rejected.logratios, self.beta)


class EXO(PairwiseLoss):
    r"""$q\log\frac q{1-\epsilon} + (1-q)\log\frac{1-q}\epsilon$, $q = \sigma(\beta h)$ (EXO-pref, arXiv:2402.00856).

    Args:
        beta: Strength of the KL penalty; 0.1 as in TRL.
        label_smoothing: $\epsilon$ in (0, 0.5); 1e-3 as in TRL. It sets the margins: the optimum is finite by it alone.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 1e-3) -> None:
        super().__init__(beta)
        require_within(self, 0, 0.5, "()", label_smoothing=label_smoothing)
        self.label_smoothing = label_smoothing

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return exo_loss(
            pairs.chosen.logratios, pairs.rejected.logratios, self.beta, self.label_smoothing
        )


class DiscoPOP(PairwiseLoss):
    r"""$(1-m)\log(1+e^{-z}) + m\,e^{-z}$, $m = \sigma(z/\tau)$: the loss a language model found (arXiv:2406.08414).

    Neither convex nor calibrated: at the default temperature the expected loss falls from z = 0 towards z = -0.12, the
    wrong way, and full-batch training from the reference stays in that valley (`lit-rlhf verify` shows it); above about
    0.2 it doesn't.

    Args:
        beta: Strength of the KL penalty; 0.05 in the paper.
        temperature: $\tau$ in (0, 1), width of the passage between the two links; 0.05 in the paper.
    """

    def __init__(self, beta: float = 0.05, temperature: float = 0.05) -> None:
        super().__init__(beta)
        require_within(self, 0, 1, "()", temperature=temperature)
        self.temperature = temperature

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """See the class."""
        return discopop_loss(
            pairs.chosen.logratios, pairs.rejected.logratios, self.beta, self.temperature
        )
