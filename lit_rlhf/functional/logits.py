"""What log-probs need of a chunk of raw products with an LM head, in few passes.

A GPU takes about a dozen passes over float32 copies of logits where each operator is a kernel of its own: for a small
model with a large vocabulary they take longer than its layers. The functions here say each result as one expression, so
that `torch.compile` makes one or two passes of it, over the products in their own dtype.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.errors import is_out_of_memory
from lit_rlhf.functional.numerics import LEAST_LOGPROB, LogitShape

FUSED_FROM = 1 << 24
"""Logits of all tokens together from which compiling pays: less is computed before it has begun."""


def row_statistics(raw: Tensor, tokens: Tensor, shape: LogitShape) -> tuple[Tensor, ...]:
    """Of rows of raw products (m, V): log-prob of each token, log of the normalizer, entropy, (m,) each."""
    logits = shape.logits(raw)
    peak = logits.amax(-1, keepdim=True)
    below = (logits - peak).clamp_min(LEAST_LOGPROB)
    weights = below.exp()
    total = weights.sum(-1)
    normalizer = peak.squeeze(-1) + total.log()
    entropy = total.log() - (weights * below).sum(-1) / total
    logprobs = logits.gather(-1, tokens[:, None]).squeeze(-1) - normalizer
    return logprobs, normalizer, entropy


def raw_gradient(
    raw: Tensor,
    tokens: Tensor,
    normalizer: Tensor,
    shape: LogitShape,
    grad_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
    grad_entropy: Tensor | None = None,
) -> Tensor:
    r"""Gradient (m, V) by the raw products, in their dtype: $g(e_t - p) - g_H\,p\,(\ln p + H)$, through the shape.

    Args:
        raw: (m, V) products.
        tokens: t, (m,).
        normalizer: Of `row_statistics`, (m,).
        shape: From products to logits.
        grad_logprobs: g, (m,); None for 1 of each.
        entropy: H, (m,), where it has a gradient.
        grad_entropy: $g_H$, (m,).
    """
    logits = shape.logits(raw)
    log_probs = logits - normalizer[:, None]
    probs = log_probs.exp()
    taken = torch.arange(raw.shape[-1], device=raw.device) == tokens[:, None]
    gradient = taken.to(probs.dtype) - probs
    if grad_logprobs is not None:
        gradient = gradient * grad_logprobs[:, None]
    if entropy is not None and grad_entropy is not None:
        surprise = log_probs.clamp_min(LEAST_LOGPROB) + entropy[:, None]
        gradient = gradient - probs * surprise * grad_entropy[:, None]
    return shape.scale_gradient(gradient, logits).to(raw.dtype)


class Fused:
    """A function that is compiled at its first call, or, where one can't be, all of them as they are written.

    Attributes:
        works: Of the class: whether none has failed yet in this process.
    """

    works = True

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """What the function returns; the first that can't be compiled is told in a warning."""
        if not Fused.works:
            return self.function(*args)
        try:
            self.compiled = self.compiled or torch.compile(self.function, dynamic=True)
            return self.compiled(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in kinds of their own
            if is_out_of_memory(error):  # while it compiled
                raise torch.OutOfMemoryError(str(error)) from error
            made = self.function(*args)  # what is wrong with the arguments themselves ends here
            Fused.works = False
            warnings.warn(
                f"{self.function.__name__} can't be compiled here: log-probs are computed by single operators, which "
                f"is slower. {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                stacklevel=2,
            )
            return made


fused = cache(Fused)
"""The one `Fused` of a function in this process."""
