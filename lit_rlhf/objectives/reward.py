r"""Losses of reward models: the classes to inject into `RewardModelModule`.

A loss is called in two ways. `BradleyTerry()(chosen, rejected)` is the formula: scores and, as keyword-only arguments,
the columns of the data that it reads, to one number for each row. `BradleyTerry().of_batch(scores, batch)` is what
modules call: it finds its arguments in a batch and adds the metrics that are logged. Comparisons fix scores up to a
constant per prompt, regression and outcomes fix them absolutely.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.functional.masking import masked_mean
from lit_rlhf.functional.rankings import better_pairs, pair_agreement, plackett_luce_loss
from lit_rlhf.functional.shapes import ListMask, Lists, Rows
from lit_rlhf.objectives.columns import (
    Batch,
    branch_mask,
    columns_of,
    read_column,
    refuse_scores,
    require_strengths,
)
from lit_rlhf.options import check_option, check_shapes
from lit_rlhf.types import LossOutput


class RewardLoss(ABC):
    """An unreduced loss (B,) of the scores of K branches, and metrics (B,) under TRL's names."""

    heads: tuple[str, ...] = ("reward",)
    """Names of the scalar heads that it trains; with several, scores have a last axis for them."""
    zero_heads: tuple[str, ...] = ()
    """Those of them that start at 0 instead of a random draw."""
    by_step: ClassVar[bool] = False
    """Whether it judges the steps of one completion: scores are then (B, S), each at the end of its step."""
    exported: str | None = "The one scalar head that was trained."
    """What an export holds, for its model card. None: other tools know nothing that scores as it does."""

    def reward(self, scores: Tensor) -> Tensor:
        """The reward (B, K) of these scores: what is validated, predicted and exported. Of several heads, the first."""
        return scores if len(self.heads) == 1 else scores[..., 0]

    def exported_weight(self, weights: Tensor) -> Tensor:
        """The head (h,) that gives the reward, of the heads (H, h)."""
        return weights[0]

    @abstractmethod
    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """Loss and metrics of each prompt; nan where a metric doesn't concern a row.

        Args:
            scores: (B, K) float32; branch 1 of a pair is the chosen one. (B, K, H) with several heads, (B, S) by step.
            batch: What the loader emitted: `margin`, `p_chosen`, `score`, `branch_mask`, `label` where there are such.

        Raises:
            DataError: A column that the formula needs is missing or out of range.
            ConfigurationError: The rows have another number of branches than the formula takes.
        """


# -- pairs ------------------------------------------------------------------------------------------------------------


class PairScoreLoss(RewardLoss):
    """Base of losses of pairs: a subclass writes `__call__(chosen, rejected)`, and may name columns behind a `*`."""

    @abstractmethod
    def __call__(self, *scores: Any, **columns: Any) -> Rows:
        """Of scores (B,) of the chosen and of the rejected completions, and columns."""

    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """The formula on the first branch (chosen) and the second (rejected), and metrics."""
        chosen, rejected = pair_of(self, scores, batch)
        columns = columns_of(self, self.__call__, batch)
        metrics = pair_metrics(chosen, rejected, columns.get("p_chosen"))
        return LossOutput(self(chosen, rejected, **columns), metrics)


