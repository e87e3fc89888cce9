"""What all pairwise losses share: the view of a batch as pairs, implicit rewards and metrics."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.functional.numerics import per_token
from lit_rlhf.objectives.preference import (
    Batch,
    PreferenceLoss,
    PreferenceStats,
    Statistic,
    require_positive,
)
from lit_rlhf.types import LossOutput, SequenceStats


@dataclass(frozen=True)
class Completion:
    """One completion of each row; all tensors are (B,)."""

    logprobs: Tensor  # summed over tokens
    lengths: Tensor
    ref_logprobs: Tensor | None = None

    @property
    def logratios(self) -> Tensor:
        """U = log pi - log pi_ref of the whole completion."""
        if self.ref_logprobs is None:
            raise ConfigurationError(
                "This loss needs a reference, but none was given: call it with the reference's statistics."
            )
        return self.logprobs - self.ref_logprobs

    @property
    def mean_logprobs(self) -> Tensor:
        """Log-probs per token."""
        return per_token(self.logprobs, self.lengths)


@dataclass(frozen=True)
class Pairs:
    """A batch as pairs: branch 1 was chosen, branch 2 rejected."""

    chosen: Completion
    rejected: Completion
    policy: SequenceStats
    reference: SequenceStats | None
    batch: Batch

    def statistic(self, name: Statistic) -> tuple[Tensor, Tensor]:
        """A statistic over the vocabulary, of the chosen and of the rejected completions."""
        value = getattr(self.policy, name) if isinstance(self.policy, PreferenceStats) else None
        if value is None:
            raise ConfigurationError(
                f"This loss needs the statistic {name!r} of the policy, which `PreferenceModule` computes for it."
            )
        return value[:, 0], value[:, 1]


class PairwiseLoss(PreferenceLoss):
    r"""Base of losses of pairs: a subclass implements `pair_loss`, and `reward` where it isn't $\beta u$.

    Logs TRL's `rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins, logps/chosen, logps/rejected`.

    Args:
        beta: Scale of the implicit reward.
    """

    num_branches = 2

    def __init__(self, beta: float) -> None:
        super().__init__()
        require_positive(self, beta=beta)
        self.beta = beta

    @abstractmethod
    def pair_loss(self, pairs: Pairs) -> Tensor:
        """The unreduced loss, (B,)."""

    def reward(self, completion: Completion) -> Tensor:
        r"""The implicit reward that is logged: $\beta u$."""
        return self.beta * completion.logratios

    def forward(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """The loss of each pair, and metrics."""
        pairs = self.pairs(policy, reference, batch)
        loss = self.pair_loss(pairs)
        chosen, rejected = self.reward(pairs.chosen).detach(), self.reward(pairs.rejected).detach()
        metrics = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
            "rewards/margins": chosen - rejected,
            "logps/chosen": pairs.chosen.logprobs.detach(),
            "logps/rejected": pairs.rejected.logprobs.detach(),
        }
        return LossOutput(loss, metrics)

    def pairs(self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch) -> Pairs:
        """The batch as pairs."""
        if policy.logprobs.shape[-1] != 2:
            raise DataError(
                f"{type(self).__name__} compares two completions of a prompt, but the batch has "
                f"{policy.logprobs.shape[-1]}. Use PreferenceDataModule, or a listwise or pointwise loss."
            )
        sides = [
            Completion(
                policy.logprobs[:, k],
                policy.lengths[:, k],
                None if reference is None else reference.logprobs[:, k],
            )
            for k in (0, 1)
        ]
        return Pairs(sides[0], sides[1], policy, reference, batch)


class ReferenceFreeLoss(PairwiseLoss):
    r"""Base of pairwise losses without a reference: the implicit reward is $\beta\,l/n$."""

    needs_reference = False

    def reward(self, completion: Completion) -> Tensor:
        r"""$\beta$ times the log-probs per token."""
        return self.beta * completion.mean_logprobs
