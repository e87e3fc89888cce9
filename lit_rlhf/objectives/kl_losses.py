"""The KL penalty as a term of the loss: the classes to inject. Each says which divergence's gradient it has."""

from abc import ABC, abstractmethod

from torch import Tensor

from lit_rlhf.functional.kl import biased_k3_loss, sequence_k2_loss, unbiased_k3_loss


class KLLoss(ABC):
    """An unreduced penalty (N, T), to be weighted with the KL coefficient and added to the surrogate's loss."""

    @abstractmethod
    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor
    ) -> Tensor:
        """Penalty per token, 0 where masked.

        Args:
            logprobs: (N, T) of the current policy, differentiable.
            old_logprobs: (N, T) of the policy that sampled.
            ref_logprobs: (N, T).
            mask: (N, T) bool.
        """


class UnbiasedK3(KLLoss):
    r"""k3 times the differentiable ratio of all tokens so far: the gradient of $KL(\pi\|\pi_{ref})$, off policy too."""

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor
    ) -> Tensor:
        """See `functional.unbiased_k3_loss`."""
        return unbiased_k3_loss(logprobs, old_logprobs, ref_logprobs, mask)


class SequenceK2(KLLoss):
    r"""Half the squared log-ratio of the sequence: the gradient of $KL(\pi\|\pi_{ref})$; the value is no KL."""

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor
    ) -> Tensor:
        """See `functional.sequence_k2_loss`."""
        return sequence_k2_loss(logprobs, old_logprobs, ref_logprobs, mask)


class BiasedK3(KLLoss):
    r"""k3 as the GRPO paper differentiates it: the gradient of $KL(\pi_{ref}\|\pi)$, whose optimum is another one."""

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor
    ) -> Tensor:
        """See `functional.biased_k3_loss`; the policy that sampled plays no part."""
        del old_logprobs
        return biased_k3_loss(logprobs, ref_logprobs, mask)
