"""The distribution of the best of n samples, as a reward."""

import torch
from jaxtyping import Float
from torch import Tensor

from lit_rlhf.options import check_option

Samples = Float[Tensor, " samples"]


class BestOfN:
    r"""$\log\frac{\pi_{bon}(y)}{\pi_{ref}(y)} = \log\sum_{i=0}^{n-1}F(y)^i F^-(y)^{n-1-i}$, exact with ties.

    $\pi_{bon}$ is the distribution of the best of n samples of $\pi_{ref}$, the first of those that score alike.
    $F(y)$ is the share of $\pi_{ref}$ that scores at most as high as y, $F^-(y)$ the share that scores lower; where no
    two score alike the sum is $nF^{n-1}$. As a reward with a KL penalty of 1 its optimum is $\pi_{bon}$ itself (vBoN,
    arXiv:2407.06057, and the reverse half of BOND, arXiv:2407.14622, which leave ties out). It is at most $\log n$, and
    the scale of the scores doesn't matter, only their order.

    Args:
        n: 1 or more; 1 is the reference.

    Raises:
        ConfigurationError: n is below 1.

    Example:
        >>> below, at_most = torch.tensor([0.0, 0.5]), torch.tensor([0.5, 1.0])
        >>> BestOfN(2)(below, at_most).exp()  # 1/4 and 3/4 of a reference of 1/2 each
        tensor([0.5000, 1.5000])
    """

    def __init__(self, n: int) -> None:
        check_option(n >= 1, self, "n", n, "1 or more")
        self.n = n

    def __call__(self, below: Samples, at_most: Samples) -> Samples:
        """The log-ratio of each sample.

        Args:
            below: (N,) $F^-$ in [0, 1).
            at_most: (N,) $F$, above 0 and $F^-$.
        """
        i = torch.arange(self.n, device=below.device)
        terms = torch.xlogy(i, at_most[:, None]) + torch.xlogy(self.n - 1 - i, below[:, None])
        return terms.logsumexp(-1)


def places_among(
    scores: Float[Tensor, "prompts samples"], anchors: Float[Tensor, "prompts anchors"]
) -> tuple[Float[Tensor, "prompts samples"], Float[Tensor, "prompts samples"]]:
    """Estimates of $F^-$ and F: shares of a prompt's anchors and the sample itself, so that F is never 0.

    Args:
        scores: (B, K) of samples.
        anchors: (B, M) of samples of the reference; nan for those that couldn't be scored, which don't count.

    Example:
        >>> places_among(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 1.0, 3.0]]))
        (tensor([[0.0000, 0.5000]]), tensor([[0.5000, 0.7500]]))
    """
    compared = scores[:, :, None], anchors[:, None, :]  # to (B, K, M)
    below, at_most = torch.gt(*compared).sum(-1), torch.ge(*compared).sum(-1) + 1
    count = 1 + (~anchors.isnan()).sum(-1, keepdim=True)  # (B, 1)
    return below / count, at_most / count
