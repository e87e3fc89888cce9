r"""Losses of ranked or scored lists of completions.

Notation: $u = \log\pi(y|x) - \log\pi_{ref}(y|x)$ of a whole completion.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.functional.listwise_losses import (
    info_nca_loss,
    lipo_lambda_loss,
    nca_loss,
    plackett_luce_dpo_loss,
    pro_loss,
    rrhf_loss,
)
from lit_rlhf.functional.numerics import per_token
from lit_rlhf.objectives.preference import (
    Batch,
    PreferenceLoss,
    require_columns,
    require_finite,
    require_positive,
    require_within,
)
from lit_rlhf.types import LossOutput, SequenceStats


@dataclass(frozen=True)
class Lists:
    """A batch as lists of scored completions; all tensors are (B, K)."""

    logprobs: Tensor  # summed over tokens
    lengths: Tensor
    scores: Tensor
    mask: Tensor  # bool: the completion exists
    ref_logprobs: Tensor | None

    @property
    def logratios(self) -> Tensor:
        """U of each completion."""
        if self.ref_logprobs is None:
            raise ConfigurationError(
                "This loss needs a reference, but none was given: call it with the reference's statistics."
            )
        return self.logprobs - self.ref_logprobs


class ListwiseLoss(PreferenceLoss):
    """Base of losses of lists with the columns `score` (B, K) and, where lists differ in length, `branch_mask` (B, K).

    A row with fewer than two completions has nothing to rank: its ranking loss is 0. Logs TRL's names: `rewards/chosen`
    of the best completion, `rewards/rejected` the mean of the others, `rewards/accuracies` the share of pairs in the
    order of their scores.

    Args:
        beta: Scale of the implicit reward.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        require_positive(self, beta=beta)
        self.beta = beta

    @abstractmethod
    def list_loss(self, lists: Lists) -> Tensor:
        """The unreduced loss, (B,)."""

    def reward(self, lists: Lists) -> Tensor:
        r"""The implicit rewards (B, K) that are logged: $\beta u$."""
        return self.beta * lists.logratios

    def forward(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """The loss of each list, and metrics."""
        self._require_list(policy.logprobs.shape[-1])
        require_columns(self, batch, ["score"])
        scores = batch["score"].to(policy.logprobs.dtype)
        mask = batch.get("branch_mask", torch.ones_like(scores, dtype=torch.bool)).bool() & (
            policy.lengths > 0
        )
        ref_logprobs = None if reference is None else reference.logprobs
        lists = Lists(
            policy.logprobs, policy.lengths, scores.masked_fill(~mask, 0.0), mask, ref_logprobs
        )
        return LossOutput(self.list_loss(lists), _metrics(self.reward(lists).detach(), lists))

    def check(self, batch: Batch) -> None:
        """There are scores, finite ones, of at least two completions."""
        require_columns(self, batch, ["score"])
        self._require_list(batch["score"].shape[-1] if batch["score"].dim() == 2 else 1)
        require_finite(self, batch, "score", batch.get("branch_mask"))

    def _require_list(self, branches: int) -> None:
        if branches < 2:
            raise DataError(
                f"{type(self).__name__} ranks the completions of a prompt, but the batch has {branches} of each. Use a "
                "data set of ranked lists, or a pointwise loss."
            )


class PlackettLuceDPO(ListwiseLoss):
    r"""$-\sum_k\log\frac{e^{\beta u_{(k)}}}{\sum_{j\ge k}e^{\beta u_{(j)}}}$ (DPO of rankings, arXiv:2305.18290 A.3).

    Args:
        beta: Strength of the KL penalty; 0.1 as in DPO.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def list_loss(self, lists: Lists) -> Tensor:
        """See the class."""
        return plackett_luce_dpo_loss(lists.logratios, lists.scores, lists.mask, self.beta)


class InfoNCA(ListwiseLoss):
    r"""$-\sum_i q_i\log\mathrm{softmax}(\beta u)_i$, $q = \mathrm{softmax}(r/\alpha)$ (InfoNCA, arXiv:2402.05369).

    Args:
        beta: Strength of the KL penalty; 0.01 in the paper.
        temperature: $\alpha$; the optimum is $\pi_{ref}e^{r/(\alpha\beta)}$. 1 leaves the scores as they are.
    """

    def __init__(self, beta: float = 0.01, temperature: float = 1.0) -> None:
        super().__init__(beta)
        require_positive(self, temperature=temperature)
        self.temperature = temperature

    def list_loss(self, lists: Lists) -> Tensor:
        """See the class."""
        return info_nca_loss(lists.logratios, lists.scores, lists.mask, self.beta, self.temperature)


class NCA(ListwiseLoss):
    r"""$-\sum_i[q_i\log\sigma(\beta u_i) + \frac1K\log\sigma(-\beta u_i)]$, q as in `InfoNCA` (arXiv:2402.05369).

    Absolute: it keeps the likelihood of good completions from falling along with the others'.

    Args:
        beta: Strength of the KL penalty; 0.01 in the paper.
        temperature: $\alpha$ of the scores.
    """

    def __init__(self, beta: float = 0.01, temperature: float = 1.0) -> None:
        super().__init__(beta)
        require_positive(self, temperature=temperature)
        self.temperature = temperature

    def list_loss(self, lists: Lists) -> Tensor:
        """See the class."""
        return nca_loss(lists.logratios, lists.scores, lists.mask, self.beta, self.temperature)


class LiPOLambda(ListwiseLoss):
    r"""$\sum_{\psi_i>\psi_j}\Delta_{ij}\log(1+e^{-\beta(u_i-u_j)})$ with LambdaRank's weights (LiPO, arXiv:2402.01878).

    Scores are gains' exponents of 2: bring them to about [0, 1]. Fixed scores are hard labels, which separable data
    drive to infinite margins.

    Args:
        beta: Strength of the KL penalty; 0.05 in the paper.
    """

    def __init__(self, beta: float = 0.05) -> None:
        super().__init__(beta)

    def list_loss(self, lists: Lists) -> Tensor:
        """See the class."""
        return lipo_lambda_loss(lists.logratios, lists.scores, lists.mask, self.beta)


class PRO(ListwiseLoss):
    r"""Preference ranking optimization: one-against-the-rest softmaxes, score gaps as temperatures (arXiv:2306.17492).

    No reference. Equation in `functional.listwise_losses.pro_loss`.

    Args:
        sft_weight: b, weight of $(K-1)^2$ times the best completion's summed NLL; 0.05 in the paper.
    """

    needs_reference = False

    def __init__(self, sft_weight: float = 0.05) -> None:
        super().__init__(1.0)
        require_within(self, 0, float("inf"), sft_weight=sft_weight)
        self.sft_weight = sft_weight

    def list_loss(self, lists: Lists) -> Tensor:
        """See the class."""
        return pro_loss(lists.logprobs, lists.lengths, lists.scores, lists.mask, self.sft_weight)

    def reward(self, lists: Lists) -> Tensor:
        """Log-probs per token."""
        return per_token(lists.logprobs, lists.lengths)


class RRHF(ListwiseLoss):
    r"""$w\sum_{r_i<r_j}\max(0, p_i - p_j) + NLL(y_{best})$, $p = l/n^a$ (RRHF, arXiv:2304.05302).

    No reference. The likelihood is per token.

    Args:
        length_power: a; 1 in the authors' code.
        rank_weight: w; 1 in the authors' code.
    """

    needs_reference = False

    def __init__(self, length_power: float = 1.0, rank_weight: float = 1.0) -> None:
        super().__init__(1.0)
        require_within(self, 0, float("inf"), rank_weight=rank_weight)
        self.length_power = length_power
        self.rank_weight = rank_weight

    def list_loss(self, lists: Lists) -> Tensor:
        """See the class."""
        return rrhf_loss(
            lists.logprobs,
            lists.lengths,
            lists.scores,
            lists.mask,
            self.length_power,
            self.rank_weight,
        )

    def reward(self, lists: Lists) -> Tensor:
        """Log-probs over tokens to the power a."""
        power: Tensor = lists.lengths.clamp_min(1) ** self.length_power
        return lists.logprobs / power


def _metrics(rewards: Tensor, lists: Lists) -> dict[str, Tensor]:
    ranked = lists.mask.sum(-1) > 1
    best = torch.zeros_like(lists.mask).scatter(
        -1, lists.scores.masked_fill(~lists.mask, -torch.inf).argmax(-1, keepdim=True), True
    )
    others = lists.mask & ~best
    count = others.sum(-1).clamp_min(1)
    logprobs = lists.logprobs.detach()
    chosen, rejected = (rewards * best).sum(-1), (rewards * others).sum(-1) / count
    better = (
        (lists.scores[:, :, None] > lists.scores[:, None, :])
        & lists.mask[:, :, None]
        & lists.mask[:, None, :]
    )
    agree = better & (rewards[:, :, None] > rewards[:, None, :])
    metrics = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": agree.sum((-2, -1)) / better.sum((-2, -1)).clamp_min(1),
        "rewards/margins": chosen - rejected,
        "logps/chosen": (logprobs * best).sum(-1),
        "logps/rejected": (logprobs * others).sum(-1) / count,
    }
    return {name: torch.where(ranked, value, torch.nan) for name, value in metrics.items()}
