"""Losses of reward models with several heads on one base, and of the steps of a solution."""

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.masking import masked_mean
from lit_rlhf.functional.reward_losses import gaussian_nll_loss, length_debiased_loss, process_loss
from lit_rlhf.objectives.reward import (
    Batch,
    BradleyTerry,
    RewardLoss,
    branch_mask,
    pair_metrics,
    read_column,
)
from lit_rlhf.options import check_option
from lit_rlhf.seeding import stable_hash
from lit_rlhf.types import LossOutput


class Process(RewardLoss):
    r"""$-y\log\sigma(z) - (1-y)\log\sigma(-z)$ of each step of a solution (PRM800K, arXiv:2305.20050).

    A row's loss is the mean over its labelled steps. The data are `ProcessDataModule`'s. An export scores a text at its
    last token: the last step's logit; cut the text behind a step to have that step's.
    """

    by_step = True
    exported = "The logit that the last step is right, given those before it."

    def __call__(self, scores: Tensor, batch: Batch) -> LossOutput:
        """See `functional.process_loss`; labels are the batch's `step_label`, (B, S) in [0, 1].

        Raises:
            DataError: The batch has no steps.
        """
        labels, mask = read_column(self, batch, "step_label"), read_column(self, batch, "step_mask")
        loss = masked_mean(process_loss(scores, labels.to(scores.dtype), mask), mask, dim=-1)
        right = ((scores > 0) == (labels > 0.5)).to(scores.dtype)
        return LossOutput(loss, {"accuracy": masked_mean(right, mask, dim=-1).detach()})


class GaussianRegression(RewardLoss):
    r"""$\tfrac12((y-\mu)/\sigma)^2 + \log\sigma$: a rating with a spread of its own (arXiv:2410.00847).

    The second head is $\log\sigma$ and starts at 0. An export holds $\mu$.
    """

    heads = ("reward", "log_std")
    zero_heads = ("log_std",)
    exported = "The mean of the rating; the head of its deviation stays in the checkpoint."

    def __call__(self, scores: Tensor, batch: Batch) -> LossOutput:
        """See `functional.gaussian_nll_loss`; ratings are the batch's `score`, (B, K) or, with one branch, (B,).

        Raises:
            DataError: The batch has no scores.
        """
        means, log_stds = scores.unbind(-1)
        targets, mask = (
            read_column(self, batch, "score").view(means.shape),
            branch_mask(means, batch),
        )
        loss = masked_mean(
            gaussian_nll_loss(means, log_stds, targets.to(means.dtype)), mask, dim=-1
        )
        return LossOutput(loss, {"std": masked_mean(log_stds.detach().exp(), mask, dim=-1)})


class LengthDebiased(RewardLoss):
    r"""ODIN (arXiv:2402.07319): what length explains goes into a second head, which is thrown away.

    $-\log\sigma(\Delta(q + \ell)) + \lambda(|\mathrm{corr}(q, n)| + 1 - \mathrm{corr}(\ell, n))$ with correlations over
    the completions of the batch of one process: take 16 pairs or more. Validation and export are of q alone. Deviation:
    without the paper's penalty on the inner product of the two heads' weights.

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

    def __call__(self, scores: Tensor, batch: Batch) -> LossOutput:
        """See `functional.length_debiased_loss`; lengths are counted in the batch's `branch_ids`.

        Raises:
            ConfigurationError: The rows are no pairs.
        """
        if scores.shape[1] != 2:
            raise ConfigurationError(
                "LengthDebiased compares a chosen and a rejected completion, but these rows have "
                f"{scores.shape[1]} branches."
            )
        quality, length_scores = scores.unbind(-1)
        branches = read_column(self, batch, "branch_ids")
        lengths = torch.stack([(branches == 1).sum(-1), (branches == 2).sum(-1)], -1)
        loss = length_debiased_loss(quality, length_scores, lengths, self.coef)
        return LossOutput(loss, pair_metrics(quality[:, 0], quality[:, 1], batch.get("p_chosen")))


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

    exported = "The mean of the members' heads, which scores as their mean does; the members stay in the checkpoint."

    def __init__(
        self,
        loss: RewardLoss | None = None,
        members: int = 4,
        bootstrap: bool = True,
        seed: int = 0,
    ) -> None:
        check_option(members >= 2, self, "members", members, "2 or more")
        self.loss = loss or BradleyTerry()
        check_option(
            self.loss.heads == ("reward",) and not self.loss.by_step,
            self,
            "loss",
            self.loss,
            "of one head",
        )
        self.heads = tuple(f"member_{number}" for number in range(members))
        self.bootstrap = bootstrap
        self.seed = seed

    def __call__(self, scores: Tensor, batch: Batch) -> LossOutput:
        """The mean of the members' losses; metrics of their mean score, and their deviation.

        Raises:
            DataError: `bootstrap` is on and the batch has no `index`.
        """
        losses = torch.stack([self.loss(member, batch).loss for member in scores.unbind(-1)])
        if self.bootstrap:
            losses = losses * self._weights(read_column(self, batch, "index")).to(losses)
        metrics = self.loss(self.reward(scores), batch).metrics
        spread = scores.detach().std(-1, correction=0).mean(-1)
        return LossOutput(losses.mean(0), {**metrics, "members_std": spread})

    def reward(self, scores: Tensor) -> Tensor:
        """The members' mean."""
        return scores.mean(-1)

    def exported_weight(self, weights: Tensor) -> Tensor:
        """The mean of linear heads is a linear head."""
        return weights.mean(0)

    def _weights(self, index: Tensor) -> Tensor:
        rows = index.tolist()
        return torch.tensor(
            [
                [2.0 * (stable_hash("member", self.seed, m, i) % 2) for i in rows]
                for m in range(len(self.heads))
            ]
        )
