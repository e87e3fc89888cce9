"""From scores of two completions to the preference between them (layer L1)."""

import math

from jaxtyping import Float
from torch import Tensor

Pairs = Float[Tensor, " pairs"]


def preference_probability(margins: Pairs, temperature: float = 1.0) -> Pairs:
    r"""$P(y \succ y') = \sigma((r(y) - r(y'))/T)$, Bradley-Terry raters of a reward.

    Args:
        margins: $r(y) - r(y')$.
        temperature: T, in units of reward, above 0: the larger, the less sure they are.

    Example:
        >>> import torch
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