class _SmoothedLoss(PairScoreLoss):
    """Labels that may be flipped."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        valid = 0 <= label_smoothing < 0.5
        check_option(valid, self, "label_smoothing", label_smoothing, "in [0, 0.5)")
        self.label_smoothing = float(label_smoothing)


class BradleyTerry(_SmoothedLoss):
    r"""$-p\log\sigma(\Delta) - (1-p)\log\sigma(-\Delta)$ with $\Delta = r_w - r_l - m$ (arXiv:2009.01325).

    With p = 1 and m = 0 the likelihood of preferences. A `margin` m (Llama 2, arXiv:2307.09288) asks for a difference
    of scores beyond what the label implies: a constant one inflates all differences. Soft labels `p_chosen`, the share
    of raters that prefer the first, leave the optimum of Bernoulli labels where it is and lower the variance. Both are
    taken where the data set gives them.

    Args:
        label_smoothing: Probability e in [0, 0.5) that a label is flipped: p becomes p(1 - e) + (1 - p)e. Larger
            shrinks differences: the best one for certain labels is log((1 - e)/e).
        center_coefficient: 0 or more: weight of $(r_w + r_l)^2$, which holds scores near 0 (arXiv:2312.09244, 0.01).

    Raises:
        ConfigurationError: An option is out of range.

    Example:
        >>> BradleyTerry()(torch.tensor([1.0]), torch.tensor([1.0]))
        tensor([0.6931])
    """

    def __init__(self, label_smoothing: float = 0.0, center_coefficient: float = 0.0) -> None:
        super().__init__(label_smoothing)
        valid = center_coefficient >= 0
        check_option(valid, self, "center_coefficient", center_coefficient, "0 or more")
        self.center_coefficient = float(center_coefficient)

    def __call__(
        self,
        chosen: Rows,
        rejected: Rows,
        *,
        margin: Rows | None = None,
        p_chosen: Rows | None = None,
    ) -> Rows:
        """Of scores; `margin` in units of reward, `p_chosen` in [0, 1]."""
        check_shapes(self, chosen=chosen, rejected=rejected, margin=margin, p_chosen=p_chosen)
        delta = chosen - rejected if margin is None else chosen - rejected - margin
        p = torch.ones_like(delta) if p_chosen is None else p_chosen.to(delta.dtype)
        p = p + self.label_smoothing * (1 - 2 * p)
        loss = p * softplus(-delta) + (1 - p) * softplus(delta)
        if self.center_coefficient > 0:
            loss = loss + self.center_coefficient * (chosen + rejected).square()
        return loss


class ScaledBradleyTerry(_SmoothedLoss):
    r"""$-m\log\sigma(r_w - r_l)$ with m the `margin` (B,) of the batch (HelpSteer2-Preference, arXiv:2410.01257).

    Strong preferences count m times, there 1 to 3.

    Args:
        label_smoothing: Probability in [0, 0.5) that a label is flipped, as in `BradleyTerry`.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __call__(self, chosen: Rows, rejected: Rows, *, margin: Rows) -> Rows:
        """Of scores; `margin`, 0 or more, is the strength of the preference."""
        check_shapes(self, chosen=chosen, rejected=rejected, margin=margin)
        delta, e = chosen - rejected, self.label_smoothing
        return margin * ((1 - e) * softplus(-delta) + e * softplus(delta))

    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """The formula; a strength below 0 would turn the preference round, without a least loss."""
        require_strengths(self, batch, "margin")
        return super().of_batch(scores, batch)


# -- lists ------------------------------------------------------------------------------------------------------------


class RankingLoss(RewardLoss):
    """Base of losses of rankings: a subclass writes `__call__(scores, targets, mask)`.

    The order is that of the column `score` (B, K), higher is better. A pair without scores is a chosen completion and a
    rejected one. Rows without two completions of unequal score have no accuracy (nan).
    """

    @abstractmethod
    def __call__(self, scores: Lists, targets: Lists, mask: ListMask) -> Rows:
        """Of scores (B, K), what orders them, and which completions exist."""

    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """The formula on all branches that exist, and the share of pairs in the right order."""
        if "score" not in batch and scores.shape[1] == 2:
            targets = scores.new_tensor([1.0, 0.0]).expand_as(scores)
            mask = torch.ones_like(scores, dtype=torch.bool)
        else:
            targets, mask = read_column(self, batch, "score"), branch_mask(scores, batch)
        if scores.shape[1] < 2:
            raise DataError(
                f"{type(self).__name__} ranks the completions of a prompt, and these rows have one each. Use "
                "RankedDataModule or PreferenceDataModule, or Regression for single ratings."
            )
        agreement = pair_agreement(scores.detach(), targets, mask)
        ranked = better_pairs(targets, mask).flatten(1).any(-1)
        metrics = {"accuracy": torch.where(ranked, agreement, torch.nan)}
        return LossOutput(self(scores, targets, mask), metrics)


class AllPairs(RankingLoss):
    r"""Mean of $-\log\sigma(r_i - r_j)$ over all pairs of a prompt's ranking (InstructGPT, arXiv:2203.02155).

    K completions are scored once and give K(K - 1)/2 comparisons: far more signal for the same computing than separate
    pairs. All pairs of a prompt weigh as much as one comparison: as separate rows they would be fitted K(K - 1)/2
    times. With a temperature T each pair has the soft label $p = \sigma((y_i - y_j) / T)$ and the loss is
    $-p\log\sigma(r_i - r_j) - (1-p)\log\sigma(r_j - r_i)$, least at $r = y / T + c$.

    Args:
        temperature: Where scores are mean ratings: how much raters' opinions of them scatter, above 0, in units of the
            scores. None: the better rated one always wins, and ties are no pairs.

    Raises:
        ConfigurationError: The temperature is not above 0.
    """

    def __init__(self, temperature: float | None = None) -> None:
        valid = temperature is None or temperature > 0
        check_option(valid, self, "temperature", temperature, "above 0, or None")
        self.temperature = temperature

    def __call__(self, scores: Lists, targets: Lists, mask: ListMask) -> Rows:
        """0 where there is no pair."""
        check_shapes(self, scores=scores, targets=targets, mask=mask)
        pairs = better_pairs(targets, mask)  # (B, K, K)
        if self.temperature is not None:
            pairs = (mask[:, :, None] & mask[:, None, :]).triu(diagonal=1)
        gaps = torch.where(pairs, scores[:, :, None] - scores[:, None, :], 0.0)
        losses = softplus(-gaps)
        if self.temperature is not None:
            rated = torch.where(pairs, targets[:, :, None] - targets[:, None, :], 0.0)
            p = (rated / self.temperature).sigmoid()
            losses = p * softplus(-gaps) + (1 - p) * softplus(gaps)
        return masked_mean(losses.flatten(1), pairs.flatten(1), dim=-1)


