"""Reward modelling: a scalar that reproduces human preferences."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import Metric

from lit_rlhf.distributed import sum_over_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.branches import at_step_ends
from lit_rlhf.internals.lightning import log_reduced, tries_rates
from lit_rlhf.metrics import (
    CalibrationError,
    LengthCorrelation,
    MeanAndStd,
    PreferenceAccuracy,
    RewardMargin,
    agreement,
)
from lit_rlhf.models import ModelSpec, export_reward
from lit_rlhf.modules.means import SubsetMeans
from lit_rlhf.modules.offline import OfflineModule
from lit_rlhf.modules.parts import export_once
from lit_rlhf.modules.reward_checks import (
    check_first_batch,
    require_margins,
    require_trained_heads,
    warn_of_learning_rate,
    warn_of_opposite,
)
from lit_rlhf.modules.steps import Steps
from lit_rlhf.objectives import BradleyTerry, RewardLoss
from lit_rlhf.objectives.columns import read_column
from lit_rlhf.types import (
    BranchedBatch,
    BranchOutput,
    LossOutput,
    ProcessBatch,
    asked,
    num_branches,
)


class RewardModelModule(OfflineModule):
    r"""A reward model fitted to preferences.

    By default $P(y_w \succ y_l) = \sigma(r(x, y_w) - r(x, y_l))$ (Bradley–Terry; arXiv:2009.01325).

    A prompt with K branches is one row and the prompt is computed once; each branch is scored at its last token by a
    float32 head. The loss is injected, so margins, soft labels, rankings, regression, labels of steps and losses with
    several heads need no other module. For a formula of your own write a `RewardLoss`, or override `loss`.

    Logs TRL's `accuracy, margin, min_reward, mean_reward, max_reward` and, in validation, the calibration error of
    $\sigma(\text{margin})$ and the correlation of reward and length; where the data have a column `subset`, accuracy by
    it too.

    Args:
        backbone: The model and how it is loaded, quantized and adapted.
        loss: The unreduced loss of the branches' scores; default `BradleyTerry()`.
        optimizer: Called with parameter groups; default AdamW(lr=1e-5), which suits full fine-tuning; LoRA wants about
            1e-4.
        lr_scheduler: Called with the optimizer, stepped once per optimizer step.
        seed: Seed of the scalar head's initial weights.
        steps: Which steps are skipped, and what decays; see `Steps`.
    """

    default_lr = 1e-5
    needs_lm_head = False

    def __init__(
        self,
        backbone: ModelSpec,
        loss: RewardLoss | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
        steps: Steps | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler, seed, steps)
        self.objective = loss or BradleyTerry()
        self.score_mean, self.score_std = 0.0, 1.0
        self.metrics = _Metrics()
        self._unchecked = False
        # Sum of agreement and number of pairs since the last validation.
        self._train_right = torch.zeros(2)

    def configure_roles(self) -> None:
        """Train the adapter `reward` where a LoRA is given, else the model; always with a scalar head."""
        if self.backbone.has_lora:
            self.backbone.add_adapter("reward", path=self.spec.adapter)
        for head in self.objective.heads:
            if head not in self.backbone.heads:  # an adapter directory may bring one
                self.backbone.add_head(head, drawn=head not in self.objective.zero_heads)

    def forward(self, batch: BranchedBatch) -> BranchOutput:
        """Scores of all branches, (B * K,) or with several heads (B * K, H); where steps count, `values` too."""
        heads = self.objective.heads
        out: BranchOutput = self.backbone(
            batch,
            num_branches=num_branches(batch),
            role="reward",
            scores=heads[0] if len(heads) == 1 else heads,
            values=heads[0] if self.objective.by_step else None,
        )
        return out

    def loss(self, scores: Tensor, batch: BranchedBatch) -> LossOutput:
        """The unreduced loss (B,) and metrics of scores: the injected formula. To be overridden for another one."""
        return self.objective.of_batch(scores, cast("Mapping[str, Any]", batch))

    def on_fit_start(self) -> None:
        """Compare the data with the models and the loss."""
        super().on_fit_start()
        require_margins(self.objective, getattr(self.trainer, "datamodule", None))

    def on_train_start(self) -> None:
        """Look for causes that would keep it from learning; see `reward_checks`."""
        super().on_train_start()
        optimizers, heads = self.trainer.optimizers, self.objective.heads
        require_trained_heads(self.backbone, heads, optimizers, whole=not self._flat())
        lora = self.backbone.has_lora
        if not tries_rates(self.trainer):
            warn_of_learning_rate(optimizers, self.backbone.hidden_size, lora=lora)
        self._unchecked = not self._flat()

    def _flat(self) -> bool:
        """Whether the strategy keeps parameters in flat copies, and wants one forward for each step."""
        return isinstance(self.trainer.strategy, FSDPStrategy | DeepSpeedStrategy)

    def training_step(self, batch: BranchedBatch, batch_idx: int) -> Tensor:
        """The loss: the mean over the prompts of an optimizer step, on all ranks and in all its microbatches."""
        if self._unchecked:
            self._unchecked = False
            check_first_batch(self.backbone, batch, self.scores)
        scores, _ = self.scores(batch)
        output = self._output(scores, batch)
        if (right := output.metrics.get("accuracy")) is not None:
            seen = torch.stack([right.nansum(), (~right.isnan()).sum()]).float()
            self._train_right = self._train_right.to(seen.device) + seen
        reward = self.objective.reward(scores).detach()
        self.log_rows("train", {**output.metrics, "mean_reward": reward.flatten()})
        self.log("train/min_reward", reward.min(), reduce_fx="min", sync_dist=True)
        self.log("train/max_reward", reward.max(), reduce_fx="max", sync_dist=True)
        return self.step_loss(*_sum_and_count(output.loss), len(scores), batch_idx)

    def validation_step(self, batch: BranchedBatch, batch_idx: int) -> dict[str, Tensor]:
        """Accumulate loss, accuracy, margin, calibration, length correlation; gives what `predict_step` does."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: BranchedBatch, batch_idx: int) -> dict[str, Tensor]:
        """The same on the test set."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: BranchedBatch, batch_idx: int) -> dict[str, Tensor]:
        """Rewards of the branches, (B, K), or of the steps, (B, S)."""
        scores, _ = self.scores(batch)
        return {"scores": self.objective.reward(scores)}

    def check_export(self) -> None:
        """Refuse a reward that is no linear head."""
        if self.objective.exported is None:
            raise ConfigurationError(
                f"The reward of {type(self.objective).__name__} is more than a linear head, which is all that other "
                "tools read. Leave ExportModel out, and give ModelReward and evaluate-reward the checkpoint."
            )

    def export(self, path: Path, merge: bool = True) -> None:
        """Write the reward model for other tools; see `models.export_reward`. `loss.exported` says what of it."""
        self.check_export()
        write = partial(
            export_reward,
            self.backbone,
            path,
            merge=merge,
            score_mean=self.score_mean,
            score_std=self.score_std,
            head=self.objective.heads[0],
            weight=self.objective.exported_weight(self._head_weights()),
            note=self.objective.exported or "",
        )
        export_once(self, write)

    def extra_state(self) -> dict[str, Any]:
        """Mean and deviation of the scores seen in the last validation; what part of the reward each head is."""
        state: dict[str, Any] = {"score_mean": self.score_mean, "score_std": self.score_std}
        state["exported"] = self.objective.exported
        heads = self.objective.heads
        if "reward" not in heads and self.objective.exported is not None:
            # It is linear in the heads.
            parts = self.objective.exported_weight(torch.eye(len(heads)))
            state["reward_parts"] = dict(zip(heads, parts.tolist(), strict=True))
        return state

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the score statistics."""
        self.score_mean, self.score_std = state["score_mean"], state["score_std"]

    def _head_weights(self) -> Tensor:
        return torch.stack(
            [self.backbone.heads[name].get_parameter("weight") for name in self.objective.heads]
        )

    def scores(self, batch: BranchedBatch) -> tuple[Tensor, Tensor]:
        """Scores as the loss takes them, and the number of tokens of each branch, (B, K)."""
        out = self(batch)
        scores = asked(out.scores)
        rows, lengths = len(batch["input_ids"]), out.mask.sum(-1)
        if self.objective.by_step:
            ends = read_column(self.objective, cast("Mapping[str, Any]", batch), "step_end")
            return at_step_ends(asked(out.values), scores, out.mask, ends), lengths[:, None]
        return scores.view(rows, -1, *scores.shape[1:]), lengths.view(rows, -1)

    def _output(self, scores: Tensor, batch: BranchedBatch) -> LossOutput:
        owner = self.objective if type(self).loss is RewardModelModule.loss else self
        return LossOutput.of(self.loss(scores, batch), (len(scores),), owner)

    def _evaluate(self, batch: BranchedBatch, stage: str) -> dict[str, Tensor]:
        scores, lengths = self.scores(batch)
        rows = len(batch["input_ids"])
        output = self._output(scores, batch)
        rewards = self.objective.reward(scores)
        self.log_held_out_loss(stage, *_sum_and_count(output.loss))
        updated = []
        if self.objective.by_step:
            self.metrics.score.update(rewards[cast("ProcessBatch", batch)["step_mask"]])
        else:
            exists = lengths > 0
            self.metrics.score.update(rewards[exists])
            self.metrics.length_correlation.update(rewards[exists], lengths[exists].float())
            updated.append("length_correlation")
        if "score" not in batch and not self.objective.by_step and rewards.shape[1] == 2:
            chosen, rejected = rewards.unbind(-1)
            p_chosen = cast("Tensor | None", batch.get("p_chosen"))
            self.metrics.accuracy.update(chosen, rejected, p_chosen)
            self.metrics.margin.update(chosen, rejected)
            self.metrics.calibration_error.update(chosen, rejected, p_chosen)
            updated += ["accuracy", "margin", "calibration_error"]
            p = torch.ones_like(chosen) if p_chosen is None else p_chosen
            right: Tensor | None = agreement(chosen - rejected, p)
        else:  # ranked lists, scalar labels and steps have no one chosen answer: the loss knows what to count
            self.log_rows(stage, output.metrics)
            right = output.metrics.get("accuracy")
        subset = cast("Sequence[str] | None", batch.get("subset"))
        if right is not None and subset is not None:
            self.metrics.subsets.update(subset, right)
        for name in updated:
            self.log(
                f"{stage}/{name}",
                getattr(self.metrics, name),
                prog_bar=name == "accuracy",
                batch_size=rows,
            )
        return {"scores": rewards}

    def _log_subsets(self, stage: str) -> None:
        for name, (mean, count) in self.metrics.subsets.compute().items():
            log_reduced(self, f"{stage}/accuracy/{name}", mean, count)

    def on_validation_epoch_start(self) -> None:
        """Forget what an evaluation that was broken off has added up, or a test, whose scores nothing asked for."""
        self.metrics.reset()

    def on_test_epoch_start(self) -> None:
        """The same."""
        self.metrics.reset()

    def on_test_epoch_end(self) -> None:
        """Tell accuracy by subset."""
        self._log_subsets("test")

    def on_validation_epoch_end(self) -> None:
        """Tell accuracy by subset; remember mean and deviation of the scores, by which an export can be normalised."""
        self._log_subsets("val")
        accuracy = self.metrics.accuracy
        if self.trainer.state.fn == TrainerFn.FITTING and accuracy.update_count:
            right, count = sum_over_ranks(self._train_right).tolist()
            held_out = int(sum_over_ranks(accuracy.total))
            if count and held_out:
                told = (right / count, int(count)), (float(accuracy.compute()), held_out)
                warn_of_opposite(*told)
            self._train_right = torch.zeros_like(self._train_right)
        mean, std = self.metrics.score.compute().tolist()
        if not self.trainer.sanity_checking:
            self.score_mean, self.score_std = mean, std


def _sum_and_count(loss: Tensor) -> tuple[Tensor, Tensor]:
    return loss.sum(), loss.new_tensor(float(len(loss)))


class _Metrics(nn.Module):
    """What validation accumulates over batches and ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = PreferenceAccuracy()
        self.margin = RewardMargin()
        self.calibration_error = CalibrationError()
        self.length_correlation = LengthCorrelation()
        self.score = MeanAndStd()
        self.subsets = SubsetMeans()

    def reset(self) -> None:
        for metric in self.children():
            cast("Metric", metric).reset()
        self.subsets = SubsetMeans()
