"""Losses of reward models with several heads on one base, attributes among them, and of the steps of a solution."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.masking import masked_mean
from lit_rlhf.functional.shapes import ListMask, Lists, Rows
from lit_rlhf.objectives.columns import Batch, branch_mask, read_column
from lit_rlhf.objectives.reward import BradleyTerry, RewardLoss, pair_metrics, pair_of
from lit_rlhf.options import check_option
from lit_rlhf.seeding import stable_hash
from lit_rlhf.types import ATTRIBUTE, GATE, LossOutput

Ratings = Float[Tensor, "rows branches attributes"]


class Process(RewardLoss):
    r"""$-y\log\sigma(z) - (1-y)\log\sigma(-z)$ of each step of a solution (PRM800K, arXiv:2305.20050).

    A row's loss is the mean over its labelled steps. The data are `ProcessDataModule`'s. An export scores a text at its
    last token: the last step's logit; cut the text behind a step to have that step's.
    """

    by_step = True
    exported = "The logit that the last step is right, given those before it."

    def __call__(
        self,
        logits: Float[Tensor, "rows steps"],
        labels: Float[Tensor, "rows steps"],
        mask: Bool[Tensor, "rows steps"],
    ) -> Rows:
        """Of logits at the last token of each step, labels, and which steps were labelled.

        Labels lie in [0, 1]: between where rollouts estimated them (Math-Shepherd, arXiv:2312.08935).
        """
        z, y = torch.where(mask, logits, 0.0), torch.where(mask, labels, 0.0)
        losses = binary_cross_entropy_with_logits(z, y, reduction="none")
        return masked_mean(losses, mask, dim=-1)

    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """Labels are the batch's `step_label` (B, S) where `step_mask`; rows without any have no accuracy."""
        labels, mask = read_column(self, batch, "step_label"), read_column(self, batch, "step_mask")
        right = ((scores > 0) == (labels > 0.5)).to(scores.dtype)
        accuracy = torch.where(mask.any(-1), masked_mean(right, mask, dim=-1), torch.nan)
        return LossOutput(self(scores, labels.to(scores.dtype), mask), {"accuracy": accuracy})


class GaussianRegression(RewardLoss):
    r"""$\tfrac12((y-\mu)/\sigma)^2 + \log\sigma + \tfrac12\log 2\pi$: ratings with a spread of their own.

    The uncertainty-aware reward model of arXiv:2410.00847. The second head is $\log\sigma$ and starts at 0. An export
    holds $\mu$.
    """

    heads = ("reward", "log_std")
    zero_heads = ("log_std",)
    exported = "The mean of the rating; the head of its deviation stays in the checkpoint."

    def __call__(self, means: Lists, log_stds: Lists, targets: Lists, mask: ListMask) -> Rows:
        """Mean over the completions that were rated."""
        losses = 0.5 * ((targets - means) * torch.exp(-log_stds)).square() + log_stds
        return masked_mean(losses + 0.5 * math.log(2 * math.pi), mask, dim=-1)

    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """Ratings are the batch's `score`, (B, K) or, with one branch, (B,)."""
        means, log_stds = scores.unbind(-1)
        targets = read_column(self, batch, "score").view(means.shape).to(means.dtype)
        mask = branch_mask(means, batch)
        std = masked_mean(log_stds.detach().exp(), mask, dim=-1)
        metrics = {"std": torch.where(mask.any(-1), std, torch.nan)}
        return LossOutput(self(means, log_stds, targets, mask), metrics)


