"""From an unreduced loss to a numerator and a denominator.

The loss is the quotient of the sums of both over the *global* batch (all microbatches, all ranks), which makes it
independent of how the batch is divided. A quotient per microbatch, averaged, would not be.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from lit_rlhf.functional.masking import masked_mean, masked_sum


class Fraction(NamedTuple):
    """Parts of a reduced loss that add up over microbatches and ranks."""

    numerator: Float[Tensor, ""]
    denominator: Float[Tensor, ""]

    @property
    def value(self) -> Tensor:
        """The quotient, 0 where nothing counts."""
        return self.numerator / self.denominator.clamp_min(1)


def token_count(mask: Bool[Tensor, "sequences time"]) -> Float[Tensor, ""]:
    """Number of tokens that count."""
    return mask.sum().float()


def sequence_count(mask: Bool[Tensor, "sequences time"]) -> Float[Tensor, ""]:
    """Number of sequences with at least one token that counts; rows of padding are none."""
    return mask.any(-1).sum().float()


def token_mean(
    loss: Float[Tensor, "sequences time"], mask: Bool[Tensor, "sequences time"]
) -> Fraction:
    r"""$\sum_{i,t} \ell_{it} / \sum_i n_i$: every token weighs the same (DAPO, arXiv:2503.14476; PPO).

    Example:
        >>> import torch
        >>> loss, mask = (
        ...     torch.tensor([[1.0, 1.0], [4.0, 0.0]]),
        ...     torch.tensor([[True, True], [True, False]]),
        ... )
        >>> float(token_mean(loss, mask).value), float(sequence_mean(loss, mask).value)
        (2.0, 2.5)
    """
    return Fraction(masked_sum(loss, mask), token_count(mask))


def sequence_mean(
    loss: Float[Tensor, "sequences time"], mask: Bool[Tensor, "sequences time"]
) -> Fraction:
    r"""$\frac1N\sum_i \frac1{n_i}\sum_t \ell_{it}$: every sequence weighs the same (GRPO, arXiv:2402.03300; GSPO)."""
    return Fraction(masked_mean(loss, mask, dim=-1).sum(), sequence_count(mask))


def sequence_sum(
    loss: Float[Tensor, "sequences time"], mask: Bool[Tensor, "sequences time"]
) -> Fraction:
    r"""$\frac1N\sum_i \sum_t \ell_{it}$: the policy gradient of whole sequences (REINFORCE, RLOO)."""
    return Fraction(masked_sum(loss, mask), sequence_count(mask))


def constant_length(
    loss: Float[Tensor, "sequences time"], mask: Bool[Tensor, "sequences time"], length: int
) -> Fraction:
    r"""$\frac1{N L}\sum_i \sum_t \ell_{it}$ with a constant L: `sequence_sum`, scaled (Dr. GRPO, arXiv:2503.20783).

    Args:
        loss: (N, T).
        mask: (N, T).
        length: L, 1 or more: usually the most tokens a response may have.
    """
    return Fraction(masked_sum(loss, mask), sequence_count(mask) * length)
