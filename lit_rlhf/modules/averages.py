"""Means over batches of unequal size: of what is logged, and of the gradients of an optimizer step."""

from collections.abc import Callable, Mapping

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_rlhf.errors import ConfigurationError

TINY = 1e-30
"""Least denominator of a mean, so that one of nothing is 0."""


class StepMean:
    """The loss of an optimizer step as one quotient, however its microbatches divide the data.

    Lightning divides the loss of each microbatch by `accumulate_grad_batches`, which is right for microbatches of equal
    size alone. Here the loss of a microbatch is its numerator over the denominator of the first one; before the step
    the gradients, which are linear in it, are brought to the denominator of all: training is that of one big batch. A
    step of one microbatch is left alone.
    """

    def __init__(self) -> None:
        self._first = self._total = torch.ones(())
        self._count = 0

    def share(
        self, module: LightningModule, numerator: Tensor, denominator: Tensor, batch_idx: int
    ) -> Tensor:
        """The loss to return from `training_step`.

        Args:
            module: Which trains.
            numerator: Of this process's microbatch, with gradient.
            denominator: Of the microbatches of all processes, above 0.
            batch_idx: The microbatch's number in its epoch.
        """
        if self._count == 0 or batch_idx % module.trainer.accumulate_grad_batches == 0:
            self._first, self._total, self._count = denominator, torch.zeros_like(denominator), 0
        self._total, self._count = self._total + denominator, self._count + 1
        # Strategies average gradients over processes.
        return numerator * module.trainer.world_size / self._first

    @torch.no_grad()
    def finish(self, module: LightningModule) -> None:
        """Bring the gradients to the denominator of the whole step; `RLHFModule` does before each step.

        Raises:
            ConfigurationError: The strategy keeps the gradients to itself.
        """
        count, self._count = self._count, 0
        steps = module.trainer.accumulate_grad_batches
        if steps == 1 or count == 0:
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if not gradients:
            raise ConfigurationError(
                f"trainer.accumulate_grad_batches={steps} averages over all tokens or rows of a step, which takes the "
                f"gradients, and {type(module.trainer.strategy).__name__} keeps those to itself. Set "
                "accumulate_grad_batches: 1, or another strategy."
            )
        for gradient in gradients:
            gradient.mul_((steps * self._first / self._total).to(gradient.dtype))


def row_means(
    metrics: Mapping[str, Tensor], sum_over_ranks: Callable[[Tensor], Tensor]
) -> dict[str, tuple[float, int]]:
    """Mean over the rows of all processes that a metric concerns, and their number; metrics of no row are left out.

    Args:
        metrics: (B,) each, nan in rows that it doesn't concern.
        sum_over_ranks: Adds up a tensor over processes.
    """
    if not metrics:
        return {}
    sums = [
        torch.stack([value.double().nansum(), (~value.isnan()).sum()]) for value in metrics.values()
    ]
    totals = sum_over_ranks(torch.stack(sums)).tolist()
    return {
        name: (total / n, int(n)) for name, (total, n) in zip(metrics, totals, strict=True) if n > 0
    }
