r"""Losses of ranked or scored lists of completions.

Notation: $u = \log\pi(y|x) - \log\pi_{ref}(y|x)$ of a whole completion. A row with fewer than two completions that
exist has no ranking: its ranking loss is 0 (terms of single completions, as NCA's, remain).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from lit_rlhf.errors import DataError
from lit_rlhf.functional.rankings import better_pairs, pair_agreement, plackett_luce_loss
from lit_rlhf.functional.shapes import ListMask, Lists, Rows
from lit_rlhf.objectives.columns import Batch, branch_mask, read_column, require_finite
from lit_rlhf.objectives.preference import Completion, ImplicitRewardLoss, completions_of
from lit_rlhf.options import check_option
from lit_rlhf.types import LossOutput, SequenceStats

# In place of minus infinity, whose differences and gradients would be nan.
_MISSING = -1e30


class ListwiseLoss(ImplicitRewardLoss):
    r"""Base of losses of lists: a subclass writes `forward(completions, scores, mask)`, and `reward` if not $\beta u$.

    The columns are `score` (B, K), higher is better, and, where lists differ in length, `branch_mask` (B, K). Logs
    TRL's names: `rewards/chosen` of the best completion, `rewards/rejected` the mean of the others,
    `rewards/accuracies` the share of pairs in the order of their scores.

    Args:
        beta: Scale of the implicit reward, above 0.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def of_batch(
        self, policy: SequenceStats, reference: SequenceStats | None, batch: Batch
    ) -> LossOutput:
        """The formula on the completions that have tokens, and metrics."""
        self._require_list(policy.logprobs.shape[-1])
        completions = completions_of(policy, reference)
        scores = read_column(self, batch, "score").to(policy.logprobs.dtype)
        mask = branch_mask(scores, batch) & (policy.lengths > 0)
        scores = scores.masked_fill(~mask, 0.0)
        loss = self(completions, scores, mask)
        rewards = self.reward(completions).detach()
        return LossOutput(loss, _metrics(rewards, completions.logprobs.detach(), scores, mask))

    def check(self, batch: Batch) -> None:
        """There are scores, finite ones, of at least two completions."""
        scores = read_column(self, batch, "score")
        self._require_list(scores.shape[-1] if scores.dim() == 2 else 1)
        require_finite(self, batch, "score", batch.get("branch_mask"))

    def _require_list(self, branches: int) -> None:
        if branches < 2:
            raise DataError(
                f"{type(self).__name__} ranks the completions of a prompt, but the batch has {branches} of each. Use a "
                "data set of ranked lists, or a pointwise loss."
            )


class PlackettLuceDPO(ListwiseLoss):
    r"""$-\sum_k\log\frac{e^{\beta u_{(k)}}}{\sum_{j\ge k}e^{\beta u_{(j)}}}$ (DPO of rankings, arXiv:2305.18290 A.3).

    Only the order of the scores counts; ties share their denominator.

    Args:
        beta: Strength of the KL penalty; 0.1 as in DPO.
    """

    def forward(self, completions: Completion, scores: Lists, mask: ListMask) -> Rows:
        """See the class."""
        return plackett_luce_loss(self.beta * completions.logratios, scores, mask)


class InfoNCA(ListwiseLoss):
    r"""$-\sum_i q_i\log\mathrm{softmax}(\beta u)_i$, $q = \mathrm{softmax}(r/\alpha)$ (InfoNCA, arXiv:2402.05369).

    Args:
        beta: Strength of the KL penalty; 0.01 in the paper.
        temperature: $\alpha$, above 0; the optimum is $\pi_{ref}e^{r/(\alpha\beta)}$. 1 leaves the scores as they are.
    """

    def __init__(self, beta: float = 0.01, temperature: float = 1.0) -> None:
        super().__init__(beta)
        check_option(temperature > 0, self, "temperature", temperature, "above 0")
        self.temperature = temperature

    def forward(self, completions: Completion, scores: Lists, mask: ListMask) -> Rows:
        """See the class."""
        target = _masked_softmax(scores / self.temperature, mask)
        logits = (self.beta * completions.logratios).masked_fill(~mask, _MISSING)
        return -(target * logits.log_softmax(-1)).sum(-1)


