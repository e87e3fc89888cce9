"""Running statistics that losses carry from batch to batch, as buffers, so that checkpoints and devices find them."""

from torch import Tensor, nn, ones_like, where, zeros

from lit_rlhf.distributed import sum_over_ranks, weighted_mean


class RunningMean(nn.Module):
    """Mean of all values seen, over all processes.

    Attributes:
        mean: The mean, 0 before the first update.
        count: Number (or summed weight) of the values seen.
    """

    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", zeros(()))
        self.register_buffer("count", zeros(()))

    def update(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Take in a batch's values (n,), without gradient."""
        values = values.detach()
        weights = ones_like(values) if weights is None else weights.to(values.dtype)
        total, added = sum_over_ranks((values * weights).sum()), sum_over_ranks(weights.sum())
        count = self.count + added
        self.mean = (self.mean * self.count + total) / where(count > 0, count, 1.0)
        self.count = count


class MovingMoments(nn.Module):
    """Exponential moving averages of batches' means and standard deviations, over all processes.

    They start at the first batch's values, so that there is no bias to a made-up start.

    Args:
        momentum: Weight of the past, in [0, 1).
    """

    mean: Tensor
    std: Tensor
    count: Tensor

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", zeros(()))
        self.register_buffer("std", zeros(()))
        self.register_buffer("count", zeros(()).long())

    def update(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Take in a batch's values (n,), without gradient."""
        mean = weighted_mean(values.detach(), weights)
        std = weighted_mean((values.detach() - mean).square(), weights).sqrt()
        keep = where(self.count > 0, self.momentum, 0.0)
        self.mean = keep * self.mean + (1 - keep) * mean
        self.std = keep * self.std + (1 - keep) * std
        self.count = self.count + 1
