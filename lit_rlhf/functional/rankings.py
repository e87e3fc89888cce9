"""Rankings and pairs of a prompt's completions: which pairs there are, how scores agree with them, how likely they are.

Axes: rows x branches. A boolean mask says which branches exist; what the others hold is never read.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_rlhf.functional.masking import masked_mean
from lit_rlhf.functional.shapes import ListMask, Lists, Rows

Pairs = Float[Tensor, " pairs"]


def better_pairs(targets: Lists, mask: ListMask) -> Bool[Tensor, "rows branches branches"]:
    """[i, j]: i exists, j exists, and i is better than j; ties are no pairs.

    Example:
        >>> better_pairs(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, True]])).tolist()
        [[[False, False], [True, False]]]
    """
    return (targets[:, :, None] > targets[:, None, :]) & mask[:, :, None] & mask[:, None, :]


def pair_agreement(scores: Lists, targets: Lists, mask: ListMask) -> Rows:
    """Share of the pairs of a ranking that the scores order the same way; 0 where there is no pair.

    Example:
        >>> everything = torch.ones(1, 2, dtype=torch.bool)
        >>> pair_agreement(torch.tensor([[0.1, 0.3]]), torch.tensor([[1.0, 2.0]]), everything)
        tensor([1.])
    """
    pairs = better_pairs(targets, mask)
    right = (scores[:, :, None] > scores[:, None, :]).to(scores.dtype)
    return masked_mean(right.flatten(1), pairs.flatten(1), dim=-1)


def plackett_luce_loss(
    scores: Lists, targets: Lists, mask: ListMask, top: int | None = None
) -> Rows:
    r"""$-\sum_k \log\frac{e^{r_{(k)}}}{\sum_{j\ge k} e^{r_{(j)}}}$: the likelihood of a ranking, best first.

    Plackett 1975. Tied completions share their denominator (Breslow), so the result does not depend on their order.

    Args:
        scores: (B, K).
        targets: (B, K): any numbers whose order is that of the ranking, higher is better.
        mask: (B, K).
        top: Count the choices of the best `top` completions only. Default: all.

    Returns:
        (B,), 0 with fewer than two completions.

    Example:
        >>> mask, targets = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[2.0, 1.0, 0.0]])
        >>> plackett_luce_loss(torch.zeros(1, 3), targets, mask).exp().round()
        tensor([6.])
    """
    kept = torch.where(mask, scores, 0.0)
    rank = better_pairs(targets, mask).sum(1)  # how many are better
    # Row i: what is left to choose from when i is chosen. Every row keeps itself, so that none is empty.
    not_below = targets[:, None, :] <= targets[:, :, None]
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    left = (not_below & mask[:, None, :]) | itself  # (B, K, K)
    normalizer = torch.where(left, kept[:, None, :], -torch.inf).logsumexp(-1)
    counted = mask if top is None else mask & (rank < top)
    return torch.where(counted, normalizer - kept, 0.0).sum(-1)


def preference_probability(margins: Pairs, temperature: float = 1.0) -> Pairs:
    r"""$P(y \succ y') = \sigma((r(y) - r(y'))/T)$, Bradley-Terry raters of a reward.

    Args:
        margins: $r(y) - r(y')$.
        temperature: T, in units of reward, above 0: the larger, the less sure they are.

    Example:
        >>> preference_probability(torch.tensor([0.0, 2.0]), 2.0).round(decimals=4)
        tensor([0.5000, 0.7311])
    """
    return (margins / temperature).sigmoid()


def best_of_n_kl(n: int) -> float:
    r"""$\log n - \frac{n-1}{n}$, the most KL that best-of-n has to the policy it draws from, in nats.

    It is reached where no two completions score alike; below that the KL is smaller (arXiv:2112.09332, 2401.01879).

    Args:
        n: Completions to choose from, 1 or more.

    Example:
        >>> best_of_n_kl(1), round(best_of_n_kl(4), 4)
        (0.0, 0.6363)
    """
    return math.log(n) - (n - 1) / n