class PlackettLuce(RankingLoss):
    r"""Likelihood of a prompt's ranking, chosen best first (Plackett 1975; K-wise, arXiv:2301.11270).

    $-\sum_k\log\frac{e^{r_{(k)}}}{\sum_{j\ge k}e^{r_{(j)}}}$.

    Args:
        top: Count the choices of the best `top` completions only, 1 or more; 1 = cross-entropy of the best of K.
            None: all.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(self, top: int | None = None) -> None:
        check_option(top is None or top >= 1, self, "top", top, "1 or more, or None")
        self.top = top

    def __call__(self, scores: Lists, targets: Lists, mask: ListMask) -> Rows:
        """0 with fewer than two completions; ties share their denominator."""
        check_shapes(self, scores=scores, targets=targets, mask=mask)
        return plackett_luce_loss(scores, targets, mask, self.top)


# -- single completions -----------------------------------------------------------------------------------------------


class Regression(RewardLoss):
    r"""Mean over completions of $(r - y)^2$, y their rating (HelpSteer2, arXiv:2406.08673): the conditional mean."""

    def __call__(self, scores: Lists, targets: Lists, mask: ListMask) -> Rows:
        """Of scores, ratings in units of reward, and which completions were rated; 0 where none was."""
        check_shapes(self, scores=scores, targets=targets, mask=mask)
        errors = torch.where(mask, scores - targets, 0.0)
        return masked_mean(errors.square(), mask, dim=-1)

    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """Ratings are the batch's `score`, (B, K) or, with one branch, (B,)."""
        targets = read_column(self, batch, "score").view(scores.shape)
        return LossOutput(self(scores, targets, branch_mask(scores, batch)))


class Outcome(RewardLoss):
    r"""$-y\log\sigma(r) - (1-y)\log\sigma(-r)$: is the completion right (arXiv:2110.14168)? One branch a row."""

    def __call__(self, logits: Rows, label: Rows) -> Rows:
        """Of logits at the last token, and labels in [0, 1]."""
        return binary_cross_entropy_with_logits(logits, label, reduction="none")

    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """Y is the batch's `label` (B,)."""
        if scores.shape[1] != 1:
            raise ConfigurationError(
                f"Outcome judges one completion a row; these rows have {scores.shape[1]} branches."
            )
        logits, labels = scores[:, 0], read_column(self, batch, "label").to(scores.dtype)
        right = ((logits > 0) == (labels > 0.5)).to(scores.dtype)
        return LossOutput(self(logits, labels), {"accuracy": right.detach()})


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
        each = len(self.weights) == len(losses)
        check_option(each, self, "weights", weights, f"as many as losses ({len(losses)})")

    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """The weighted sum, and all metrics."""
        outputs = [loss.of_batch(scores, batch) for loss in self.losses]
        pairs = zip(self.weights, outputs, strict=True)
        total = torch.stack([weight * out.loss for weight, out in pairs]).sum(0)
        metrics: dict[str, Tensor] = {}
        for output in outputs:
            metrics = {**output.metrics, **metrics}
        return LossOutput(total, metrics)


def pair_of(loss: Callable[..., Tensor], scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Scores (B, ...) of the chosen and of the rejected completions."""
    if scores.shape[1] != 2:
        raise ConfigurationError(
            f"{type(loss).__name__} compares a chosen and a rejected completion, but these rows have {scores.shape[1]} "
            "branches. Use AllPairs or PlackettLuce for rankings, Regression for single ratings."
        )
    refuse_scores(loss, loss, batch)
    return scores[:, 0], scores[:, 1]


def pair_metrics(chosen: Rows, rejected: Rows, p_chosen: Rows | None) -> dict[str, Tensor]:
    """Accuracy is the probability that a rater agrees with the order of the scores; a tie agrees with none."""
    margin = (chosen - rejected).detach()
    p = torch.ones_like(margin) if p_chosen is None else p_chosen
    right = torch.where(margin > 0, p, torch.where(margin < 0, 1 - p, 0.0))
    return {"accuracy": right, "margin": margin, "mean_reward": ((chosen + rejected) / 2).detach()}
