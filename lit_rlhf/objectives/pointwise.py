r"""Losses of single labelled completions. Notation: $u = \log\pi(y|x) - \log\pi_{ref}(y|x)$ of a whole completion."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from lit_rlhf.distributed import next_rows, sum_over_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.shapes import Rows
from lit_rlhf.objectives.columns import Batch, columns_of
from lit_rlhf.objectives.preference import Completion, ImplicitRewardLoss, completions_of
from lit_rlhf.objectives.running import RunningMean
from lit_rlhf.options import check_option
from lit_rlhf.types import LossOutput, SequenceStats

Labels = Bool[Tensor, " rows"]


class PointwiseLoss(ImplicitRewardLoss):
    r"""Base of losses of single completions: a subclass writes `forward(completion, *, label)` or of another column.

    `label` (B,) is True where a completion is desirable. Logs TRL's `rewards/chosen, rewards/rejected, logps/chosen,
    logps/rejected` over the desirable and undesirable completions; a batch may lack either.

    Args:
        beta: Scale of the implicit reward $\beta u$, above 0.

    Raises:
        ConfigurationError: An option is out of range.
    """

    num_branches = 1

    def metrics(self, *completions: Completion, **columns: Tensor) -> dict[str, Tensor]:
        """What a loss logs beside rewards, (B,) each or one for all, of the same arguments as `forward`."""
        return {}

    def of_batch(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """The formula on the first branch (and, where it asks for one, the mismatched second), and metrics."""
        if self.needs_mismatched and policy.logprobs.shape[-1] < 2:
            raise ConfigurationError(
                f"{type(self).__name__} needs a mismatched completion as second branch; PreferenceModule adds it."
            )
        lists = completions_of(policy, reference)
        completions = [lists.branch(k) for k in range(2 if self.needs_mismatched else 1)]
        columns = columns_of(self, self.forward, batch)
        if "label" in columns:
            columns["label"] = columns["label"].bool()
        loss = self(*completions, **columns)
        own = self.metrics(*completions, **columns)
        rewards = self.reward(completions[0]).detach()
        metrics = _metrics(rewards, completions[0].logprobs.detach(), batch.get("label"))
        return LossOutput(loss, metrics | {n: v.detach().expand(len(loss)) for n, v in own.items()})


class KTO(PointwiseLoss):
    r"""$\lambda_D(1-\sigma(\beta u - \beta z_0))$ if desirable, $\lambda_U(1-\sigma(\beta z_0 - \beta u))$ if not.

    Kahneman-Tversky optimization, arXiv:2402.01306. $z_0 = \max(0, \mathrm{sg}\,E\,u(x, y'))$, an estimate of
    $KL(\pi\|\pi_{ref})$ over completions y' of other prompts: each row is given the completion of the next row of the
    batch of all processes as a second branch. So shuffle, and use batches of 4 or more together; a batch of one row has
    $z_0 = 0$, and one class alone is fine. Logs $z_0$ as `kl`.

    Args:
        beta: Strength of the KL penalty; 0.1 in the paper, with a rate of at most 1e-6.
        desirable_weight: $\lambda_D$; 1.
        undesirable_weight: $\lambda_U$; 1. The paper wants $\lambda_D n_D : \lambda_U n_U$ within 1:1 to 4:3.
    """

    needs_mismatched = True

    def __init__(
        self, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
    ) -> None:
        super().__init__(beta)
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight
        for name in ("desirable_weight", "undesirable_weight"):
            check_option((value := getattr(self, name)) > 0, self, name, value, "above 0")

    def forward(
        self,
        completion: Completion,
        mismatched: Completion,
        *,
        label: Labels,
        weight: Rows | None = None,
    ) -> Rows:
        """`mismatched` are the prompts with the next rows' completions; `weight` is that of each row."""
        z = self.beta * (completion.logratios - self.reference_point(mismatched, weight))
        desirable = self.desirable_weight * (-z).sigmoid()
        return torch.where(label, desirable, self.undesirable_weight * z.sigmoid())

    def reference_point(
        self, mismatched: Completion, weight: Rows | None = None
    ) -> Float[Tensor, ""]:
        """z_0, over all processes; 0 where there is nothing to average."""
        u = mismatched.logratios.detach()
        # The completion is the next row's, and so is its weight; alone in its batch, a row has nothing to borrow.
        weight = torch.ones_like(u) if weight is None else next_rows(weight[:, None])[:, 0].to(u)
        sums = torch.stack([(u * weight).sum(), weight.sum(), u.new_tensor(float(len(u)))])
        total, count, rows = sum_over_ranks(sums)
        mean: Tensor = (rows > 1) * total / count.clamp_min(torch.finfo(count.dtype).tiny)
        return mean.clamp_min(0)

    def metrics(self, *completions: Completion, **columns: Tensor) -> dict[str, Tensor]:
        """z_0."""
        return {"kl": self.reference_point(completions[1], columns.get("weight"))}


class BCO(PointwiseLoss):
    r"""$-\log\sigma(\beta u - \delta)$ if desirable, $-\log\sigma(-(\beta u - \delta))$ if not (BCO, arXiv:2404.04656).

    A binary classifier whose logit is the implicit reward. $\delta$ is the running mean of $\beta u$ over all examples
    trained on (saved), or, which the paper doesn't have, learned: only then is the optimum that of RLHF. The paper's
    density-ratio weights of undesirable examples go into the column `weight`.

    Args:
        beta: Strength of the KL penalty; 0.01 in the paper, 0.1 in TRL.
        learn_shift: Learn $\delta$ instead of averaging; it has the optimizer's rate.
    """

    def __init__(self, beta: float = 0.01, learn_shift: bool = False) -> None:
        super().__init__(beta)
        self.learn_shift = learn_shift
        if learn_shift:
            self.shift = nn.Parameter(torch.zeros(()))
        else:
            self.running = RunningMean()

    def forward(self, completion: Completion, *, label: Labels, weight: Rows | None = None) -> Rows:
        """`weight` is that of each row in the running mean."""
        reward = self.beta * completion.logratios
        if not self.learn_shift and self.training:
            self.running.update(reward, weight)
        z = reward - self._shift()
        return torch.where(label, softplus(-z), softplus(z))

    def metrics(self, *completions: Completion, **columns: Tensor) -> dict[str, Tensor]:
        """The shift."""
        return {"shift": self._shift()}

    def _shift(self) -> Tensor:
        return self.shift if self.learn_shift else self.running.mean


class UnpairedAPOZero(PointwiseLoss):
    r"""$1 - \sigma(\beta u)$ if desirable, $\sigma(\beta u)$ if not (APO-zero without pairs, arXiv:2408.06266).

    Args:
        beta: Strength of the KL penalty; 0.1 in the paper.
    """

    def forward(self, completion: Completion, *, label: Labels) -> Rows:
        """See the class."""
        z = self.beta * completion.logratios
        return torch.where(label, (-z).sigmoid(), z.sigmoid())


class DROV(PointwiseLoss):
    r"""$\frac12(r - V(x) - \tau u)^2$ with the column `score` as r (DRO-V, arXiv:2405.19107).

    V is the module's critic (`PreferenceModule(critic=...)`), on features of its own where it is a `ValueAdapter` or
    `ValueModel` as in the paper: policy and value must not share parameters that both move, or one fits the other's
    residual. Logs the values as `value`.

    Args:
        tau: Strength of the KL penalty; 1 in the paper.
    """

    statistics = frozenset(["value"])

    def __init__(self, tau: float = 1.0) -> None:
        check_option(tau > 0, self, "tau", tau, "above 0")
        super().__init__(tau)

    def forward(self, completion: Completion, *, score: Rows) -> Rows:
        """`score` is the reward r of each completion."""
        u = completion.logratios
        return 0.5 * (score.to(u.dtype) - completion.statistic("value") - self.beta * u).square()

    def metrics(self, *completions: Completion, **columns: Tensor) -> dict[str, Tensor]:
        """The values."""
        return {"value": completions[0].statistic("value")}


class NPO(PointwiseLoss):
    r"""$-\frac2\beta\log\sigma(-\beta u)$ of undesirable completions (NPO, arXiv:2404.05868).

    Unlearning: as beta goes to 0 it becomes gradient ascent on the likelihood. Desirable completions have loss 0;
    without a column `label` all are undesirable. Drifts without bound unless a term retains what is wanted:
    `WeightedSum([NPO(), NLL()])` on labelled data.

    Args:
        beta: How soon the push fades; 0.1 in the paper.
    """

    def forward(self, completion: Completion, *, label: Labels | None = None) -> Rows:
        """See the class."""
        loss = 2 / self.beta * softplus(self.beta * completion.logratios)
        return loss if label is None else torch.where(label, 0.0, loss)


def _metrics(rewards: Tensor, logprobs: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    if labels is None:
        return {"rewards/mean": rewards, "logps/mean": logprobs}
    good = labels.bool()
    return {
        "rewards/chosen": torch.where(good, rewards, torch.nan),
        "rewards/rejected": torch.where(good, torch.nan, rewards),
        "logps/chosen": torch.where(good, logprobs, torch.nan),
        "logps/rejected": torch.where(good, torch.nan, logprobs),
    }
