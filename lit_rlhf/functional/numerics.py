"""Functions of logits and probabilities that stay finite, with gradients, where textbook forms overflow (layer L1)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from lit_rlhf.functional.shapes import Logits, Numbers

_EXP_LIMIT = 30.0
LEAST_LOGPROB = -1e30
"""Stands for the logarithm of no probability where the two are multiplied: 0 times -inf is not a number."""


def at_least_float32(x: Numbers) -> Numbers:
    """Cast half precision to float32 and leave float32 and float64 alone."""
    return x if x.dtype == torch.float64 else x.float()


class LogitShape(NamedTuple):
    r"""How logits come from raw products: $z = c\tanh(sa/c)/\tau$, or $sa/\tau$ without a cap."""

    temperature: float = 1.0
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, raw: Tensor) -> Tensor:
        """At least float32; out of place, unless nothing changes."""
        logits = at_least_float32(raw)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = (logits / self.softcap).tanh() * self.softcap
        return logits if self.temperature == 1.0 else logits / self.temperature

    def scale_gradient(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """In place: from the gradient of the logits to that of the raw products."""
        factor = self.scale / self.temperature
        if self.softcap is not None:
            gradient *= 1 - (logits * (self.temperature / self.softcap)).square()
        return gradient if factor == 1.0 else gradient.mul_(factor)


def bounded_exp(x: Numbers, limit: float = _EXP_LIMIT) -> Numbers:
    """Exponential that goes on as its tangent above `limit`: finite, and its slope is never 0 there as a clamp's is.

    Args:
        x: Any shape.
        limit: Where the tangent takes over; e^30 is about 1e13.

    Example:
        >>> bounded_exp(torch.tensor([0.0, 1001.0]), limit=0.0).tolist()
        [1.0, 1002.0]
    """
    return x.clamp_max(limit).exp() * (1 + (x - limit).clamp_min(0))


def log1mexp(x: Numbers) -> Numbers:
    r"""$\log(1 - e^x)$ for x < 0, without cancellation at either end.

    At x = 0 the value would be minus infinity; x is clamped to the largest number below 0 at which it is not.

    Example:
        >>> log1mexp(torch.tensor([-0.6931472])).item()
        -0.6931471824645996
    """
    x = x.clamp_max(-torch.finfo(x.dtype).eps)
    small = x > -math.log(2)
    near_zero = (-torch.expm1(x)).log()
    # The gradient must be finite on the entries that the last `where` doesn't take, too.
    far = torch.log1p(-torch.where(small, -math.log(2), x).exp())
    return torch.where(small, near_zero, far)


def per_token(logprobs: Numbers, lengths: Shaped[Tensor, "*shape"]) -> Numbers:
    """Mean log-prob of a completion's tokens from their sum; an empty completion has 0.

    Example:
        >>> per_token(torch.tensor([-6.0, 0.0]), torch.tensor([3, 0])).tolist()
        [-2.0, 0.0]
    """
    return logprobs / lengths.clamp_min(1)


def log_collision(logits: Logits) -> Numbers:
    r"""$\log\sum_v\pi(v)^2$ of $\pi = \mathrm{softmax}$ of the logits: log of the chance that two draws agree.

    Example:
        >>> log_collision(torch.zeros(4)).exp().item()
        0.25
    """
    return (2 * logits.log_softmax(-1)).logsumexp(-1)


def cumulative_sum(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Sums of what stands up to each place of the last axis, also where torch refuses them.

    Of floats on CUDA torch has no kernel that it calls deterministic, so that `trainer.deterministic` makes `cumsum`
    raise.

    Example:
        >>> cumulative_sum(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [1.0, 3.0, 6.0]
    """
    refused = x.is_cuda and x.is_floating_point() and torch.are_deterministic_algorithms_enabled()
    return sum_by_doubling(x) if refused else x.cumsum(-1)


def sum_by_doubling(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The same by additions alone: after n of them each place holds the sum of the last 2^n."""
    reach = 1
    while reach < x.shape[-1]:
        x = torch.cat([x[..., :reach], x[..., reach:] + x[..., :-reach]], dim=-1)
        reach *= 2
    return x
