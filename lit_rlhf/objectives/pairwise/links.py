r"""Other links than the logistic (IPO, hinges, GPO, EXO, DiscoPOP) and other divergences than the KL (f-DPO).

Notation as in `logistic`; $z = \beta h$.
"""

import math
from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from lit_rlhf.functional.numerics import bounded_exp
from lit_rlhf.functional.shapes import Rows
from lit_rlhf.objectives.preference import Completion, PairwiseLoss
from lit_rlhf.options import check_option


class IPO(PairwiseLoss):
    r"""Identity preference optimization as in the paper, $(h - \frac1{2\tau})^2$, log-probs summed (arXiv:2310.12036).

    Args:
        tau: Strength of the KL penalty, smaller asks for larger margins; 0.1 in the paper. TRL's and HALOs' IPO is
            `MeanIPO`.
    """

    def __init__(self, tau: float = 0.1) -> None:
        check_option(tau > 0, self, "tau", tau, "above 0")
        super().__init__(tau)

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        return (chosen.logratios - rejected.logratios - 1 / (2 * self.beta)).square()


class MeanIPO(IPO):
    r"""IPO of log-probs per token, $(u_w/n_w - u_l/n_l - \frac1{2\tau})^2$, as TRL and HALOs have it.

    Args:
        tau: Strength of the KL penalty per token; 0.1 in TRL. Not comparable with `IPO`'s: the optimum's log-ratios are
            larger by the number of tokens.
    """

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        return (chosen.mean_logratios - rejected.mean_logratios - 1 / (2 * self.beta)).square()


class RSOHinge(PairwiseLoss):
    r"""The normalised hinge of RSO, $\max(0, 1 - \gamma h)$ (arXiv:2309.06657); TRL's `hinge`.

    Args:
        gamma: Inverse of the margin; 0.05 in the paper.
    """

    def __init__(self, gamma: float = 0.05) -> None:
        check_option(gamma > 0, self, "gamma", gamma, "above 0")
        super().__init__(gamma)

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        return (1 - self.beta * (chosen.logratios - rejected.logratios)).clamp_min(0)


class ExponentialGPO(PairwiseLoss):
    r"""GPO with $f(z) = e^{-z}$ (arXiv:2402.05749); above e^30 it goes on as a straight line.

    Args:
        beta: Strength of the KL penalty; acts as twice DPO's. 0.1 as in DPO.
    """

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        return bounded_exp(-self.beta * (chosen.logratios - rejected.logratios))


class SavageGPO(PairwiseLoss):
    r"""GPO with Savage's link, $f(z) = (1 + e^z)^{-2}$ (arXiv:2402.05749): bounded, so outliers can't dominate.

    Args:
        beta: Strength of the KL penalty; 0.1 as in DPO, whose optimum it shares.
    """

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        return (-self.beta * (chosen.logratios - rejected.logratios)).sigmoid().square()


class SquaredGPO(PairwiseLoss):
    r"""GPO with $f(z) = (1 - z)^2$ (arXiv:2402.05749): the optimum of IPO with $\tau = \beta/2$.

    Args:
        beta: Strength of the KL penalty; 0.1 as in DPO.
    """

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        return (1 - self.beta * (chosen.logratios - rejected.logratios)).square()


