"""The KL to the reference: its coefficient, fixed or steered to a target, and the KL as a term of the loss."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from lit_rlhf.errors import CheckpointError
from lit_rlhf.functional.kl import k3
from lit_rlhf.functional.policy_losses import log_ratio, prefix_ratio, sequence_ratio
from lit_rlhf.functional.shapes import Mask, Tokens
from lit_rlhf.options import check_option

_MAX_ERROR = 0.2  # lm-human-preferences' bound, so that one rollout can't throw the coefficient


class KLController(ABC):
    """A coefficient beta, in units of reward per nat, that may change from iteration to iteration."""

    value: float
    """The coefficient to use now."""

    @abstractmethod
    def update(self, kl: float, num_sequences: int) -> None:
        """Adapt to an iteration.

        Args:
            kl: Mean over sequences of the KL to the reference, summed over tokens, in nats; of all ranks.
            num_sequences: How many sequences that mean is of, of all ranks.
        """

    def state_dict(self) -> dict[str, float]:
        """What a run needs to go on as if it had not stopped; nothing for a fixed coefficient."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            CheckpointError: The state is that of another kind of controller.
        """
        if state:
            raise CheckpointError(
                f"The checkpoint holds a KL coefficient that changed ({dict(state)}), but {type(self).__name__} has no "
                "state: resume with the controller of that run, or start a new run from its weights."
            )


class FixedKL(KLController):
    """The same coefficient throughout.

    Args:
        coef: beta in units of reward per nat, 0 or more. Larger stays closer to the reference; 0 has no penalty.

    Raises:
        ConfigurationError: The coefficient is negative or not finite.

    Example:
        >>> FixedKL(0.05).value
        0.05
    """

    def __init__(self, coef: float = 0.05) -> None:
        check_option(0 <= coef < math.inf, self, "coef", coef, "0 or more")
        self.value = float(coef)

    def update(self, kl: float, num_sequences: int) -> None:
        """Nothing changes."""


class AdaptiveKL(KLController):
    r"""Steers the KL to a target (arXiv:1909.08593, section 2.2).

    $\beta \leftarrow \beta\,(1 + \mathrm{clip}(KL/KL_{target} - 1, \pm 0.2)\, n / \text{horizon})$ after each iteration
    of n sequences; n counts as no more than the horizon. A KL that is not finite changes nothing.

    Args:
        init: beta to begin with, above 0, in units of reward per nat.
        target: KL of a whole sequence to settle at, above 0, in nats.
        horizon: Sequences over which the coefficient may change by a fifth; above 0. Smaller reacts faster and
            oscillates more.

    Raises:
        ConfigurationError: An option is out of range.

    Example:
        >>> control = AdaptiveKL(init=0.1, target=6.0, horizon=1000)
        >>> control.update(kl=60.0, num_sequences=500)
        >>> round(control.value, 6)
        0.11
    """

    def __init__(self, init: float = 0.1, target: float = 6.0, horizon: int = 10_000) -> None:
        allowed = "above 0; for no penalty use FixedKL(0)"
        check_option(0 < init < math.inf, self, "init", init, allowed)
        check_option(0 < target < math.inf, self, "target", target, "above 0, in nats per sequence")
        check_option(horizon > 0, self, "horizon", horizon, "above 0, in sequences")
        self.value = float(init)
        self.target = float(target)
        self.horizon = horizon

    def update(self, kl: float, num_sequences: int) -> None:
        """Raise the coefficient where the KL is above its target, lower it where below."""
        if not math.isfinite(kl):
            return
        error = min(max(kl / self.target - 1, -_MAX_ERROR), _MAX_ERROR)
        self.value *= 1 + error * min(num_sequences / self.horizon, 1.0)

    def state_dict(self) -> dict[str, float]:
        """The coefficient."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the coefficient.

        Raises:
            CheckpointError: The state is that of another kind of controller.
        """
        if "value" not in state:
            raise CheckpointError(
                f"The checkpoint holds no KL coefficient (found: {sorted(state)}), for it was made with another "
                "controller: resume with the controller of that run, or start a new run from its weights."
            )
        self.value = float(state["value"])


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
