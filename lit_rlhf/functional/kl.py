r"""Estimates of KL divergences, in nats, as figures and as rewards.

$u = \log\pi - \log\pi_{ref}$ of what the policy sampled. As a figure, k1 and k3 are unbiased for $KL(\pi\|\pi_{ref})$.
As a reward (detached), k1 is right. As a loss they are something else again, because a sample's log-prob is
differentiated and the sampling is not: in expectation the gradient of k1 is 0, that of k2 is
$\nabla KL(\pi\|\pi_{ref})$ if u is of whole sequences, that of k3 is $\nabla KL(\pi_{ref}\|\pi)$ (arXiv:2506.09477,
arXiv:2512.21852). The losses of `lit_rlhf.objectives` say which they are.
"""

import torch

from lit_rlhf.functional.numerics import at_least_float32
from lit_rlhf.functional.shapes import Logits, Numbers


def k1(logprobs: Numbers, ref_logprobs: Numbers) -> Numbers:
    """Schulman's k1 = u: unbiased, of either sign, and the one to subtract from rewards.

    Args:
        logprobs: Of the policy, per token or summed over a sequence.
        ref_logprobs: Of the reference.
    """
    return logprobs - ref_logprobs


def k2(logprobs: Numbers, ref_logprobs: Numbers) -> Numbers:
    """Schulman's k2 = u^2 / 2: biased as a figure, never negative."""
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Numbers, ref_logprobs: Numbers) -> Numbers:
    """Schulman's k3 = exp(-u) - 1 + u: unbiased as a figure, never negative, of low variance near u = 0.

    Example:
        >>> k3(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -2.0]))
        tensor([0.0000, 0.3679])
    """
    u = logprobs - ref_logprobs
    return torch.expm1(-u) + u


def full_kl(logits: Logits, ref_logits: Logits, temperature: float = 1.0) -> Numbers:
    r"""Exact $\sum_v p_v (\ln p_v - \ln q_v)$ over the vocabulary, p of `logits` and q of `ref_logits`.

    Swap the arguments for the other direction. Entries that both give no probability (-inf) add nothing.

    Example:
        >>> full_kl(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0]))
        tensor(0.)
    """
    logp = (at_least_float32(logits) / temperature).log_softmax(-1)
    return kl_of_logprobs(logp, (at_least_float32(ref_logits) / temperature).log_softmax(-1))


def kl_of_logprobs(logp: Logits, logq: Logits) -> Numbers:
    r"""$\sum_v p_v (\ln p_v - \ln q_v)$ of two distributions given by their logarithms.

    Example:
        >>> kl_of_logprobs(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.2, 0.8]).log())
        tensor(0.2231)
    """
    impossible = logp == -torch.inf
    difference = logp.masked_fill(impossible, 0.0) - logq.masked_fill(impossible, 0.0)
    return (logp.exp() * difference).sum(-1)