class EXO(PairwiseLoss):
    r"""$q\log\frac q{1-\epsilon} + (1-q)\log\frac{1-q}\epsilon$, $q = \sigma(\beta h)$ (EXO-pref, arXiv:2402.00856).

    The KL divergence of the policy's preference from the smoothed label: the reverse of cDPO's.

    Args:
        beta: Strength of the KL penalty; 0.1 as in TRL.
        label_smoothing: $\epsilon$ in (0, 0.5); 1e-3 as in TRL. It sets the margins: the optimum is finite by it alone.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 1e-3) -> None:
        super().__init__(beta)
        allowed = "in (0, 0.5): at 0 the loss is infinite"
        valid = 0 < label_smoothing < 0.5
        check_option(valid, self, "label_smoothing", label_smoothing, allowed)
        self.label_smoothing = label_smoothing

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        z, e = self.beta * (chosen.logratios - rejected.logratios), self.label_smoothing
        agree = z.sigmoid() * (logsigmoid(z) - math.log1p(-e))
        return agree + (-z).sigmoid() * (logsigmoid(-z) - math.log(e))


class DiscoPOP(PairwiseLoss):
    r"""$(1-m)\log(1+e^{-z}) + m\,e^{-z}$, $m = \sigma(z/\tau)$: the loss a language model found (arXiv:2406.08414).

    Neither convex nor calibrated: at the default temperature the expected loss falls from z = 0 towards z = -0.12, the
    wrong way, and full-batch training from the reference stays in that valley (`lit-rlhf verify` shows it); above about
    0.2 it doesn't.

    Args:
        beta: Strength of the KL penalty; 0.05 in the paper.
        temperature: $\tau$ in (0, 1), width of the passage from the logistic (z < 0) to the exponential link (z > 0);
            0.05 in the paper.
    """

    def __init__(self, beta: float = 0.05, temperature: float = 0.05) -> None:
        super().__init__(beta)
        check_option(0 < temperature < 1, self, "temperature", temperature, "in (0, 1)")
        self.temperature = temperature

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        z = self.beta * (chosen.logratios - rejected.logratios)
        modulation = z / self.temperature
        # m * e^-z in logs: for z -> -inf the factors are 0 and infinite, their product is 0.
        exponential = (logsigmoid(modulation) - z).exp()
        return (-modulation).sigmoid() * softplus(-z) + exponential


# -- f-DPO ------------------------------------------------------------------------------------------------------------


class FDPO(PairwiseLoss):
    r"""Base of $-\log\sigma(\beta f'(e^{u_w}) - \beta f'(e^{u_l}))$ (arXiv:2309.16240): a subclass gives $f'(e^u)$.

    For a penalty $\beta D_f(\pi\|\pi_{ref})$ the implicit reward is $\beta f'(\pi/\pi_{ref})$.

    Args:
        beta: Strength of the penalty $\beta D_f(\pi\|\pi_{ref})$; 0.1 in the paper.
    """

    @abstractmethod
    def score(self, logratios: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """f'(e^u) of log-ratios u."""

    def forward(self, chosen: Completion, rejected: Completion) -> Rows:
        """See the class."""
        difference = self.score(chosen.logratios) - self.score(rejected.logratios)
        return softplus(-self.beta * difference)

    def reward(self, completion: Completion) -> Tensor:
        r"""$\beta f'(e^u)$."""
        return self.beta * self.score(completion.logratios)


class ReverseKLDPO(FDPO):
    r"""f-DPO of the reverse KL, $f(t) = t\log t$, $f' = u + 1$: DPO."""

    def score(self, logratios: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """See the class."""
        return logratios + 1


class ForwardKLDPO(FDPO):
    r"""f-DPO of the forward KL, $f(t) = -\log t$, $f' = -e^{-u}$; covers all that the reference does.

    Its gradients are large. Below u = -30 it goes on as a straight line, so that loss and gradient stay finite.
    """

    def score(self, logratios: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """See the class."""
        return -bounded_exp(-logratios)


class JensenShannonDPO(FDPO):
    r"""f-DPO of the Jensen-Shannon divergence, $f' = \log\frac{2e^u}{1+e^u}$."""

    def score(self, logratios: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """See the class."""
        return math.log(2) - softplus(-logratios)


class AlphaDivergenceDPO(FDPO):
    r"""f-DPO of the alpha divergence, $f' = (1 - e^{-\alpha u})/\alpha$.

    Args:
        beta: Strength of the penalty.
        alpha: In (0, 1); towards 0 the reverse KL, 1 would be the forward KL. The paper tries 0.3, 0.5 and 0.7.
    """

    def __init__(self, beta: float = 0.1, alpha: float = 0.5) -> None:
        super().__init__(beta)
        check_option(0 < alpha < 1, self, "alpha", alpha, "in (0, 1)")
        self.alpha = alpha

    def score(self, logratios: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """See the class."""
        return (1 - bounded_exp(-self.alpha * logratios)) / self.alpha