class NCA(InfoNCA):
    r"""$-\sum_i[q_i\log\sigma(\beta u_i) + \frac1K\log\sigma(-\beta u_i)]$, q as in `InfoNCA` (arXiv:2402.05369).

    Absolute: it keeps the likelihood of good completions from falling along with the others'.

    Args:
        beta: Strength of the KL penalty; 0.01 in the paper.
        temperature: $\alpha$ of the scores, above 0.
    """

    def forward(self, completions: Completion, scores: Lists, mask: ListMask) -> Rows:
        """See the class."""
        target = _masked_softmax(scores / self.temperature, mask)
        count = mask.sum(-1, keepdim=True).clamp_min(1)
        z = self.beta * torch.where(mask, completions.logratios, 0.0)
        return -((target * logsigmoid(z) + logsigmoid(-z) / count) * mask).sum(-1)


class LiPOLambda(ListwiseLoss):
    r"""$\sum_{\psi_i>\psi_j}\Delta_{ij}\log(1+e^{-\beta(u_i-u_j)})$ with LambdaRank's weights (LiPO, arXiv:2402.01878).

    $\Delta_{ij} = |2^{\psi_i} - 2^{\psi_j}| \cdot |\frac{1}{\log(1 + \tau_i)} - \frac{1}{\log(1 + \tau_j)}|$ with
    $\tau$ the rank by u, 1 the highest; it carries no gradient. Scores $\psi$ are gains' exponents of 2: bring them to
    about [0, 1]. Fixed scores are hard labels, which separable data drive to infinite margins.

    Args:
        beta: Strength of the KL penalty; 0.05 in the paper.
    """

    def __init__(self, beta: float = 0.05) -> None:
        super().__init__(beta)

    def forward(self, completions: Completion, scores: Lists, mask: ListMask) -> Rows:
        """See the class."""
        s = self.beta * torch.where(mask, completions.logratios, 0.0)
        scores = torch.where(mask, scores, 0.0)
        order = s.masked_fill(~mask, _MISSING).argsort(dim=-1, descending=True, stable=True)
        rank = order.argsort(dim=-1).to(s.dtype) + 1
        discount = 1 / torch.log1p(rank)
        weight = _differences(scores.exp2()).abs() * _differences(discount).abs()  # (B, K, K)
        return (better_pairs(scores, mask) * weight * softplus(-_differences(s))).sum((-2, -1))


class PRO(ListwiseLoss):
    r"""Preference ranking optimization: one-against-the-rest softmaxes, score gaps as temperatures (arXiv:2306.17492).

    $\sum_{k<K}-\log\frac{e^{p_kT_k}}{e^{p_kT_k} + \sum_{i>k}e^{p_i(r_k - r_i)}} + b(K-1)^2 NLL(y_1)$: p is the mean
    log-prob per token, completions are in the order of their scores r, and $T_k = \max_{i>k}(r_k - r_i)$. The
    likelihood is that of the best completion, summed over tokens. A tie of all that is left has $T_k = 0$: its term is
    a constant. No reference.

    Args:
        sft_weight: b, 0 or more; 0.05 in the paper.
    """

    needs_reference = False

    def __init__(self, sft_weight: float = 0.05) -> None:
        super().__init__(1.0)
        check_option(sft_weight >= 0, self, "sft_weight", sft_weight, "0 or more")
        self.sft_weight = sft_weight

    def forward(self, completions: Completion, scores: Lists, mask: ListMask) -> Rows:
        """See the class."""
        # Best first, missing last.
        known = scores.masked_fill(~mask, -torch.inf)
        order = known.argsort(dim=-1, descending=True, stable=True)
        exists = mask.gather(-1, order)
        p = torch.where(exists, completions.mean_logprobs.gather(-1, order), 0.0)
        r = torch.where(exists, scores.gather(-1, order), 0.0)
        after = torch.ones(mask.shape[-1:] * 2, dtype=torch.bool, device=mask.device).triu(1)
        rest = exists[:, None, :] & after  # [k, i]: i exists and comes after k
        gap = torch.where(rest, _differences(r), 0.0)
        positive = p * gap.amax(-1)
        against = (p[:, None, :] * gap).masked_fill(~rest, _MISSING)
        total = torch.cat([positive[..., None], against], dim=-1).logsumexp(-1)
        ranking = (total - positive).sum(-1)  # with nothing left to compare with, both are the same
        others = (exists.sum(-1) - 1).to(p.dtype)
        nll = -_best(completions.logprobs, scores, mask)
        return ranking + self.sft_weight * others.square() * nll

    def reward(self, completions: Completion) -> Lists:
        """Log-probs per token."""
        return completions.mean_logprobs


