r"""Losses of single labelled completions. Notation: $u = \log\pi(y|x) - \log\pi_{ref}(y|x)$ of a whole completion."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_rlhf.distributed import sum_over_ranks
from lit_rlhf.errors import ConfigurationError
from lit_rlhf.functional.pointwise_losses import (
    apo_zero_unpaired_loss,
    bco_loss,
    dro_v_loss,
    kto_loss,
    kto_reference_point,
    npo_loss,
)
from lit_rlhf.objectives.preference import (
    Batch,
    PreferenceLoss,
    PreferenceStats,
    require_columns,
    require_finite,
    require_positive,
)
from lit_rlhf.objectives.running import RunningMean
from lit_rlhf.types import LossOutput, SequenceStats


@dataclass(frozen=True)
class Examples:
    """A batch as single completions."""

    logratios: Tensor  # (B, K): u of the example, and of a mismatched completion where the loss asked for one
    policy: SequenceStats
    batch: Batch

    @property
    def u(self) -> Tensor:
        """Log-ratios of the examples, (B,)."""
        return self.logratios[:, 0]

    @property
    def labels(self) -> Tensor:
        """Whether each example is desirable, (B,) bool."""
        labels: Tensor = self.batch["label"]
        return labels.bool()


class PointwiseLoss(PreferenceLoss):
    r"""Base of losses of single completions with a boolean column `label` (True = desirable).

    Logs TRL's `rewards/chosen, rewards/rejected, logps/chosen, logps/rejected` over the desirable and undesirable
    completions; a batch may lack either.

    Args:
        beta: Scale of the implicit reward $\beta u$.
    """

    num_branches = 1
    columns: tuple[str, ...] = ("label",)

    def __init__(self, beta: float) -> None:
        super().__init__()
        require_positive(self, beta=beta)
        self.beta = beta

    @abstractmethod
    def example_loss(self, examples: Examples) -> LossOutput:
        """The unreduced loss (B,), and metrics of its own."""

    def forward(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """The loss of each example, and metrics."""
        require_columns(self, batch, self.columns)
        if reference is None:
            raise ConfigurationError(
                f"{type(self).__name__} needs a reference, but none was given."
            )
        logratios = policy.logprobs - reference.logprobs
        out = self.example_loss(Examples(logratios, policy, batch))
        metrics = _metrics(self.beta * logratios[:, 0], policy.logprobs[:, 0], batch.get("label"))
        return LossOutput(out.loss, {**metrics, **out.metrics})

    def check(self, batch: Batch) -> None:
        """The columns are there, and scores are finite."""
        require_columns(self, batch, self.columns)
        if "score" in self.columns:
            require_finite(self, batch, "score")


class KTO(PointwiseLoss):
    r"""$\lambda_D(1-\sigma(\beta u - \beta z_0))$ if desirable, $\lambda_U(1-\sigma(\beta z_0 - \beta u))$ if not.

    Kahneman-Tversky optimization, arXiv:2402.01306. $z_0 = \max(0, \mathrm{sg}\,E\,u(x, y'))$ over completions y' of
    other prompts, of all processes: each row is given the next row's completion as a second branch. So shuffle, and use
    batches of 4 or more per process; a batch of one has $z_0 = 0$, and one class alone is fine. Logs $z_0$ as `kl`.

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
        require_positive(
            self, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight
        )
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight

    def example_loss(self, examples: Examples) -> LossOutput:
        """See the class."""
        point = self._reference_point(examples.logratios, examples.batch)
        weights = (self.desirable_weight, self.undesirable_weight)
        loss = kto_loss(examples.u, examples.labels, point, self.beta, *weights)
        return LossOutput(loss, {"kl": point.expand(len(loss))})

    @staticmethod
    def _reference_point(logratios: Tensor, batch: Batch) -> Tensor:
        if logratios.shape[1] < 2:
            raise ConfigurationError(
                "KTO needs a mismatched completion as second branch; PreferenceModule adds it."
            )
        mismatched = logratios[:, 1].detach()
        # The completion is the next row's, and so is its weight; alone in its batch, a row has nothing to borrow.
        weight = batch.get("weight", torch.ones_like(mismatched)).roll(-1) * (len(mismatched) > 1)
        return kto_reference_point(
            sum_over_ranks((mismatched * weight).sum()), sum_over_ranks(weight.sum())
        )


class BCO(PointwiseLoss):
    r"""$-\log\sigma(\beta u - \delta)$ if desirable, $-\log\sigma(-(\beta u - \delta))$ if not (BCO, arXiv:2404.04656).

    $\delta$ is the running mean of $\beta u$ over all examples trained on (saved), or, which the paper doesn't have,
    learned: only then is the optimum that of RLHF. The paper's density-ratio weights of undesirable examples go into
    the column `weight`.

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

    def example_loss(self, examples: Examples) -> LossOutput:
        """See the class."""
        if not self.learn_shift and self.training:
            self.running.update(self.beta * examples.u, examples.batch.get("weight"))
        shift = self.shift if self.learn_shift else self.running.mean
        loss = bco_loss(examples.u, examples.labels, shift, self.beta)
        return LossOutput(loss, {"shift": shift.detach().expand(len(loss))})


class UnpairedAPOZero(PointwiseLoss):
    r"""$1 - \sigma(\beta u)$ if desirable, $\sigma(\beta u)$ if not (APO-zero without pairs, arXiv:2408.06266).

    Args:
        beta: Strength of the KL penalty; 0.1 in the paper.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def example_loss(self, examples: Examples) -> LossOutput:
        """See the class."""
        return LossOutput(apo_zero_unpaired_loss(examples.u, examples.labels, self.beta))


class DROV(PointwiseLoss):
    r"""$\frac12(r - V(x) - \tau u)^2$ with the column `score` as r (DRO-V, arXiv:2405.19107).

    V is the module's critic (`PreferenceModule(critic=...)`), on features of its own where it is a `ValueAdapter` or
    `ValueModel` as in the paper. Logs the values as `value`.

    Args:
        tau: Strength of the KL penalty; 1 in the paper.
    """

    columns = ("score",)
    statistics = frozenset(["value"])

    def __init__(self, tau: float = 1.0) -> None:
        require_positive(self, tau=tau)
        super().__init__(tau)

    def example_loss(self, examples: Examples) -> LossOutput:
        """See the class."""
        value = examples.policy.value if isinstance(examples.policy, PreferenceStats) else None
        if value is None:
            raise ConfigurationError(
                "DROV needs a learned value of each prompt: give PreferenceModule a critic."
            )
        loss = dro_v_loss(
            examples.u, examples.batch["score"].to(examples.u.dtype), value, self.beta
        )
        return LossOutput(loss, {"value": value.detach()})


class NPO(PointwiseLoss):
    r"""$-\frac2\beta\log\sigma(-\beta u)$ of undesirable completions (NPO, arXiv:2404.05868).

    Unlearning. Desirable completions have loss 0; without a column `label` all are undesirable. Drifts without bound
    unless a term retains what is wanted: `WeightedSum([NPO(), NLL()])` on labelled data.

    Args:
        beta: How soon the push fades; 0.1 in the paper.
    """

    columns = ()

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def example_loss(self, examples: Examples) -> LossOutput:
        """See the class."""
        loss = npo_loss(examples.u, self.beta)
        return LossOutput(
            torch.where(examples.labels, 0.0, loss) if "label" in examples.batch else loss
        )


def _metrics(rewards: Tensor, logprobs: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    rewards, logprobs = rewards.detach(), logprobs.detach()
    if labels is None:
        return {"rewards/mean": rewards, "logps/mean": logprobs}
    good = labels.bool()
    return {
        "rewards/chosen": torch.where(good, rewards, torch.nan),
        "rewards/rejected": torch.where(good, torch.nan, rewards),
        "logps/chosen": torch.where(good, logprobs, torch.nan),
        "logps/rejected": torch.where(good, torch.nan, logprobs),
    }
