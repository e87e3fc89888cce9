"""How well scores reproduce preferences: accuracy, margin and calibration of pairs (chosen, rejected)."""

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_rlhf.metrics.pairs import agreement
from lit_rlhf.options import check_option, check_shapes


class _Mean(Metric):
    """A sum over pairs, and their number."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    sum: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sum", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        self.sum = self.sum + values.sum()
        self.total = self.total + values.numel()

    def compute(self) -> Tensor:
        """A scalar; nan if no pair was seen."""
        return self.sum / self.total


class PreferenceAccuracy(_Mean):
    r"""The share of pairs that the scores order as the raters did.

    $$\text{accuracy} = \frac1n \sum_i \big[p_i\,1(\Delta_i > 0) + (1 - p_i)\,1(\Delta_i < 0)\big],\quad
    \Delta_i = r(x_i, y_i^w) - r(x_i, y_i^l)$$

    with $p_i = 1$ for hard labels. A tie counts 0: a model that gives all answers the same score orders nothing. With
    soft labels the best that can be reached is the mean of $\max(p_i, 1 - p_i)$.

    Example:
        >>> metric = PreferenceAccuracy()
        >>> metric.update(torch.tensor([2.0, 0.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def update(self, chosen: Tensor, rejected: Tensor, p_chosen: Tensor | None = None) -> None:
        """Take in pairs.

        Args:
            chosen: (n,) scores of the chosen answers.
            rejected: (n,) scores of the rejected answers.
            p_chosen: (n,) in [0, 1], the probability that a rater prefers the chosen answer; default 1.
        """
        check_shapes(self, chosen=chosen, rejected=rejected, p_chosen=p_chosen)
        margin = chosen.float() - rejected.float()
        p = torch.ones_like(margin) if p_chosen is None else p_chosen.float()
        self._add(agreement(margin, p))


class RewardMargin(_Mean):
    r"""The mean difference of the scores of chosen and rejected answers, $\frac1n\sum_i \Delta_i$, in units of reward.

    Example:
        >>> metric = RewardMargin()
        >>> metric.update(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def update(self, chosen: Tensor, rejected: Tensor) -> None:
        """Take in pairs.

        Args:
            chosen: (n,) scores of the chosen answers.
            rejected: (n,) scores of the rejected answers.
        """
        check_shapes(self, chosen=chosen, rejected=rejected)
        self._add(chosen.detach().float() - rejected.detach().float())


class CalibrationError(Metric):
    r"""The expected calibration error of $\sigma(\Delta)$ as the probability that the chosen answer is preferred.

    The model predicts the answer with the higher score, with confidence $\sigma(|\Delta|) \in [\tfrac12, 1]$. Pairs are
    binned by confidence into equal widths, and

    $$\text{ECE} = \sum_b \frac{n_b}{n}\,\big|\text{agreement}_b - \text{confidence}_b\big|$$

    (arXiv:1706.04599), where a pair's agreement is $p$ if the predicted answer is the chosen one, else $1 - p$ ($p = 1$
    for hard labels; a tie agrees to one half, as a coin would). Asking how sure the *predicted* answer is, instead of
    the chosen one, leaves the result as it is when a pair is written the other way round; `sigmoid(margin)` against a
    label that is always 1 would call each model miscalibrated.

    For hard labels it equals torchmetrics' `BinaryCalibrationError(2 * num_bins)` of confidence and agreement; that
    class keeps every pair and takes no soft labels, this one keeps three numbers a bin.

    Args:
        num_bins: Bins between 0.5 and 1. More resolve finer and estimate each bin worse: a bin of n pairs contributes
            about $0.4/\sqrt{n}$ by chance alone.

    Raises:
        ConfigurationError: If `num_bins` is below 1.

    Example:
        >>> metric = CalibrationError()
        >>> metric.update(
        ...     torch.logit(torch.full((4,), 0.75)),
        ...     torch.zeros(4),
        ...     torch.tensor([1.0, 1.0, 0.0, 0.0]),
        ... )
        >>> metric.compute()
        tensor(0.2500)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    count: Tensor
    confidence: Tensor
    agreement: Tensor

    def __init__(self, num_bins: int = 10) -> None:
        super().__init__()
        check_option(num_bins >= 1, self, "num_bins", num_bins, "1 or more")
        self.num_bins = num_bins
        for name in ("count", "confidence", "agreement"):
            self.add_state(name, torch.zeros(num_bins), dist_reduce_fx="sum")

    def update(self, chosen: Tensor, rejected: Tensor, p_chosen: Tensor | None = None) -> None:
        """Take in pairs.

        Args:
            chosen: (n,) scores of the chosen answers.
            rejected: (n,) scores of the rejected answers.
            p_chosen: (n,) in [0, 1], the probability that a rater prefers the chosen answer; default 1.
        """
        check_shapes(self, chosen=chosen, rejected=rejected, p_chosen=p_chosen)
        margin = (chosen.detach().float() - rejected.detach().float()).flatten()
        p = torch.ones_like(margin) if p_chosen is None else p_chosen.float().flatten()
        confidence = margin.abs().sigmoid()
        agreement = 0.5 + (p - 0.5) * margin.sign()
        bins = ((confidence - 0.5) * 2 * self.num_bins).long().clamp_(0, self.num_bins - 1)
        # Sums over a comparison, not scatter_add: that one has no deterministic kernel on GPU.
        member = (bins == torch.arange(self.num_bins, device=bins.device)[:, None]).float()
        self.count = self.count + member.sum(-1)
        self.confidence = self.confidence + member @ confidence
        self.agreement = self.agreement + member @ agreement

    def compute(self) -> Tensor:
        """A scalar in [0, 1]; nan if no pair was seen."""
        return (self.agreement - self.confidence).abs().sum() / self.count.sum()

    def bins(self) -> list[tuple[float, float, int]]:
        """Mean confidence, mean agreement and number of pairs of each bin that has some: a reliability plot."""
        bins = torch.stack([self.count, self.confidence, self.agreement], -1).tolist()
        return [(sure / n, holds / n, round(n)) for n, sure, holds in bins if n]
