"""What modules share that learn from given rows, and whose steps Lightning takes."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from lit_rlhf.distributed import num_ranks, sum_over_ranks, weighted_mean
from lit_rlhf.internals.lightning import loss_scaler
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.modules.means import TINY, StepMean
from lit_rlhf.modules.steps import gradient_norm, gradients


class OfflineModule(RLHFModule):
    """Base of modules that learn from demonstrations, labels or preferences: a `training_step` returns a loss.

    Arguments are those of `RLHFModule`.
    """

    @cached_property
    def step_mean(self) -> StepMean:
        """Of the optimizer step under way."""
        return StepMean()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Log the share of padding too."""
        super().on_train_batch_start(batch, batch_idx)
        if isinstance(batch, Mapping) and "branch_ids" in batch:
            padding = weighted_mean((batch["branch_ids"] < 0).float())
            self.log("train/padding_share", padding, batch_size=len(batch["branch_ids"]))

    def step_loss(
        self, numerator: Tensor, denominator: Tensor, rows: int, batch_idx: int
    ) -> Tensor:
        """Log `train/loss` of a batch, and make of it the loss that `training_step` returns.

        Args:
            numerator: The sum of the losses of this process's batch, with gradient.
            denominator: What they are divided by: tokens, rows or weights.
            rows: Of the batch.
            batch_idx: Its number in the epoch.
        """
        total = sum_over_ranks(denominator).clamp_min(TINY)
        loss = (numerator * num_ranks() / total).detach()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=rows)
        return self.step_mean.share(self, numerator, total, batch_idx)

    def log_held_out_loss(self, stage: str, numerator: Tensor, denominator: Tensor) -> None:
        """Log `val/loss` or `test/loss` of a batch, so that the epoch's is one quotient over all batches and ranks."""
        # Lightning adds up mean * weight, and divides by all the weight.
        mean, weight = numerator / denominator.clamp_min(TINY), float(denominator)
        self.log(f"{stage}/loss", mean, prog_bar=True, sync_dist=True, batch_size=weight)  # type: ignore[arg-type]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Weigh microbatches by what they hold; let no step through whose gradient isn't finite."""
        self.step_mean.finish(self)
        parameters = gradients(optimizer)
        if not parameters:  # DeepSpeed keeps them to itself, and skips by itself
            return
        norm = gradient_norm(parameters)
        if isinstance(self.trainer.strategy, FSDPStrategy):  # each process has a part
            norm = sum_over_ranks(norm.square()).sqrt()
        scaler = loss_scaler(self)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            norm = norm / scale  # fused ones unscale in their step
        if not self.guard.passes(norm, shrinking=scale > 1) and scaler is None:
            # What has no gradient doesn't move; a scaler skips by itself.
            optimizer.zero_grad(set_to_none=True)
        self.log("train/grad_norm", norm)
        self.log("train/lr", float(optimizer.param_groups[0]["lr"]))
        self.log("train/skipped_steps", float(self.guard.skipped))
