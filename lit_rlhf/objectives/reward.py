"""Losses of reward models: the classes to inject into `RewardModelModule`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.functional.reward_losses import (
    all_pairs_loss,
    bradley_terry_loss,
    centering_penalty,
    outcome_loss,
    pair_agreement,
    plackett_luce_loss,
    regression_loss,
    scaled_bradley_terry_loss,
)
from lit_rlhf.objectives.preference import require_probabilities
from lit_rlhf.options import check_option
from lit_rlhf.types import LossOutput

Batch = Mapping[str, Any]
"""One of the batches of `lit_rlhf.types`: to a type checker a TypedDict is no mapping to tensors."""


class RewardLoss(ABC):
    """An unreduced loss (B,) of the scores of K branches, and metrics (B,) under TRL's names."""

    heads: tuple[str, ...] = ("reward",)
    """Names of the scalar heads that it trains; with several, scores have a last axis for them."""
    zero_heads: tuple[str, ...] = ()
    """Those of them that start at 0 instead of a random draw."""
    by_step = False
    """Whether it judges the steps of one completion: scores are then (B, S), each at the end of its step."""
    exported = "The one scalar head that was trained."
    """What an export holds, for its model card."""

    def reward(self, scores: Tensor) -> Tensor:
        """The reward (B, K) of these scores: what is validated, predicted and exported. Of several heads, the first."""
        return scores if len(self.heads) == 1 else scores[..., 0]

    def exported_weight(self, weights: Tensor) -> Tensor:
        """The head (h,) that gives the reward, of the heads (H, h)."""
        return weights[0]

    @abstractmethod
    def __call__(self, scores: Tensor, batch: Batch) -> LossOutput:
        """Loss and metrics of each prompt.

        Args:
            scores: (B, K) float32; branch 1 of a pair is the chosen one. (B, K, H) with several heads, (B, S) by step.
            batch: What the loader emitted: `margin`, `p_chosen`, `score`, `branch_mask`, `label` where there are such.
        """


class BradleyTerry(RewardLoss):
    r"""$-\log\sigma(r_w - r_l - m)$ (arXiv:2009.01325), the likelihood of preferences.

    `margin` (B,) of the batch is subtracted from the difference (Llama 2, arXiv:2307.09288), and `p_chosen` (B,) is a
    soft label; both are taken where the data set gives them.

    Args:
        label_smoothing: Probability in [0, 0.5) that a label is flipped; larger shrinks differences.
        center_coefficient: 0 or more: weight of $(r_w + r_l)^2$, which holds scores near 0 (arXiv:2312.09244, 0.01).

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(self, label_smoothing: float = 0.0, center_coefficient: float = 0.0) -> None:
        check_option(
            0 <= label_smoothing < 0.5, self, "label_smoothing", label_smoothing, "in [0, 0.5)"
        )
        check_option(
            center_coefficient >= 0, self, "center_coefficient", center_coefficient, "0 or more"
        )
        self.label_smoothing = float(label_smoothing)
        self.center_coefficient = float(center_coefficient)

    def __call__(self, scores: Tensor, batch: Batch) -> LossOutput:
        """See `functional.bradley_terry_loss`.

        Raises:
            DataError: A soft label is no probability.
        """
        chosen, rejected = _pair(self, scores)
        p_chosen = batch.get("p_chosen")
        if p_chosen is not None:
            require_probabilities(self, batch, "p_chosen")
        loss = bradley_terry_loss(
            chosen,
            rejected,
            margin=batch.get("margin"),
            p_chosen=p_chosen,
            label_smoothing=self.label_smoothing,
        )
        if self.center_coefficient > 0:
            loss = loss + self.center_coefficient * centering_penalty(chosen, rejected)
        return LossOutput(loss, pair_metrics(chosen, rejected, p_chosen))


class ScaledBradleyTerry(RewardLoss):
    r"""$-m\log\sigma(r_w - r_l)$ with m the `margin` (B,) of the batch (HelpSteer2-Preference, arXiv:2410.01257).

    Args:
        label_smoothing: In [0, 0.5).

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        check_option(
            0 <= label_smoothing < 0.5, self, "label_smoothing", label_smoothing, "in [0, 0.5)"
        )
        self.label_smoothing = float(label_smoothing)

    def __call__(self, scores: Tensor, batch: Batch) -> LossOutput:
        """See `functional.scaled_bradley_terry_loss`.

        Raises:
            DataError: The batch has no margin.
        """
        chosen, rejected = _pair(self, scores)
        scale = read_column(self, batch, "margin")
        loss = scaled_bradley_terry_loss(
            chosen, rejected, scale, label_smoothing=self.label_smoothing
        )
        return LossOutput(loss, pair_metrics(chosen, rejected, None))


