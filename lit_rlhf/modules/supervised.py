"""Supervised fine-tuning: the initial policy."""

from pathlib import Path

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_rlhf.models import ModelSpec, export_policy
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.modules.steps import Steps
from lit_rlhf.objectives import Reduction, TokenMean
from lit_rlhf.types import BranchOutput, DemonstrationBatch


class SupervisedModule(RLHFModule):
    r"""Maximise the likelihood of demonstrations.

    $L = -\frac{1}{\sum_n |y_n|} \sum_n \sum_t \log \pi(y_{n,t} \mid x_n, y_{n,<t})$: only the tokens of completions
    count.

    Logs `loss` (nats per token) and `num_tokens`. With `trainer.accumulate_grad_batches` each microbatch weighs the
    same, however many tokens it has.

    Args:
        backbone: The model and how it is loaded, quantized and adapted.
        reduction: How token losses become one number; default: mean over the tokens of the batch on all ranks.
        optimizer: Called with parameter groups; default AdamW(lr=2e-5).
        lr_scheduler: Called with the optimizer, stepped once per optimizer step.
        seed: Of LoRA's dropout, by iteration; the module draws nothing else.
        steps: Which steps are skipped, and what decays; see `Steps`.
    """

    default_lr = 2e-5

    def __init__(
        self,
        backbone: ModelSpec,
        reduction: Reduction | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
        steps: Steps | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler, seed, steps)
        self.reduction = reduction or TokenMean()

    def configure_roles(self) -> None:
        """Train the adapter `policy` where a LoRA is given, else the model."""
        if self.backbone.has_lora:
            self.backbone.add_adapter("policy")

    def forward(self, batch: DemonstrationBatch) -> BranchOutput:
        """Log-probs of the completions' tokens."""
        out: BranchOutput = self.backbone(batch, num_branches=1, role="policy", logprobs=True)
        return out

    def training_step(self, batch: DemonstrationBatch, batch_idx: int) -> Tensor:
        """One optimizer step's loss."""
        return self._step(batch, "train")

    def validation_step(self, batch: DemonstrationBatch, batch_idx: int) -> None:
        """Log the loss on held-out demonstrations."""
        self._step(batch, "val")

    def test_step(self, batch: DemonstrationBatch, batch_idx: int) -> None:
        """Log the loss on test demonstrations."""
        self._step(batch, "test")

    def predict_step(self, batch: DemonstrationBatch, batch_idx: int) -> dict[str, Tensor]:
        """Log-likelihood and length of each completion."""
        out = self(batch)
        return {
            "index": batch["index"],
            "logprobs": out.logprobs.sum(-1),
            "lengths": out.mask.sum(-1),
        }

    def export(self, path: Path, merge: bool = True) -> None:
        """Write the fine-tuned model for other tools; see `models.export_policy`."""
        export_policy(self.backbone, path, merge=merge)

    def _step(self, batch: DemonstrationBatch, stage: str) -> Tensor:
        out = self(batch)
        loss = self.reduce_loss(-out.logprobs, out.mask, self.reduction)
        rows = len(batch["input_ids"])
        self.log(f"{stage}/loss", loss.detach(), prog_bar=True, sync_dist=True, batch_size=rows)
        tokens = out.mask.sum().float()
        self.log(
            f"{stage}/num_tokens",
            tokens,
            reduce_fx="sum",
            sync_dist=True,
            on_step=False,
            on_epoch=True,
        )
        return loss