class RRHF(ListwiseLoss):
    r"""$w\sum_{r_i<r_j}\max(0, p_i - p_j) + NLL(y_{best})$, $p = l/n^a$ (RRHF, arXiv:2304.05302).

    No reference. The hinge has no margin, the likelihood is the mean over the best completion's tokens.

    Args:
        length_power: a; 1 in the authors' code.
        rank_weight: w, 0 or more; 1 in the authors' code.
    """

    needs_reference = False

    def __init__(self, length_power: float = 1.0, rank_weight: float = 1.0) -> None:
        super().__init__(1.0)
        check_option(rank_weight >= 0, self, "rank_weight", rank_weight, "0 or more")
        self.length_power = length_power
        self.rank_weight = rank_weight

    def forward(self, completions: Completion, scores: Lists, mask: ListMask) -> Rows:
        """See the class."""
        p = torch.where(mask, self.reward(completions), 0.0)
        ranking = (better_pairs(scores, mask) * (-_differences(p)).clamp_min(0)).sum((-2, -1))
        return self.rank_weight * ranking - _best(completions.mean_logprobs, scores, mask)

    def reward(self, completions: Completion) -> Lists:
        """Log-probs over tokens to the power a."""
        lengths = completions.lengths.clamp_min(1).to(completions.logprobs.dtype)
        return completions.logprobs / lengths**self.length_power


def _best(values: Lists, scores: Lists, mask: ListMask) -> Rows:
    """The value of the branch with the highest score; 0 in a row without branches."""
    best = values.gather(-1, _place_of_best(scores, mask))[:, 0]
    return torch.where(mask.any(-1), best, 0.0)


def _place_of_best(scores: Lists, mask: ListMask) -> Tensor:
    """(B, 1)."""
    return scores.masked_fill(~mask, -torch.inf).argmax(-1, keepdim=True)


def _differences(values: Lists) -> Float[Tensor, "rows branches branches"]:
    return values[:, :, None] - values[:, None, :]


def _masked_softmax(logits: Lists, mask: ListMask) -> Lists:
    """Softmax over the branches that exist; zeros in a row without any."""
    return logits.masked_fill(~mask, _MISSING).softmax(-1) * mask


def _metrics(rewards: Lists, logprobs: Lists, scores: Lists, mask: ListMask) -> dict[str, Tensor]:
    ranked = mask.sum(-1) > 1
    best = torch.zeros_like(mask).scatter(-1, _place_of_best(scores, mask), True)
    others = mask & ~best
    count = others.sum(-1).clamp_min(1)
    chosen, rejected = (rewards * best).sum(-1), (rewards * others).sum(-1) / count
    metrics = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": pair_agreement(rewards, scores, mask),
        "rewards/margins": chosen - rejected,
        "logps/chosen": (logprobs * best).sum(-1),
        "logps/rejected": (logprobs * others).sum(-1) / count,
    }
    return {name: torch.where(ranked, value, torch.nan) for name, value in metrics.items()}