class LengthDebiased(RewardLoss):
    r"""ODIN (arXiv:2402.07319): what length explains goes into a second head, which is thrown away.

    $-\log\sigma(\Delta(q + \ell)) + \lambda(|\mathrm{corr}(q, n)| + 1 - \mathrm{corr}(\ell, n))$ with correlations over
    the completions of the batch of one process: take 16 pairs or more. Validation and export are of q alone. Deviation:
    without the paper's penalty on the inner product of the two heads' weights, which is no function of scores.

    Args:
        coef: lambda, 0 or more; larger separates more strictly. Default 1, the paper's.

    Raises:
        ConfigurationError: An option is out of range.
    """

    heads = ("reward", "length")
    exported = "The quality head; the length head stays in the checkpoint."

    def __init__(self, coef: float = 1.0) -> None:
        check_option(coef >= 0, self, "coef", coef, "0 or more")
        self.coef = float(coef)

    def __call__(
        self,
        quality: Float[Tensor, "rows 2"],
        length_scores: Float[Tensor, "rows 2"],
        lengths: Int[Tensor, "rows 2"],
    ) -> Rows:
        """Of the scores of both heads and the number of tokens, chosen first.

        The penalty of the batch is added to each row, so that the mean is the loss.
        """
        total, n = quality + length_scores, lengths.flatten().to(quality.dtype)
        penalty = _correlation(quality.flatten(), n).abs() + 1
        penalty = penalty - _correlation(length_scores.flatten(), n)
        return softplus(-(total[:, 0] - total[:, 1])) + self.coef * penalty

    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """Lengths are counted in the batch's `branch_ids`."""
        pair_of(self, scores, batch)
        quality, length_scores = scores.unbind(-1)
        branches = read_column(self, batch, "branch_ids")
        lengths = torch.stack([(branches == 1).sum(-1), (branches == 2).sum(-1)], -1)
        metrics = pair_metrics(quality[:, 0], quality[:, 1], batch.get("p_chosen"))
        return LossOutput(self(quality, length_scores, lengths), metrics)


class HeadEnsemble(RewardLoss):
    r"""Several heads on one base, each with a loss of its own: members that differ by their draw and their data.

    With `bootstrap` each member takes each row twice or not at all, by a hash of seed, member and the row's `index`.
    Members share the base, so they agree more than models of their own (arXiv:2312.09244). Validation is of their mean.

    Args:
        loss: Of one head; default `BradleyTerry()`.
        members: 2 or more.
        bootstrap: Whether members see rows of their own.
        seed: Of the bootstrap.

    Raises:
        ConfigurationError: An option is out of range, or `loss` itself has several heads.
    """

    def __init__(
        self,
        loss: RewardLoss | None = None,
        members: int = 4,
        bootstrap: bool = True,
        seed: int = 0,
    ) -> None:
        check_option(members >= 2, self, "members", members, "2 or more")
        self.loss = loss or BradleyTerry()
        one = self.loss.heads == ("reward",) and not self.loss.by_step
        check_option(one, self, "loss", self.loss, "of one head")
        self.heads = tuple(f"member_{number}" for number in range(members))
        self.exported = (
            f"The mean of the heads of {members} members, which scores as their mean does; the members stay in the "
            "checkpoint."
        )
        self.bootstrap = bootstrap
        self.seed = seed

    def of_batch(self, scores: Tensor, batch: Batch) -> LossOutput:
        """The mean of the members' losses; metrics of their mean score, and their deviation."""
        members = [self.loss.of_batch(member, batch) for member in scores.unbind(-1)]
        losses = torch.stack([member.loss for member in members])
        if self.bootstrap:
            losses = losses * self._weights(read_column(self, batch, "index")).to(losses)
        metrics = self.loss.of_batch(self.reward(scores), batch).metrics
        spread = scores.detach().std(-1, correction=0).mean(-1)
        return LossOutput(losses.mean(0), {**metrics, "members_std": spread})

    def reward(self, scores: Tensor) -> Tensor:
        """The members' mean."""
        return scores.mean(-1)

    def exported_weight(self, weights: Tensor) -> Tensor:
        """The mean of linear heads is a linear head."""
        return weights.mean(0)

    def _weights(self, index: Tensor) -> Tensor:
        members, rows = range(len(self.heads)), index.tolist()
        draws = [[stable_hash("member", self.seed, m, i) % 2 for i in rows] for m in members]
        return 2.0 * torch.tensor(draws)


# -- attributes ------------------------------------------------------------------------------------------------------


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
        allowed = "two or more finite numbers, not all of them 0"
        check_option(valid, self, "weights", weights, allowed)
        self.weights = [float(weight) for weight in weights]
        self.heads = tuple(f"{ATTRIBUTE}{number}" for number in range(len(weights)))
        told = ", ".join(f"{weight:g}" for weight in self.weights)
        self.exported = (
            f"The sum of {len(weights)} heads, one for each attribute that answers were rated by, with the weights "
            f"{told}; it scores as their sum does, and the heads stay in the checkpoint."
        )

    def __call__(self, scores: Ratings, targets: Ratings, mask: ListMask) -> Rows:
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


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's; 0 where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = x.square().sum() * y.square().sum()
    varies = scale > torch.finfo(x.dtype).tiny
    return torch.where(varies, (x * y).sum() * torch.where(varies, scale, 1.0).rsqrt(), 0.0)
