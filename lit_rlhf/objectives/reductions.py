"""How the losses of tokens become one number: the classes to inject."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from lit_rlhf.functional.masking import masked_mean, masked_sum
from lit_rlhf.functional.shapes import Mask, Tokens
from lit_rlhf.options import check_option

Scalar = Float[Tensor, ""]


class Reduction(ABC):
    """A reduced loss as a quotient of two sums.

    Both add up over microbatches and ranks: the loss is the sum of all numerators over the sum of all denominators, and
    so does not depend on how the global batch is divided.
    """

    @abstractmethod
    def numerator(self, loss: Tokens, mask: Mask) -> Scalar:
        """The scalar to differentiate.

        Args:
            loss: (N, T).
            mask: (N, T) bool.
        """

    @abstractmethod
    def denominator(self, mask: Mask) -> Scalar:
        """The scalar to divide by, summed over the global batch; it needs no loss.

        Args:
            mask: (N, T) bool.
        """

    def __call__(self, loss: Tokens, mask: Mask) -> Scalar:
        """The quotient of one batch that is the whole; 0 where nothing counts.

        Example:
            >>> import torch
            >>> loss = torch.tensor([[1.0, 1.0], [4.0, 0.0]])
            >>> mask = torch.tensor([[True, True], [True, False]])
            >>> TokenMean()(loss, mask), SequenceMean()(loss, mask)
            (tensor(2.), tensor(2.5000))
        """
        return self.numerator(loss, mask) / self.denominator(mask).clamp_min(1)


class TokenMean(Reduction):
    r"""$\sum_{i,t}\ell_{it} / \sum_i n_i$: every token weighs the same (PPO; DAPO, arXiv:2503.14476)."""

    def numerator(self, loss: Tokens, mask: Mask) -> Scalar:
        """Sum over tokens."""
        return masked_sum(loss, mask)

    def denominator(self, mask: Mask) -> Scalar:
        """Number of tokens."""
        return mask.sum().float()


class SequenceMean(Reduction):
    r"""$\frac1N\sum_i\frac1{n_i}\sum_t\ell_{it}$: every sequence weighs the same (GRPO, arXiv:2402.03300; GSPO).

    With any baseline that is not the mean of the group's returns the division by length biases the policy gradient.
    """

    def numerator(self, loss: Tokens, mask: Mask) -> Scalar:
        """Sum over sequences of their token means."""
        return masked_mean(loss, mask, dim=-1).sum()

    def denominator(self, mask: Mask) -> Scalar:
        """Number of sequences that have tokens."""
        return _sequences(mask)


class SequenceSum(Reduction):
    r"""$\frac1N\sum_i\sum_t\ell_{it}$: the policy gradient of whole sequences (REINFORCE; RLOO, arXiv:2402.14740)."""

    def numerator(self, loss: Tokens, mask: Mask) -> Scalar:
        """Sum over tokens."""
        return masked_sum(loss, mask)

    def denominator(self, mask: Mask) -> Scalar:
        """Number of sequences that have tokens."""
        return _sequences(mask)


class ConstantLength(Reduction):
    r"""$\frac1{NL}\sum_i\sum_t\ell_{it}$: as `SequenceSum`, scaled by a constant (Dr. GRPO, arXiv:2503.20783).

    Args:
        length: L, 1 or more: usually `max_new_tokens`. Only the size of the step depends on it.

    Raises:
        ConfigurationError: The length is below 1.
    """

    def __init__(self, length: int) -> None:
        check_option(length >= 1, self, "length", length, "1 or more")
        self.length = length

    def numerator(self, loss: Tokens, mask: Mask) -> Scalar:
        """Sum over tokens."""
        return masked_sum(loss, mask)

    def denominator(self, mask: Mask) -> Scalar:
        """Number of sequences that have tokens, times L."""
        return _sequences(mask) * self.length


def _sequences(mask: Mask) -> Scalar:
    """Sequences with at least one token that counts; rows of padding are none."""
    return mask.any(-1).sum().float()
