"""Why a reward model would not learn: causes that show at the start or in validation, named with the way out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.functional.logprobs import product_dtype
from lit_rlhf.metrics import wilson_interval
from lit_rlhf.models import Backbone, evaluating
from lit_rlhf.models.checks import close
from lit_rlhf.models.loading import embeddings
from lit_rlhf.objectives import RewardLoss, ScaledBradleyTerry
from lit_rlhf.types import BranchedBatch

_LOW, _HIGH = 1e-8, 1e-3
_LORA_LOW, _LORA_HIGH = 1e-6, 1e-2
_NARROW = 0.5  # narrow models, as in tests, bear rates up to this over their width
_FEW = 8
_SURE = 0.998
_LAYOUT = ("input_ids", "branch_ids", "position_ids")
Scoring = Callable[[BranchedBatch], tuple[Tensor, Tensor]]


def require_trained_heads(
    backbone: Backbone, heads: Sequence[str], optimizers: Sequence[Optimizer], *, whole: bool
) -> None:
    """Refuse to train with a score head that stays as it is.

    Args:
        backbone: With the heads.
        heads: Those of the objective.
        optimizers: Of the run.
        whole: Whether the optimizers hold the parameters themselves; some strategies give them flat copies.

    Raises:
        ConfigurationError: A head is frozen, or no optimizer has it.
    """
    optimized = {
        id(p) for each in optimizers for group in each.param_groups for p in group["params"]
    }
    for name in heads:
        for weight in backbone.heads[name].parameters():
            if not weight.requires_grad:
                raise ConfigurationError(
                    f"The score head {name!r} is frozen (requires_grad is False), so scores would stay what its "
                    "initial weights make of the states. Leave it trainable: backbone.add_head(..., trainable=True); "
                    "in an adapter of peft, name it in modules_to_save."
                )
            if whole and id(weight) not in optimized:
                raise ConfigurationError(
                    f"The score head {name!r} is in no optimizer, so it would stay as it is. Let parameter_groups() of "
                    "the module return its weights too."
                )


def require_margins(loss: RewardLoss, data: object) -> None:
    """Refuse pairs without the margin that their loss is multiplied by: the 0 that stands for it would mute them.

    Args:
        loss: The objective.
        data: The run's DataModule.

    Raises:
        DataError: Some of the rows have a margin and others none; both are counted.
    """
    weighed = [
        type(each).__name__
        for each in getattr(loss, "losses", [loss])
        if isinstance(each, ScaledBradleyTerry)
    ]
    reports: Mapping[str, Any] = getattr(data, "reports", {}) if weighed else {}
    for name, report in reports.items():
        lacking = report.records - report.optional["margin"]
        if 0 < lacking < report.records:
            raise DataError(
                f"{weighed[0]} multiplies the loss of each pair by its margin, and {lacking} of the {report.records} "
                f"{name} pairs of {report.source} have none: they would count nothing. Give each a margin above 0, "
                "leave those rows out, or use BradleyTerry, which takes a missing margin for 0."
            )


def warn_of_learning_rate(optimizers: Sequence[Optimizer], width: int, *, lora: bool) -> None:
    """Warn of a peak learning rate at which AdamW and its kin learn nothing, or nothing but noise.

    Args:
        optimizers: Of the run.
        width: Of the model's states.
        lora: Whether adapters are trained, not all weights.
    """
    low, high, usual = _LOW, max(_HIGH, _NARROW / width), "1e-5"
    if lora:
        low, high, usual = _LORA_LOW, _LORA_HIGH, "1e-4"
    for optimizer in optimizers:
        if "betas" not in optimizer.defaults:  # plain gradients have other sizes
            continue
        for group in optimizer.param_groups:
            peak = max(float(group.get(name, 0.0)) for name in ("lr", "initial_lr", "max_lr"))
            if not low <= peak <= high:
                what = "nothing" if peak < low else "nothing but noise"
                rank_zero_warn(
                    f"The learning rate {peak:g} is out of the range {low:g} to {high:g}: with it a reward model "
                    f"learns {what}. Set model.init_args.optimizer.init_args.lr; {usual} is usual "
                    f"{'for LoRA' if lora else 'where all weights are trained'}."
                )


def check_first_batch(backbone: Backbone, batch: BranchedBatch, scores: Scoring) -> None:
    """Look at the first training batch: its answers, its labels, and whether scores depend on padding.

    Args:
        backbone: Of the module.
        batch: The batch.
        scores: The module's own way to scores and lengths.

    Raises:
        DataError: The two answers of every pair are the same.
        ConfigurationError: A row scores otherwise beside a longer one than alone.
    """
    columns = cast("Mapping[str, Any]", batch)
    _check_identical(batch)
    _check_labels(columns)
    _check_ends(backbone, batch)
    if "step_end" not in columns:
        _check_padding(backbone, columns, scores)


def _check_identical(batch: BranchedBatch) -> None:
    ids, branches = batch["input_ids"], batch["branch_ids"]
    if int(branches.max()) != 2:
        return
    same = sum(
        torch.equal(line[which == 1], line[which == 2])
        for line, which in zip(ids, branches, strict=True)
    )
    if same == len(ids):
        raise DataError(
            f"Chosen and rejected are the same tokens in all {same} pairs of the first batch, so there is nothing to "
            "learn. Are both read from one column, or cut before they differ (max_completion_length)?"
        )
    if same:
        rank_zero_warn(
            f"Chosen and rejected are the same tokens in {same} of {len(ids)} pairs of the first batch: these teach "
            "nothing. Leave identical pairs out; the DataModules of lit_rlhf do, and count them."
        )


def _check_labels(columns: Mapping[str, Any]) -> None:
    for name, level, share in (("margin", 0.0, 0.5), ("p_chosen", 0.5, 0.9)):
        values = columns.get(name)
        if isinstance(values, Tensor) and len(values) >= _FEW:
            below = int((values < level).sum())
            if below > share * len(values):
                rank_zero_warn(
                    f"The labels look swapped: {name} is below {level:g} in {below} of {len(values)} pairs of the "
                    "first batch, which says that the rejected answer is the better one. Swap the options chosen and "
                    "rejected of the data's format."
                )


def _check_ends(backbone: Backbone, batch: BranchedBatch) -> None:
    """Scores are read at the last token; rollouts that are finished have an end token there."""
    ids, branches = batch["input_ids"], batch["branch_ids"]
    following = torch.cat([branches[:, 1:], torch.full_like(branches[:, :1], -1)], -1)
    last = ids[(branches > 0) & (branches != following)]
    ends = torch.tensor(backbone.eos_token_ids, device=ids.device)
    missing = int((~torch.isin(last, ends)).sum())
    if 2 * missing >= len(last):
        names = ", ".join(repr(str(backbone.tokenizer.decode([i]))) for i in backbone.eos_token_ids)
        rank_zero_warn(
            f"{missing} of {len(last)} answers of the first batch have no end token ({names}) at their end. The score "
            "is read there, and answers of a policy end in one, so it would learn of another place than it is asked "
            "about. Let EOS end each answer; where max_completion_length cuts most of them, raise it or set too_long: "
            "drop."
        )


def _check_padding(backbone: Backbone, columns: Mapping[str, Any], scores: Scoring) -> None:
    lengths = (columns["branch_ids"] >= 0).sum(-1)
    short, long = int(lengths.argmin()), int(lengths.argmax())
    both = _rows(columns, [short, long], None)
    alone = _rows(columns, [short], int(lengths[short]))
    with torch.no_grad(), evaluating(backbone):
        beside, own = (scores(part)[0][:1].flatten(1) for part in (both, alone))
    size = min(beside.shape[1], own.shape[1])
    dtype = product_dtype(embeddings(backbone.model))
    if backbone.spec.quantization == "int8":  # its scales depend on the other rows
        dtype = torch.bfloat16
    if not close(own[:, :size].float(), beside[:, :size].float(), dtype):
        raise ConfigurationError(
            f"A row scores {_told(own)} alone and {_told(beside)} beside a longer one: the score is read from padding, "
            "not from the answer's last token. Find that token by the mask (branch_ids), never by position -1 or by "
            "the pad token's id, which may be EOS."
        )


def _rows(columns: Mapping[str, Any], rows: list[int], width: int | None) -> BranchedBatch:
    """Some rows of a batch with all its columns, and of their tokens the first `width`."""
    count = len(columns["input_ids"])
    found: dict[str, Any] = {}
    for name, value in columns.items():
        if isinstance(value, Tensor) and value.dim() and len(value) == count:
            found[name] = value[rows, :width] if name in _LAYOUT else value[rows]
        else:
            found[name] = [value[i] for i in rows] if isinstance(value, list) else value
    return cast("BranchedBatch", found)


def _told(scores: Tensor) -> str:
    return ", ".join(f"{score:.4g}" for score in scores.flatten().tolist()[:4])


def warn_of_opposite(train: tuple[float, int], held_out: tuple[float, int]) -> None:
    """Warn where a model gets training pairs right and held-out pairs wrong, each beyond chance.

    Args:
        train: Accuracy on the training pairs since the last validation, and their number.
        held_out: The same on the validation pairs.
    """
    if (
        wilson_interval(*train, level=_SURE).low
        > 0.5
        > wilson_interval(*held_out, level=_SURE).high
    ):
        rank_zero_warn(
            f"The labels look swapped between training and validation data: the model orders {train[0]:.0%} of "
            f"{train[1]} training pairs as they say, and {held_out[0]:.0%} of {held_out[1]} validation pairs. Look at "
            "a row of each: lit-rlhf data show FILE."
        )
