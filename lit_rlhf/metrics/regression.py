"""How well values predict returns, and how much scores follow length."""

import warnings

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.regression import PearsonCorrCoef


class ExplainedVariance(Metric):
    r"""The share of the variance of the returns that the values explain, over the tokens that count.

    $$\text{EV} = 1 - \frac{\operatorname{Var}[R - V]}{\operatorname{Var}[R]}$$

    1 is perfect, 0 no better than a constant, below 0 worse than a constant. An error that is the same everywhere does
    not count. Means and squared deviations are merged as in Chan, Golub and LeVeque (1979): torchmetrics' class of this
    name takes no mask, and subtracts sums of squares, which in float32 loses all digits for returns far from 0.

    Example:
        >>> metric = ExplainedVariance()
        >>> metric.update(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1.0, 4.0, 0.0]]), torch.tensor([[1, 1, 0]]))
        >>> metric.compute()
        tensor(0.5556)
    """

    full_state_update = True  # states of parts are merged in `compute`, not by a sum
    is_differentiable = False
    higher_is_better = True

    count: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.tensor(0), dist_reduce_fx=None)
        # Of the errors and of the returns.
        self.add_state("mean", torch.zeros(2), dist_reduce_fx=None)
        self.add_state("deviation", torch.zeros(2), dist_reduce_fx=None)

    def update(self, values: Tensor, returns: Tensor, mask: Tensor | None = None) -> None:
        """Take in tokens.

        Args:
            values: (N, T) predictions.
            returns: (N, T) targets.
            mask: (N, T), 1 = counts; default all.
        """
        keep = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
        target = returns.detach()[keep].float()
        if not target.numel():
            return
        data = torch.stack([target - values.detach()[keep].float(), target])
        mean = data.mean(-1)
        deviation = (data - mean[:, None]).square().sum(-1)
        count = torch.stack([self.count, self.count.new_tensor(target.numel())])
        self.count, self.mean, self.deviation = _merge(
            count, torch.stack([self.mean, mean]), torch.stack([self.deviation, deviation])
        )

    def compute(self) -> Tensor:
        """A scalar, at most 1; nan if the returns do not vary."""
        # With several ranks each state has a leading axis of ranks.
        _, _, deviation = _merge(self.count.view(-1), self.mean.view(-1, 2), self.deviation.view(-1, 2))
        ratio = deviation[0] / deviation[1]
        return torch.where(deviation[1] > 0, 1 - ratio, torch.nan)


def _merge(count: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Join the counts (k,), means (k, 2) and sums of squared deviations (k, 2) of k parts."""
    total = count.sum()
    weight = (count / total.clamp_min(1))[:, None]
    grand = (weight * mean).sum(0)
    between = (count[:, None] * (mean - grand).square()).sum(0)
    return total, grand, deviation.sum(0) + between


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
            warnings.filterwarnings("ignore", message="The variance of predictions or target", category=UserWarning)
            return super().compute()


class MeanAndStd(Metric):
    """Mean and population standard deviation of all numbers seen.

    Example:
        >>> metric = MeanAndStd()
        >>> metric.update(torch.tensor([1.0, 3.0]))
        >>> metric.compute()
        tensor([2., 1.], dtype=torch.float64)
    """

    full_state_update = False
    is_differentiable = False

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Take in numbers of any shape."""
        x = values.detach().double()
        count = torch.full((), x.numel(), dtype=torch.float64, device=x.device)
        self.sums += torch.stack([count, x.sum(), x.square().sum()])

    def compute(self) -> Tensor:
        """(2,): mean and standard deviation; nan if nothing was seen."""
        count, total, squares = self.sums.unbind()
        mean = total / count
        return torch.stack([mean, (squares / count - mean.square()).clamp_min(0).sqrt()])
