"""Direct alignment: a policy trained on preferences without a reward model."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_rlhf.distributed import next_rows, num_ranks, sum_over_ranks
from lit_rlhf.errors import CheckpointError, ConfigurationError, DataError
from lit_rlhf.functional.branches import add_mismatched_branches
from lit_rlhf.functional.kl import full_kl
from lit_rlhf.models import (
    Comparison,
    Critic,
    ModelSpec,
    ValueHead,
    divide,
    evaluating,
    export_policy,
    weights_fingerprint,
)
from lit_rlhf.models.specs import DTypeName
from lit_rlhf.modules.means import TINY
from lit_rlhf.modules.offline import OfflineModule
from lit_rlhf.modules.parts import export_once
from lit_rlhf.modules.precompute import precompute_reference
from lit_rlhf.modules.reference import Reference
from lit_rlhf.modules.steps import Steps
from lit_rlhf.objectives import DPO, PairwiseLoss, PreferenceLoss, PreferenceStats
from lit_rlhf.objectives.columns import column_defaults
from lit_rlhf.types import (
    BranchedBatch,
    BranchOutput,
    LossOutput,
    SequenceStats,
    asked,
    num_branches,
)

_OF_REFERENCE = {"tokens", "kl"}
"""Statistics that need more of the reference than summed log-probs."""


class PreferenceModule(OfflineModule):
    r"""Train a policy by a loss of its log-probs on labelled completions: DPO (arXiv:2305.18290) and its family.

    A prompt with K completions is one row and the prompt is computed once. The loss is injected: pairs (K = 2), ranked
    lists, single completions. The reference is the base with the adapter off, a frozen copy of the initial policy where
    the model is trained in full, or log-probs computed once. A column `weight` (B,), where there is one, weighs the
    rows.

    Logs TRL's `rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins, logps/chosen, logps/rejected`.

    For a formula of your own write a `PreferenceLoss`, or override `loss`.

    Args:
        backbone: The initial policy and how it is loaded, quantized and adapted.
        loss: The unreduced loss; default `DPO(beta=0.1)`.
        reference: "live" computes the reference's log-probs at each step. "precomputed" computes those of all training
            and validation rows before `fit` begins, once for the same weights, tokenizer, rows and limits: they stay in
            the DataModule's cache. The steps then run the policy alone, and full fine-tuning keeps no frozen copy.
            Other loaders must bring them in the batch as `ref_logprobs` (B, K). "auto" takes them from batches that
            have them.
        reference_dtype: Of the frozen copy in full fine-tuning; default: the policy's. "bfloat16" halves it, but the
            first log-ratios are then not 0.
        critic: Where the values come from of losses that learn one (`DROV`); default: a head on the policy's hidden
            states.
        optimizer: Called with parameter groups; default AdamW(lr=1e-6), which suits full fine-tuning; LoRA wants about
            1e-5.
        lr_scheduler: Called with the optimizer, stepped once per optimizer step.
        seed: Of LoRA's dropout, by iteration; the module draws nothing else.
        steps: Which steps are skipped, and what decays; see `Steps`.

    Raises:
        ConfigurationError: The loss needs of the reference what can't be precomputed, or an option would do nothing.
    """

    default_lr = 1e-6
    reference_fingerprint: str

    def __init__(
        self,
        backbone: ModelSpec,
        loss: PreferenceLoss | None = None,
        reference: Literal["auto", "live", "precomputed"] = "auto",
        reference_dtype: DTypeName | None = None,
        critic: Critic | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
        steps: Steps | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, lr_scheduler, seed, steps)
        self.reference = Reference()
        self.objective = loss or DPO()
        self.reference_source = reference
        self.reference_dtype = reference_dtype
        self.learns_value = "value" in self.objective.statistics
        if self.learns_value:
            self.critic = critic or ValueHead()
        self._refuse_bad_options(critic)

    def configure_roles(self) -> None:
        """Adapter `policy` and the base as reference, or a trainable model and a frozen copy of it."""
        if self.backbone.has_lora:
            self.backbone.add_adapter("policy")
        if self.reference_source == "precomputed":
            self.reference_fingerprint = (
                f"{weights_fingerprint(self.backbone)} {self.reference_dtype}"
            )
        elif self.objective.needs_reference:
            self.reference.attach(self.backbone, self.reference_dtype)
        if self.learns_value:
            self.critic.attach(self.backbone, None)

    def on_fit_start(self) -> None:
        """Compute the reference's log-probs, where they are to be had before the first step."""
        super().on_fit_start()
        if self.reference_source == "precomputed":
            precompute_reference(
                self,
                self.reference_fingerprint,
                lambda batch: self.reference_statistics(batch).logprobs,
                self.reference_dtype,
            )

    def require_movable_reference(self, alpha: float) -> None:
        """Refuse log-probs that were computed before the reference moved, and rounding."""
        super().require_movable_reference(alpha)
        if self.reference_source == "precomputed" or not self.objective.needs_reference:
            why = (
                "reference='precomputed'"
                if self.objective.needs_reference
                else f"{type(self.objective).__name__} has none"
            )
            raise ConfigurationError(
                f"The reference of this PreferenceModule can't move: {why}. Set reference='live' and a loss with a "
                "reference, or remove MovingReference from trainer.callbacks."
            )
        if alpha < 1 and self.reference_dtype not in (None, "float32"):
            raise ConfigurationError(
                f"MovingReference(alpha={alpha}) averages weights, and in reference_dtype={self.reference_dtype!r} "
                "small steps round away. Leave reference_dtype out, or set alpha: 1."
            )

    # -- statistics ---------------------------------------------------------------------------------------------------

    def forward(self, batch: BranchedBatch, against: Comparison | None = None) -> PreferenceStats:
        """Summed log-probs and lengths (B, K) of the branches under the policy, and what else the loss asks for.

        Args:
            batch: Rows of prompts with K branches each.
            against: The reference's states, for a divergence from it.
        """
        branches = self._branches(batch)
        on_policy = "value" if self.learns_value and self.critic.head_on_policy else None
        out = self.backbone(
            batch,
            num_branches=branches,
            logprobs=True,
            values=on_policy,
            collision="collision" in self.objective.statistics,
            against=against,
        )
        value = None
        if self.learns_value:
            values = out.values if on_policy else self.critic.values(self.backbone, batch, branches)
            # (N, T): at the state before the first token, that of the prompt
            value = values.view(-1, branches, values.shape[-1])[:, 0, 0]
        kl, collision = (
            None if each is None else each.view(-1, branches, each.shape[-1]).sum(-1)
            for each in (out.divergence, out.collision)
        )
        stats = self._sequences(out, branches)
        return PreferenceStats(**vars(stats), kl=kl, collision=collision, value=value)

    def reference_statistics(self, batch: BranchedBatch) -> SequenceStats:
        """The same under the reference, live."""
        return self._live_reference(batch)[0]

    def loss(
        self, policy: PreferenceStats, reference: SequenceStats | None, batch: BranchedBatch
    ) -> LossOutput:
        """The unreduced loss (B,) and metrics of a batch: the injected formula. To be overridden for another one."""
        return self.objective.of_batch(policy, reference, cast("Mapping[str, Any]", batch))

    def loss_output(self, batch: BranchedBatch) -> LossOutput:
        """The statistics of a batch, and `loss` of them."""
        self._require_branches(batch)
        if self.objective.needs_mismatched:
            rows = add_mismatched_branches(
                batch["input_ids"],
                batch["branch_ids"],
                self.backbone.pad_token_id,
                partial(next_rows, fill=-1),
            )
            batch = cast("BranchedBatch", {**batch, **rows._asdict()})
        given: SequenceStats | None
        if "kl" in self.objective.statistics:
            given, against = self._live_reference(batch)
            output = self._checked(self.loss(self(batch, against), given, batch), batch)
            if not torch.is_grad_enabled():  # no backward comes, after which it would be done
                divide(self.reference)
            return output
        given = self._reference(batch) if self.objective.needs_reference else None
        return self._checked(self.loss(self(batch), given, batch), batch)

    def reduce(self, loss: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Mean over the rows of the batch on all ranks, weighted by the column `weight` where there is one."""
        numerator, denominator = _fraction(loss, batch)
        return numerator * num_ranks() / sum_over_ranks(denominator).clamp_min(TINY)

    # -- steps --------------------------------------------------------------------------------------------------------

    def training_step(self, batch: BranchedBatch, batch_idx: int) -> Tensor:
        """The loss: the mean over the prompts of an optimizer step, on all ranks and in all its microbatches."""
        if batch_idx == 0 and self.current_epoch == 0:
            _tell_unread_labels(self.objective, batch)
        output = self._step(batch, "train")
        sums = _fraction(output.loss, cast("Mapping[str, Any]", batch))
        return self.step_loss(*sums, len(batch["input_ids"]), batch_idx)

    def validation_step(self, batch: BranchedBatch, batch_idx: int) -> None:
        """Log loss and metrics on held-out preferences."""
        self._evaluate(batch, "val")

    def test_step(self, batch: BranchedBatch, batch_idx: int) -> None:
        """The same on the test set."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: BranchedBatch, batch_idx: int) -> dict[str, Tensor]:
        """Log-probs under policy and reference, and lengths, (B, K) each, with the rows' index in the data."""
        policy, there = self(batch), num_branches(batch)  # without what a loss adds to compare with
        result = {
            "logprobs": policy.logprobs[:, :there],
            "lengths": policy.lengths[:, :there],
        }
        if "index" in batch:
            result["index"] = cast("Mapping[str, Tensor]", batch)["index"]
        if self.objective.needs_reference:
            result["ref_logprobs"] = self._reference(batch).logprobs[:, :there]
        return result

    def export(self, path: Path, merge: bool = True) -> None:
        """Write the policy for other tools; see `models.export_policy`."""
        export_once(self, partial(export_policy, self.backbone, path, merge=merge))

    def extra_state(self) -> dict[str, Any]:
        """Running statistics and parameters of the loss."""
        return {"loss": self.objective.state_dict()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        found, wanted = set(state["loss"]), set(self.objective.state_dict())
        if found != wanted:
            raise CheckpointError(
                f"The checkpoint holds the statistics {sorted(found)} of its loss, but {type(self.objective).__name__} "
                f"keeps {sorted(wanted)}. Set model.init_args.loss to the loss it was written with."
            )
        self.objective.load_state_dict(state["loss"])

    # -- inner parts --------------------------------------------------------------------------------------------------

    def _checked(self, output: object, batch: BranchedBatch) -> LossOutput:
        rows = None if self.objective.of_all_ranks else (len(batch["input_ids"]),)
        return LossOutput.of(output, rows, self.objective)

    def _step(self, batch: BranchedBatch, stage: str) -> LossOutput:
        self.objective.check(cast("Mapping[str, Tensor]", batch))
        output = self.loss_output(batch)
        self.log_rows(stage, output.metrics)
        return output

    def _evaluate(self, batch: BranchedBatch, stage: str) -> None:
        loss = self._step(batch, stage).loss
        self.log_held_out_loss(stage, *_fraction(loss, cast("Mapping[str, Any]", batch)))

    def _branches(self, batch: BranchedBatch) -> int:
        if self.objective.num_branches is None:
            return num_branches(batch)
        return self.objective.num_branches + int(self.objective.needs_mismatched)

    def _require_branches(self, batch: BranchedBatch) -> None:
        wanted = self.objective.num_branches
        if wanted is not None and not batch["branch_ids"].is_meta and num_branches(batch) != wanted:
            raise DataError(
                f"{type(self.objective).__name__} takes {wanted} completions of each prompt, but the batch has "
                f"{num_branches(batch)}. Choose a loss for this data, or convert the data "
                "(data.init_args) to what it takes."
            )

    def _live_reference(self, batch: BranchedBatch) -> tuple[SequenceStats, Comparison | None]:
        """Its statistics, and its states where the policy is compared with them token by token."""
        model, role = self.reference.beside(self.backbone)
        branches, compared = self._branches(batch), "kl" in self.objective.statistics
        with torch.no_grad(), evaluating(model):
            out = model(batch, num_branches=branches, role=role, logprobs=True, hidden=compared)
        stats = self._sequences(out, branches)
        if not compared:
            return stats, None
        return stats, Comparison(
            asked(out.hidden), model.logits, lambda ours, theirs: full_kl(theirs, ours)
        )

    def _sequences(self, out: BranchOutput, branches: int) -> SequenceStats:
        tokens, mask = (
            part.view(-1, branches, part.shape[-1]) for part in (asked(out.logprobs), out.mask)
        )
        by_token = (tokens, mask) if "tokens" in self.objective.statistics else ()
        return SequenceStats(tokens.sum(-1), mask.sum(-1), *by_token)

    def _reference(self, batch: BranchedBatch) -> SequenceStats:
        given: Tensor | None = cast("Mapping[str, Any]", batch).get("ref_logprobs")
        if given is not None and self.reference.moves and self.reference_source == "auto":
            raise DataError(
                "The batch has `ref_logprobs`, and the reference moves: they are stale. Set reference='live'."
            )
        if self.reference_source == "live" or (self.reference_source == "auto" and given is None):
            return self.reference_statistics(batch)
        branches = self._branches(batch)
        if given is None or given.shape[-1] != branches:
            raise DataError(
                f"reference={self.reference_source!r} needs `ref_logprobs` of {branches} completions a row in the "
                f"batch, which has {'none' if given is None else given.shape[-1]}. `fit` with a DataModule of this "
                "library computes them; elsewhere set reference='live'."
            )
        lengths = torch.zeros_like(given, dtype=torch.int64)  # unknown, and never asked for
        return SequenceStats(given, lengths)

    def _refuse_bad_options(self, critic: Critic | None) -> None:
        beyond = (_OF_REFERENCE & self.objective.statistics) or (
            {"KTO's KL"} if self.objective.needs_mismatched else set()
        )
        if self.reference_source == "precomputed" and beyond:
            raise ConfigurationError(
                f"reference='precomputed' holds summed log-probs alone, but {type(self.objective).__name__} needs "
                f"{sorted(beyond)} of the reference. Set reference='live'."
            )
        if self.reference_source == "precomputed" and not self.objective.needs_reference:
            raise ConfigurationError(
                f"reference='precomputed' is given, but {type(self.objective).__name__} needs no "
                "reference: leave it out."
            )
        if self.reference_dtype is not None and (
            self.spec.lora or self.spec.adapter or not self.objective.needs_reference
        ):
            raise ConfigurationError(
                f"reference_dtype={self.reference_dtype!r} is of the frozen copy in full "
                "fine-tuning; here is none. Leave it out."
            )
        if critic is not None and not self.learns_value:
            raise ConfigurationError(
                f"critic is given, but {type(self.objective).__name__} learns no value: leave it out."
            )


def _tell_unread_labels(loss: PreferenceLoss, batch: BranchedBatch) -> None:
    """Soft labels and margins are in files for many losses: say it where this one takes pairs as they stand."""
    if isinstance(loss, PairwiseLoss):
        unread = {"p_chosen", "margin"} & batch.keys() - column_defaults(loss.forward).keys()
        soft = "; SoftLabelDPO does" if "p_chosen" in unread else ""
        if unread:
            rank_zero_info(
                f"{type(loss).__name__} doesn't read {' and '.join(sorted(unread))} of the pairs{soft}."
            )


def _fraction(loss: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Sum of the rows' losses, and of their weights: the column `weight` where there is one, else 1 each."""
    weight: Tensor = batch.get("weight", torch.ones_like(loss)).to(loss.dtype)
    return (loss * weight).sum(), weight.sum().detach()
