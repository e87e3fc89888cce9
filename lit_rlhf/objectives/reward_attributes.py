"""Losses of reward models with a head for each attribute that answers were rated by, and what weighs the attributes."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.masking import masked_mean
from lit_rlhf.objectives.columns import Batch, branch_mask, read_column
from lit_rlhf.objectives.reward import RewardLoss, Rows, pair_metrics, pair_of
from lit_rlhf.options import check_option
from lit_rlhf.types import ATTRIBUTE, GATE, LossOutput

Ratings = Float[Tensor, "rows branches attributes"]


class Attributes(RewardLoss):
    r"""$\frac1A\sum_a (r_a - y_a)^2$: a head per attribute that answers are rated by (HelpSteer2, arXiv:2406.08673).

    The reward is $\sum_a w_a r_a$: heads are linear, so an export holds it as one. The data give `attributes`, each
    completion's ratings, in the order that their format's option `attributes` names them. Where they are pairs,
    accuracy is logged too.

    Args:
        weights: $w$, one for each attribute, in that order; one below 0 counts against an answer.

    Raises:
        ConfigurationError: A weight is no finite number, there is one alone (use `Regression`), or all are 0.
    """

    def __init__(self, weights: list[float]) -> None:
        valid = len(weights) > 1 and all(map(math.isfinite, weights)) and any(weights)
        check_option(
            valid, self, "weights", weights, "two or more finite numbers, not all of them 0"
        )
        self.weights = [float(weight) for weight in weights]
        self.heads = tuple(f"{ATTRIBUTE}{number}" for number in range(len(weights)))
        told = ", ".join(f"{weight:g}" for weight in self.weights)
        self.exported = (
            f"The sum of {len(weights)} heads, one for each attribute that answers were rated by, with the weights "
            f"{told}; it scores as their sum does, and the heads stay in the checkpoint."
        )

    def __call__(
        self, scores: Ratings, targets: Ratings, mask: Bool[Tensor, "rows branches"]
    ) -> Rows:
        """Of the heads' scores, ratings, and which completions were rated; 0 where none was."""
        return _squares(scores, targets, mask)

    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """Ratings are the batch's `attributes`, (B, K, A)."""
        targets, mask = _ratings(self, scores, batch), branch_mask(scores[..., 0], batch)
        metrics = {}
        if scores.shape[1] == 2 and "score" not in batch:
            chosen, rejected = self.reward(scores).unbind(-1)
            metrics = pair_metrics(chosen, rejected, batch.get("p_chosen"))
        return LossOutput(self(scores, targets, mask), metrics)

    def reward(self, scores: Tensor) -> Tensor:
        """The weighted sum."""
        return scores @ scores.new_tensor(self.weights)

    def exported_weight(self, weights: Tensor) -> Tensor:
        """The weighted sum of linear heads is a linear head."""
        return weights.new_tensor(self.weights) @ weights


class GatedAttributes(RewardLoss):
    r"""Attributes weighed anew for each prompt: $r(x, y) = \sum_a g_a(x)\,r_a(x, y)$ (ArmoRM, arXiv:2406.12845).

    $-\log\sigma(r(x, y_w) - r(x, y_l)) + \frac{\lambda}{2A}\sum_{y,a} (r_a - y_a)^2$ of pairs whose answers have
    ratings, the batch's `attributes`. $g$ is a softmax of linear heads at the prompt's last token and starts at $1/A$.
    The reward is no linear head, so it has no export: `ModelReward` reads the checkpoint. Deviations: both terms at
    once, where the paper fits heads first and the gate, of three layers, then on other pairs; without its correction
    for verbosity.

    Args:
        attributes: $A$, at least 2; as many as the data's format names.
        coef: $\lambda$, 0 or more; 0 fits pairs alone, and the attributes then mean nothing.

    Raises:
        ConfigurationError: An option is out of range.
    """

    exported = None

    def __init__(self, attributes: int, coef: float = 1.0) -> None:
        check_option(attributes >= 2, self, "attributes", attributes, "2 or more")
        check_option(coef >= 0, self, "coef", coef, "0 or more")
        self.coef = float(coef)
        names = [f"{kind}{number}" for kind in (ATTRIBUTE, GATE) for number in range(attributes)]
        self.heads, self.zero_heads = tuple(names), tuple(names[attributes:])

    def __call__(
        self,
        scores: Float[Tensor, "rows 2 attributes"],
        gates: Float[Tensor, "rows 2 attributes"],
        targets: Float[Tensor, "rows 2 attributes"],
    ) -> Rows:
        """Of the attributes' scores and ratings, chosen first, and the gates' logits, the same for both."""
        rewards = (gates.softmax(-1) * scores).sum(-1)
        exists = torch.ones_like(rewards, dtype=torch.bool)
        fit = _squares(scores, targets, exists)
        return softplus(rewards[:, 1] - rewards[:, 0]) + self.coef * fit

    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """Ratings are the batch's `attributes`, (B, 2, A)."""
        pair_of(self, scores, batch)
        attributes, gates = scores.chunk(2, dim=-1)
        losses = self(attributes, gates, _ratings(self, attributes, batch))
        chosen, rejected = self.reward(scores).unbind(-1)
        weights = gates[:, 0].detach().softmax(-1)
        spent = -(weights * weights.clamp_min(torch.finfo(weights.dtype).tiny).log()).sum(-1)
        metrics = pair_metrics(chosen, rejected, batch.get("p_chosen"))
        return LossOutput(losses, {**metrics, "gate_entropy": spent})

    def reward(self, scores: Tensor) -> Tensor:
        """The gated sum."""
        attributes, gates = scores.chunk(2, dim=-1)
        return (gates.softmax(-1) * attributes).sum(-1)


def _squares(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean over completions and attributes of the squared errors."""
    errors = torch.where(mask[..., None], scores - targets, 0.0)
    return masked_mean(errors.square().mean(-1), mask, dim=-1)


def _ratings(owner: RewardLoss, scores: Tensor, batch: Batch) -> Tensor:
    targets = read_column(owner, batch, "attributes").to(scores.dtype)
    if targets.shape != scores.shape:
        raise ConfigurationError(
            f"{type(owner).__name__} has heads for {scores.shape[-1]} attributes, and the data have "
            f"{targets.shape[-1]} ratings of each answer. Give it as many as the option `attributes` of the data's "
            "format names."
        )
    return targets
