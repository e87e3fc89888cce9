r"""Weights for tokens that an engine sampled with other log-probs than the policy's: the classes to inject.

Engines of other arithmetic (another precision, another kernel) sample from a distribution slightly off the policy's.
With $\rho_t = \pi_{train}(a_t)/\pi_{engine}(a_t)$ as a weight the surrogate is again an expectation under the policy.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_rlhf.functional.policy_losses import token_ratio
from lit_rlhf.options import check_option

Tokens = Float[Tensor, "sequences time"]
Mask = Bool[Tensor, "sequences time"]


class ImportanceCorrection(ABC):
    """Weights (N, T) of the tokens of a rollout, without gradient, to multiply the surrogate with."""

    @abstractmethod
    def __call__(self, old_logprobs: Tokens, engine_logprobs: Tokens, mask: Mask) -> Tokens:
        """Weights, 1 where masked.

        Args:
            old_logprobs: (N, T) of the policy that sampled, by a training forward.
            engine_logprobs: (N, T) of the same tokens, by the engine.
            mask: (N, T) bool.
        """


class TruncatedImportance(ImportanceCorrection):
    r"""$\min(\rho_t, c)$ (truncated importance sampling, Ionides 2008; with c = 2 as is usual for language models).

    Args:
        cap: c, above 0. Larger is less biased and of higher variance; below 1 it shrinks every step.

    Raises:
        ConfigurationError: The cap is not above 0.
    """

    def __init__(self, cap: float = 2.0) -> None:
        check_option(cap > 0, self, "cap", cap, "above 0")
        self.cap = float(cap)

    def __call__(self, old_logprobs: Tokens, engine_logprobs: Tokens, mask: Mask) -> Tokens:
        """See the class."""
        return token_ratio(old_logprobs, engine_logprobs, mask).detach().clamp_max(self.cap)


class MaskedImportance(ImportanceCorrection):
    r"""$\rho_t$ within [low, high] and 0 outside: tokens on which the two differ too much teach nothing.

    Args:
        low: In (0, 1).
        high: Above 1.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(self, low: float = 0.5, high: float = 2.0) -> None:
        check_option(0 < low < 1, self, "low", low, "in (0, 1)")
        check_option(high > 1, self, "high", high, "above 1")
        self.low = float(low)
        self.high = float(high)

    def __call__(self, old_logprobs: Tokens, engine_logprobs: Tokens, mask: Mask) -> Tokens:
        """See the class."""
        ratio = token_ratio(old_logprobs, engine_logprobs, mask).detach()
        return torch.where((ratio >= self.low) & (ratio <= self.high), ratio, 0.0)
