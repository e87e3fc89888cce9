"""How the losses of tokens become one number: the classes to inject."""

from abc import ABC, abstractmethod

from torch import Tensor

from lit_rlhf.functional.masking import masked_mean, masked_sum
from lit_rlhf.functional.reduction import sequence_count, token_count
from lit_rlhf.options import check_option


class Reduction(ABC):
    """A reduced loss as a quotient of two sums.

    Both add up over microbatches and ranks: the loss is the sum of all numerators over the sum of all denominators, and
    so does not depend on how the global batch is divided.
    """

    @abstractmethod
    def numerator(self, loss: Tensor, mask: Tensor) -> Tensor:
        """The scalar to differentiate.

        Args:
            loss: (N, T).
            mask: (N, T) bool.
        """

    @abstractmethod
    def denominator(self, mask: Tensor) -> Tensor:
        """The scalar to divide by, summed over the global batch; it needs no loss.

        Args:
            mask: (N, T) bool.
        """


class TokenMean(Reduction):
    r"""$\sum_{i,t}\ell_{it} / \sum_i n_i$: every token weighs the same (PPO; DAPO, arXiv:2503.14476)."""

    def numerator(self, loss: Tensor, mask: Tensor) -> Tensor:
        """Sum over tokens."""
        return masked_sum(loss, mask)

    def denominator(self, mask: Tensor) -> Tensor:
        """Number of tokens."""
        return token_count(mask)


class SequenceMean(Reduction):
    r"""$\frac1N\sum_i\frac1{n_i}\sum_t\ell_{it}$: every sequence weighs the same (GRPO, arXiv:2402.03300; GSPO).

    With any baseline that is not the mean of the group's returns the division by length biases the policy gradient.
    """

    def numerator(self, loss: Tensor, mask: Tensor) -> Tensor:
        """Sum over sequences of their token means."""
        return masked_mean(loss, mask, dim=-1).sum()

    def denominator(self, mask: Tensor) -> Tensor:
        """Number of sequences that have tokens."""
        return sequence_count(mask)


class SequenceSum(Reduction):
    r"""$\frac1N\sum_i\sum_t\ell_{it}$: the policy gradient of whole sequences (REINFORCE; RLOO, arXiv:2402.14740)."""

    def numerator(self, loss: Tensor, mask: Tensor) -> Tensor:
        """Sum over tokens."""
        return masked_sum(loss, mask)

    def denominator(self, mask: Tensor) -> Tensor:
        """Number of sequences that have tokens."""
        return sequence_count(mask)


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

    def numerator(self, loss: Tensor, mask: Tensor) -> Tensor:
        """Sum over tokens."""
        return masked_sum(loss, mask)

    def denominator(self, mask: Tensor) -> Tensor:
        """Number of sequences that have tokens, times L."""
        return sequence_count(mask) * self.length
