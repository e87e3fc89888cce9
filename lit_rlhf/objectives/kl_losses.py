r"""The KL penalty as a term of the loss: the classes to inject. Each says which divergence's gradient it has.

$u_t = \log\pi_t - \log\pi_{ref,t}$ of what the policy sampled, 0 where masked; k3 as in `lit_rlhf.functional.kl`.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_rlhf.functional.kl import k3
from lit_rlhf.functional.policy_losses import log_ratio, prefix_ratio, sequence_ratio

Tokens = Float[Tensor, "sequences time"]
Mask = Bool[Tensor, "sequences time"]


class KLLoss(ABC):
    """An unreduced penalty (N, T), to be weighted with the KL coefficient and added to the surrogate's loss."""

    @abstractmethod
    def __call__(
        self, logprobs: Tokens, old_logprobs: Tokens, ref_logprobs: Tokens, mask: Mask
    ) -> Tokens:
        """Penalty per token, 0 where masked.

        Args:
            logprobs: (N, T) of the current policy, differentiable.
            old_logprobs: (N, T) of the policy that sampled.
            ref_logprobs: (N, T).
            mask: (N, T) bool.
        """


class UnbiasedK3(KLLoss):
    r"""$\rho_{\le t}\,k_3(u_t)$ with the differentiable ratio $\rho_{\le t}=\prod_{s\le t}\pi_s/\pi_{old,s}$ so far.

    An importance-weighted k3: its expectation, summed over tokens, is $KL(\pi\|\pi_{ref})$ of whole sequences and its
    gradient that of the divergence, also when the samples are of an older policy. Deviation: public GRPO code weighs
    k3 with the ratio of its own token alone, if at all, and so drops what a token does to the KL of later ones.
    """

    def __call__(
        self, logprobs: Tokens, old_logprobs: Tokens, ref_logprobs: Tokens, mask: Mask
    ) -> Tokens:
        """See the class."""
        k = k3(torch.where(mask, logprobs, 0.0), torch.where(mask, ref_logprobs, 0.0))
        return prefix_ratio(logprobs, old_logprobs, mask) * k


class SequenceK2(KLLoss):
    r"""$\tfrac12\rho\,U^2$, $U=\sum_t u_t$, $\rho=\pi(y)/\pi_{old}(y)$ detached, laid out as $\tfrac12\rho\,U u_t$.

    Its expected gradient, summed over tokens, is $\nabla KL(\pi\|\pi_{ref})$ of whole sequences; its value is no KL.
    """

    def __call__(
        self, logprobs: Tokens, old_logprobs: Tokens, ref_logprobs: Tokens, mask: Mask
    ) -> Tokens:
        """See the class."""
        u = log_ratio(logprobs, ref_logprobs, mask)
        ratio = sequence_ratio(logprobs, old_logprobs, mask, length_normalized=False).detach()
        return 0.5 * ratio * u.sum(-1, keepdim=True) * u


class BiasedK3(KLLoss):
    r"""$k_3(u_t)$, differentiated as it stands (GRPO, arXiv:2402.03300).

    On-policy its expected gradient is that of $KL(\pi_{ref}\|\pi)$, the other direction: the optimum it pulls to is
    $\beta\pi_{ref}/(L-r)$ with L a normaliser, not $\pi_{ref}e^{r/\beta}/Z$. Kept to reproduce published runs.
    """

    def __call__(
        self, logprobs: Tokens, old_logprobs: Tokens, ref_logprobs: Tokens, mask: Mask
    ) -> Tokens:
        """See the class; the policy that sampled plays no part."""
        del old_logprobs
        return k3(torch.where(mask, logprobs, 0.0), torch.where(mask, ref_logprobs, 0.0))
