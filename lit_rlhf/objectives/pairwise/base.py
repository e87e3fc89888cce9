"""What all pairwise losses share: a batch as pairs, implicit rewards and metrics."""

import torch
from torch import Tensor

from lit_rlhf.errors import DataError
from lit_rlhf.objectives.columns import Batch, columns_of
from lit_rlhf.objectives.preference import Completion, PreferenceLoss, completions_of
from lit_rlhf.options import check_option
from lit_rlhf.types import LossOutput, SequenceStats


class PairwiseLoss(PreferenceLoss):
    r"""Base of losses of pairs: a subclass writes `forward(chosen, rejected)`, and `reward` where it isn't $\beta u$.

    Logs TRL's `rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins, logps/chosen, logps/rejected`.

    Args:
        beta: Scale of the implicit reward, above 0.

    Raises:
        ConfigurationError: An option is out of range.
    """

    num_branches = 2

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        check_option(beta > 0, self, "beta", beta, "above 0")
        self.beta = beta

    def reward(self, completion: Completion) -> Tensor:
        r"""The implicit reward that is logged: $\beta u$."""
        return self.beta * completion.logratios

    def of_batch(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """The formula on the first branch (chosen) and the second (rejected), and metrics."""
        if policy.logprobs.shape[-1] != 2:
            raise DataError(
                f"{type(self).__name__} compares two completions of a prompt, but the batch has "
                f"{policy.logprobs.shape[-1]}. Use PreferenceDataModule, or a listwise or pointwise loss."
            )
        completions = completions_of(policy, reference)
        chosen, rejected = completions.branch(0), completions.branch(1)
        loss = self(chosen, rejected, **columns_of(self, self.forward, batch))
        better, worse = self.reward(chosen).detach(), self.reward(rejected).detach()
        metrics = {
            "rewards/chosen": better,
            "rewards/rejected": worse,
            "rewards/accuracies": (better > worse).to(better.dtype) * _apart(chosen, rejected),
            "rewards/margins": better - worse,
            "logps/chosen": chosen.logprobs.detach(),
            "logps/rejected": rejected.logprobs.detach(),
        }
        return LossOutput(loss, metrics)


def _apart(chosen: Completion, rejected: Completion) -> Tensor:
    """Whether log-ratios differ by more than rounding, which alone tells a policy from itself before its first step."""
    if chosen.ref_logprobs is None:
        return torch.ones_like(chosen.logprobs, dtype=torch.bool)
    size = (chosen.logprobs.abs() + rejected.logprobs.abs()).detach()
    gap = (chosen.logratios - rejected.logratios).detach().abs()
    return gap > 4 * torch.finfo(size.dtype).eps * size
