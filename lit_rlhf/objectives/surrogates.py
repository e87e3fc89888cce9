r"""Surrogates of the policy gradient, ratio level times clip rule, and weights of their tokens: the classes to inject.

Engines of other arithmetic (another precision, another kernel) sample from a distribution slightly off the policy's.
With $\rho_t = \pi_{train}(a_t)/\pi_{engine}(a_t)$ as a weight the surrogate is again an expectation under the policy.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lit_rlhf.functional.policy_losses import approx_kl, sequence_ratio, token_ratio
from lit_rlhf.functional.shapes import Mask, Tokens
from lit_rlhf.options import check_option
from lit_rlhf.types import LossOutput


class Surrogate(ABC):
    """An unreduced policy loss (N, T) and metrics (N, T), logged as masked means under TRL's names."""

    on_policy_only: ClassVar[bool] = False
    """Whether more than one optimizer step per rollout would follow a wrong gradient."""

    @abstractmethod
    def __call__(
        self, logprobs: Tokens, old_logprobs: Tokens, advantages: Tokens, mask: Mask
    ) -> LossOutput:
        """Loss and metrics.

        Args:
            logprobs: (N, T) of the current policy, differentiable.
            old_logprobs: (N, T) of the policy that sampled.
            advantages: (N, T), no gradient.
            mask: (N, T) bool.
        """


class _Clipped(Surrogate):
    """Ratios within a range around 1."""

    def __init__(self, low: float, high: float) -> None:
        check_option(0 < low <= 1, self, "low", low, "in (0, 1]: ratios are clipped at 1 - low")
        check_option(high > 0, self, "high", high, "above 0: ratios are clipped at 1 + high")
        self.low = float(low)
        self.high = float(high)

    def clip(self, ratio: Tokens, advantages: Tokens) -> tuple[Tokens, dict[str, Tensor]]:
        r"""$-\min(\rho A, \mathrm{clip}(\rho)A)$, and where the clip leaves no gradient."""
        low, high = 1 - self.low, 1 + self.high
        loss = -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
        below = ((ratio < low) & (advantages < 0)).to(ratio.dtype)
        above = ((ratio > high) & (advantages > 0)).to(ratio.dtype)
        metrics = {"clip_ratio/low_mean": below, "clip_ratio/high_mean": above}
        return loss, {"policy/clipfrac_avg": below + above, **metrics}


class ClippedSurrogate(_Clipped):
    r"""PPO's $-\min(\rho_t A_t, \mathrm{clip}(\rho_t, 1-\epsilon_{low}, 1+\epsilon_{high})A_t)$ (arXiv:1707.06347).

    Args:
        low: In (0, 1]: how far below 1 a ratio still has a gradient. Larger takes larger steps; usually 0.2.
        high: Above 0, the same upwards; DAPO sets 0.28, above `low`, to keep exploring (arXiv:2503.14476).
        dual: Above 1, usually 3: bounds the loss of a negative advantage at `dual` times it (arXiv:1912.09729). None
            leaves it unbounded in the ratio.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(self, low: float = 0.2, high: float = 0.2, dual: float | None = None) -> None:
        super().__init__(low, high)
        check_option(dual is None or dual > 1, self, "dual", dual, "above 1, or None")
        self.dual = None if dual is None else float(dual)

    def __call__(
        self, logprobs: Tokens, old_logprobs: Tokens, advantages: Tokens, mask: Mask
    ) -> LossOutput:
        """With the ratio of each token."""
        ratio = token_ratio(logprobs, old_logprobs, mask)
        loss, clipping = self.clip(ratio, advantages)
        if self.dual is not None:
            loss = torch.where(advantages < 0, loss.minimum(-self.dual * advantages), loss)
        return LossOutput(loss, drift_metrics(ratio, logprobs, old_logprobs, mask) | clipping)


class SequenceClipped(_Clipped):
    r"""GSPO: the same clip on the geometric-mean ratio $s=(\prod_t\rho_t)^{1/n}$ of a sequence (arXiv:2507.18071).

    Meant for `SequenceMean`, with which the gradient is that of s.

    Args:
        low: In (0, 1]. The ratio is a mean, so the range is about a thousand times narrower than PPO's.
        high: Above 0.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(self, low: float = 3e-4, high: float = 4e-4) -> None:
        super().__init__(low, high)

    def __call__(
        self, logprobs: Tokens, old_logprobs: Tokens, advantages: Tokens, mask: Mask
    ) -> LossOutput:
        """With the ratio of each sequence, in its token form."""
        ratio = sequence_ratio(logprobs, old_logprobs, mask)
        loss, clipping = self.clip(ratio, advantages)
        return LossOutput(loss, drift_metrics(ratio, logprobs, old_logprobs, mask) | clipping)


class WeightClipped(Surrogate):
    r"""CISPO, $-\mathrm{sg}[\mathrm{clip}(\rho_t)]A_t\log\pi_t$: weights are bounded, no token loses its gradient.

    See arXiv:2506.13585.

    Args:
        low: In (0, 1], or None (as in the paper's runs): weights are at least 1 - low.
        high: Above 0: weights are at most 1 + high. Other libraries give the bound itself: their 5.0 is 4.0 here.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(self, low: float | None = None, high: float = 4.0) -> None:
        allowed = "in (0, 1], or None: weights are at least 1 - low"
        check_option(low is None or 0 < low <= 1, self, "low", low, allowed)
        check_option(high > 0, self, "high", high, "above 0: weights are at most 1 + high")
        self.low = None if low is None else float(low)
        self.high = float(high)

    def __call__(
        self, logprobs: Tokens, old_logprobs: Tokens, advantages: Tokens, mask: Mask
    ) -> LossOutput:
        """See the class."""
        ratio = token_ratio(logprobs, old_logprobs, mask).detach()
        weight = ratio.clamp(None if self.low is None else 1 - self.low, 1 + self.high)
        clipped = {"cispo_clip_ratio": (ratio > 1 + self.high).to(ratio.dtype)}
        drift = drift_metrics(ratio, logprobs, old_logprobs, mask)
        return LossOutput(-weight * advantages * logprobs, drift | clipped)


class Reinforce(Surrogate):
    r"""$-A_t\log\pi_t$ (Williams 1992): right for the first optimizer step after a rollout only."""

    on_policy_only: ClassVar[bool] = True

    def __call__(
        self, logprobs: Tokens, old_logprobs: Tokens, advantages: Tokens, mask: Mask
    ) -> LossOutput:
        """See the class."""
        ratio = token_ratio(logprobs, old_logprobs, mask)
        drift = drift_metrics(ratio, logprobs, old_logprobs, mask)
        return LossOutput(-advantages * logprobs, drift)


def drift_metrics(
    ratio: Tokens, logprobs: Tokens, old_logprobs: Tokens, mask: Mask
) -> dict[str, Tensor]:
    """How far the policy has moved since it sampled, (N, T) each: what `target_kl` looks at, and the ratio."""
    drift = approx_kl(logprobs.detach(), old_logprobs, mask)
    return {"policy/approxkl_avg": drift, "val/ratio": ratio.detach()}


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