class AllPairs(RewardLoss):
    r"""Mean of $-\log\sigma(r_i - r_j)$ over all pairs of a prompt's ranking (InstructGPT, arXiv:2203.02155).

    K completions are scored once and give K(K - 1)/2 comparisons: far more signal for the same computing than
    separate pairs.

    Args:
        temperature: Where scores are mean ratings: pairs get the soft label $\sigma((y_i - y_j) / T)$ of raters whose
            opinions scatter by T, above 0, in units of the scores. None: the better rated one always wins.

    Raises:
        ConfigurationError: The temperature is not above 0.
    """

    def __init__(self, temperature: float | None = None) -> None:
        check_option(
            temperature is None or temperature > 0,
            self,
            "temperature",
            temperature,
            "above 0, or None",
        )
        self.temperature = temperature

    def __call__(self, scores: Tensor, batch: Batch) -> LossOutput:
        """See `functional.all_pairs_loss`; the order is that of the batch's `score` (B, K).

        Raises:
            DataError: The batch has no scores.
        """
        targets, mask = _ranking(self, scores, batch)
        loss = all_pairs_loss(scores, targets, mask, self.temperature)
        return LossOutput(loss, _list_metrics(scores, targets, mask))


class PlackettLuce(RewardLoss):
    r"""Likelihood of a prompt's ranking, chosen best first (Plackett 1975; K-wise, arXiv:2301.11270).

    Args:
        top: Count the choices of the best `top` completions only, 1 or more; 1 = cross-entropy of the best of K.
            None: all.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(self, top: int | None = None) -> None:
        check_option(top is None or top >= 1, self, "top", top, "1 or more, or None")
        self.top = top

    def __call__(self, scores: Tensor, batch: Batch) -> LossOutput:
        """See `functional.plackett_luce_loss`; the order is that of the batch's `score` (B, K).

        Raises:
            DataError: The batch has no scores.
        """
        targets, mask = _ranking(self, scores, batch)
        loss = plackett_luce_loss(scores, targets, mask, self.top)
        return LossOutput(loss, _list_metrics(scores, targets, mask))


class Regression(RewardLoss):
    r"""Mean over completions of $(r - y)^2$, y their rating (HelpSteer2, arXiv:2406.08673): the conditional mean."""

    def __call__(self, scores: Tensor, batch: Batch) -> LossOutput:
        """See `functional.regression_loss`; ratings are the batch's `score`, (B, K) or, with one branch, (B,).

        Raises:
            DataError: The batch has no scores.
        """
        targets = read_column(self, batch, "score").view(scores.shape)
        return LossOutput(regression_loss(scores, targets, branch_mask(scores, batch)))


class Outcome(RewardLoss):
    r"""$-y\log\sigma(r) - (1-y)\log\sigma(-r)$: is the completion right (arXiv:2110.14168)? One branch a row."""

    def __call__(self, scores: Tensor, batch: Batch) -> LossOutput:
        """See `functional.outcome_loss`; y is the batch's `label` (B,).

        Raises:
            DataError: The batch has no labels.
            ConfigurationError: The rows have several branches.
        """
        if scores.shape[1] != 1:
            raise ConfigurationError(
                f"Outcome judges one completion a row; these rows have {scores.shape[1]} branches."
            )
        logits, labels = scores[:, 0], read_column(self, batch, "label").to(scores.dtype)
        right = ((logits > 0) == (labels > 0.5)).to(scores.dtype)
        return LossOutput(outcome_loss(logits, labels), {"accuracy": right.detach()})


class RewardLossSum(RewardLoss):
    """A weighted sum of losses; of metrics with one name the first loss's is kept.

    Args:
        losses: At least one.
        weights: One for each, finite; default 1.

    Raises:
        ConfigurationError: No losses, another number of weights, or a loss with several heads.
    """

    def __init__(self, losses: list[RewardLoss], weights: list[float] | None = None) -> None:
        check_option(len(losses) > 0, self, "losses", losses, "one or more")
        plain = all(loss.heads == ("reward",) and not loss.by_step for loss in losses)
        check_option(plain, self, "losses", losses, "of one head and whole completions")
        self.losses = losses
        self.weights: Sequence[float] = [1.0] * len(losses) if weights is None else weights
        check_option(
            len(self.weights) == len(losses),
            self,
            "weights",
            weights,
            f"as many as losses ({len(losses)})",
        )

    def __call__(self, scores: Tensor, batch: Batch) -> LossOutput:
        """The weighted sum, and all metrics."""
        outputs = [loss(scores, batch) for loss in self.losses]
        total = torch.stack(
            [weight * out.loss for weight, out in zip(self.weights, outputs, strict=True)]
        ).sum(0)
        metrics: dict[str, Tensor] = {}
        for output in outputs:
            metrics = {**output.metrics, **metrics}
        return LossOutput(total, metrics)


def _pair(loss: RewardLoss, scores: Tensor) -> tuple[Tensor, Tensor]:
    if scores.shape[1] != 2:
        raise ConfigurationError(
            f"{type(loss).__name__} compares a chosen and a rejected completion, but these rows have {scores.shape[1]} "
            "branches. Use AllPairs or PlackettLuce for rankings, Regression for single ratings."
        )
    chosen, rejected = scores.unbind(-1)
    return chosen, rejected


def read_column(loss: RewardLoss, batch: Batch, name: str) -> Tensor:
    """A column that the loss can't do without."""
    if name not in batch:
        raise DataError(
            f"{type(loss).__name__} needs the column {name!r}, which the batches lack (they hold {sorted(batch)}). "
            "Name it in the data module's format, or choose another loss."
        )
    column: Tensor = batch[name]
    return column


