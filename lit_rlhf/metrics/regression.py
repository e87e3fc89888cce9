"""Means and variances: how scores spread, how well values predict returns, how much scores follow length."""

import warnings

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.regression import PearsonCorrCoef

from lit_rlhf.functional.masking import Moments, merge_moments


class _Moments(Metric):
    """Means and sums of squared deviations of k series, each state (k,), merged without cancelling."""

    full_state_update = True  # states of parts are merged in `_moments`, not by a sum
    is_differentiable = False

    count: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, num_series: int) -> None:
        super().__init__()
        self.num_series = num_series
        self.add_state("count", torch.zeros(num_series, dtype=torch.int64), dist_reduce_fx=None)
        self.add_state("mean", torch.zeros(num_series), dist_reduce_fx=None)
        self.add_state("deviation", torch.zeros(num_series), dist_reduce_fx=None)

    def _add(self, data: Tensor) -> None:
        """Take in n numbers of each series, (k, n)."""
        if not data.shape[-1]:
            return
        mean = data.mean(-1)
        deviation = (data - mean[:, None]).square().sum(-1)
        new = (torch.full_like(self.count, data.shape[-1]), mean, deviation)
        parts = map(torch.stack, zip((self.count, self.mean, self.deviation), new, strict=True))
        self.count, self.mean, self.deviation = merge_moments(Moments(*parts))

    def _moments(self) -> Moments:
        """Of each series (k,), over all ranks."""
        # With several ranks each state has a leading axis of ranks.
        states = (self.count, self.mean, self.deviation)
        return merge_moments(Moments(*(state.view(-1, self.num_series) for state in states)))


class MeanAndStd(_Moments):
    """Mean and population standard deviation of all numbers seen.

    Example:
        >>> metric = MeanAndStd()
        >>> metric.update(torch.tensor([1.0, 3.0]))
        >>> metric.compute()
        tensor([2., 1.])
    """

    def __init__(self) -> None:
        super().__init__(num_series=1)

    def update(self, values: Tensor) -> None:
        """Take in numbers of any shape."""
        self._add(values.detach().float().reshape(1, -1))

    def compute(self) -> Tensor:
        """(2,): mean and standard deviation; nan if nothing was seen."""
        count, mean, deviation = self._moments()
        result = torch.cat([mean, (deviation / count).sqrt()])
        return torch.where(count > 0, result, torch.nan)


class ExplainedVariance(_Moments):
    r"""The share of the variance of the returns that the values explain, over the tokens that count.

    $$\text{EV} = 1 - \frac{\operatorname{Var}[R - V]}{\operatorname{Var}[R]}$$

    1 is perfect, 0 no better than a constant, below 0 worse than a constant. An error that is the same everywhere does
    not count. (torchmetrics' class of this name takes no mask, and subtracts sums of squares.)

    Example:
        >>> metric = ExplainedVariance()
        >>> metric.update(
        ...     torch.tensor([[1.0, 2.0, 9.0]]),
        ...     torch.tensor([[1.0, 4.0, 0.0]]),
        ...     torch.tensor([[1, 1, 0]]),
        ... )
        >>> metric.compute()
        tensor(0.5556)
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__(num_series=2)  # errors, returns

    def update(self, values: Tensor, returns: Tensor, mask: Tensor | None = None) -> None:
        """Take in tokens.

        Args:
            values: (N, T) predictions.
            returns: (N, T) targets.
            mask: (N, T), 1 = counts; default all.
        """
        keep = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
        target = returns.detach()[keep].float()
        self._add(torch.stack([target - values.detach()[keep].float(), target]))

    def compute(self) -> Tensor:
        """A scalar, at most 1; nan if the returns do not vary."""
        _, _, deviation = self._moments()
        return torch.where(deviation[1] > 0, 1 - deviation[0] / deviation[1], torch.nan)


class LengthCorrelation(PearsonCorrCoef):
    r"""The Pearson correlation of the scores and the lengths of answers.

    $$\rho = \frac{\operatorname{Cov}[r, |y|]}{\sqrt{\operatorname{Var}[r]\,\operatorname{Var}[|y|]}}$$

    Near 1, the reward model has learned that longer is better (arXiv:2310.03716); compare with the correlation in the
    data before blaming the model.

    Example:
        >>> metric = LengthCorrelation()
        >>> metric.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10, 20, 30]))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = None  # neither: it describes

    def update(self, scores: Tensor, lengths: Tensor, mask: Tensor | None = None) -> None:
        """Take in answers.

        Args:
            scores: (n,) or (B, K).
            lengths: Of the same shape: tokens of each answer.
            mask: Of the same shape, 1 = the answer exists; default all.
        """
        keep = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
        if keep.any():
            super().update(scores.detach()[keep].float(), lengths[keep].float())

    def compute(self) -> Tensor:
        """A scalar in [-1, 1]; nan if scores or lengths do not vary."""
        with warnings.catch_warnings():
            # That a new head scores everything alike is no news, and nan says it.
            said = "The variance of predictions or target"
            warnings.filterwarnings("ignore", message=said, category=UserWarning)
            return super().compute()
