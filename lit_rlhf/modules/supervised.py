"""Supervised fine-tuning: the initial policy."""

from functools import partial
from pathlib import Path

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lit_rlhf.distributed import sum_over_ranks
from lit_rlhf.errors import DataError
from lit_rlhf.internals.lightning import log_reduced
from lit_rlhf.models import ModelSpec, export_policy
from lit_rlhf.modules.means import Means
from lit_rlhf.modules.offline import OfflineModule
from lit_rlhf.modules.parts import export_once
from lit_rlhf.modules.steps import Steps
from lit_rlhf.objectives import Reduction, TokenMean
from lit_rlhf.types import BranchOutput, DemonstrationBatch, LossOutput, asked, num_branches


class SupervisedModule(OfflineModule):
    r"""Maximise the likelihood of demonstrations.

    $L = -\frac{1}{\sum_n |y_n|} \sum_n \sum_t \log \pi(y_{n,t} \mid x_n, y_{n,<t})$: only the tokens of completions
    count.

    The sums go over all tokens of an optimizer step, on all ranks and in all microbatches of
    `trainer.accumulate_grad_batches`, and in evaluation over the whole data set: batch sizes change nothing. Logs
    `loss` (nats per token) and `num_tokens`. For another loss of tokens override `loss`.

    Args:
        backbone: The model and how it is loaded, quantized and adapted.
        reduction: How token losses become one number; default: mean over tokens.
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

    def loss(self, out: BranchOutput, batch: DemonstrationBatch) -> LossOutput:
        """The unreduced loss (N, T) of what the model says of a batch. To be overridden for another one."""
        return LossOutput(-asked(out.logprobs))

    def training_step(self, batch: DemonstrationBatch, batch_idx: int) -> Tensor:
        """The loss: the reduction of the tokens of an optimizer step, on all ranks and in all its microbatches."""
        sums = self._step(batch, "train", batch_idx)
        return self.step_loss(*sums, len(batch["input_ids"]), batch_idx)

    def validation_step(self, batch: DemonstrationBatch, batch_idx: int) -> None:
        """Log the loss on held-out demonstrations."""
        self.log_held_out_loss("val", *self._step(batch, "val", batch_idx))

    def test_step(self, batch: DemonstrationBatch, batch_idx: int) -> None:
        """Log the loss on test demonstrations."""
        self.log_held_out_loss("test", *self._step(batch, "test", batch_idx))

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
        export_once(self, partial(export_policy, self.backbone, path, merge=merge))

    def _step(self, batch: DemonstrationBatch, stage: str, batch_idx: int) -> tuple[Tensor, Tensor]:
        """This process's numerator and denominator of the loss."""
        if (
            batch_idx == 0
            and not batch["branch_ids"].is_meta
            and (count := num_branches(batch)) != 1
        ):
            raise DataError(
                f"{type(self).__name__} imitates one completion of each prompt, and these rows have {count}. Use "
                "DemonstrationDataModule, for the chosen answers of pairs with format Demonstration(completion="
                "'chosen')."
            )
        out = self(batch)
        output = LossOutput.of(self.loss(out, batch), out.mask.shape, self)
        tokens = out.mask.sum().float()
        means = Means()
        means.add_all(output.metrics, out.mask)
        for name, mean in means.compute(sum_over_ranks, self.device).items():
            log_reduced(self, f"{stage}/{name}", mean, len(batch["input_ids"]))
        self.log(
            f"{stage}/num_tokens",
            tokens,
            reduce_fx="sum",
            sync_dist=True,
            on_step=False,
            on_epoch=True,
        )
        return (
            self.reduction.numerator(output.loss, out.mask),
            self.reduction.denominator(out.mask),
        )