def branch_mask(scores: Tensor, batch: Batch) -> Tensor:
    """(B, K): which branches exist."""
    mask: Tensor | None = batch.get("branch_mask")
    return torch.ones_like(scores, dtype=torch.bool) if mask is None else mask


def _ranking(loss: RewardLoss, scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """What orders the branches; a pair without scores is a chosen completion and a rejected one."""
    if "score" not in batch and scores.shape[1] == 2:
        return scores.new_tensor([1.0, 0.0]).expand_as(scores), torch.ones_like(
            scores, dtype=torch.bool
        )
    return read_column(loss, batch, "score"), branch_mask(scores, batch)


def pair_metrics(chosen: Tensor, rejected: Tensor, p_chosen: Tensor | None) -> dict[str, Tensor]:
    """Accuracy is the probability that a rater agrees with the order of the scores; a tie agrees with none."""
    margin = (chosen - rejected).detach()
    p = torch.ones_like(margin) if p_chosen is None else p_chosen
    right = torch.where(margin > 0, p, torch.where(margin < 0, 1 - p, 0.0))
    return {"accuracy": right, "margin": margin, "mean_reward": ((chosen + rejected) / 2).detach()}


def _list_metrics(scores: Tensor, targets: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {"accuracy": pair_agreement(scores.detach(), targets, mask)}
