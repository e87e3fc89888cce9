r"""Estimates of KL divergences, in nats, as figures and as losses.

$u = \log\pi - \log\pi_{ref}$ of what the policy sampled. As a figure, k1 and k3 are unbiased for $KL(\pi\|\pi_{ref})$.
As a reward (detached), k1 is right. As a loss they are something else again, because a sample's log-prob is
differentiated and the sampling is not: in expectation the gradient of k1 is 0, that of k2 is
$\nabla KL(\pi\|\pi_{ref})$ if u is of whole sequences, that of k3 is $\nabla KL(\pi_{ref}\|\pi)$ (arXiv:2506.09477,
arXiv:2512.21852). The loss functions here say which they are.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_rlhf.functional.masking import at_least_float32, masked_sum
from lit_rlhf.functional.policy_losses import prefix_ratio, sequence_ratio


def k1(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Schulman's k1 = u: unbiased, of either sign, and the one to subtract from rewards.

    Args:
        logprobs: Of the policy, per token or summed over a sequence.
        ref_logprobs: Of the reference.
    """
    return logprobs - ref_logprobs


def k2(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Schulman's k2 = u^2 / 2: biased as a figure, never negative."""
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Schulman's k3 = exp(-u) - 1 + u: unbiased as a figure, never negative, of low variance near u = 0.

    Example:
        >>> k3(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -2.0]))
        tensor([0.0000, 0.3679])
    """
    u = logprobs - ref_logprobs
    return torch.expm1(-u) + u


def full_kl(
    logits: Float[Tensor, "*shape vocabulary"],
    ref_logits: Float[Tensor, "*shape vocabulary"],
    temperature: float = 1.0,
) -> Float[Tensor, "*shape"]:
    r"""Exact $\sum_v p_v (\ln p_v - \ln q_v)$ over the vocabulary, p of `logits` and q of `ref_logits`.

    Swap the arguments for the other direction. Entries that both give no probability (-inf) add nothing.

    Example:
        >>> full_kl(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0]))
        tensor(0.)
    """
    logp = (at_least_float32(logits) / temperature).log_softmax(-1)
    logq = (at_least_float32(ref_logits) / temperature).log_softmax(-1)
    impossible = logp == -torch.inf
    difference = logp.masked_fill(impossible, 0.0) - logq.masked_fill(impossible, 0.0)
    return (logp.exp() * difference).sum(-1)


def unbiased_k3_loss(
    logprobs: Float[Tensor, "sequences time"],
    old_logprobs: Float[Tensor, "sequences time"],
    ref_logprobs: Float[Tensor, "sequences time"],
    mask: Bool[Tensor, "sequences time"],
) -> Float[Tensor, "sequences time"]:
    r"""A loss whose expected gradient, summed over tokens, is $\nabla KL(\pi\|\pi_{ref})$ of whole sequences.

    $\rho_{\le t}\, k_3(u_t)$ with the differentiable ratio $\rho_{\le t}=\prod_{s\le t}\pi_s/\pi_{old,s}$ of all tokens
    so far: an importance-weighted k3, so value and gradient are right also when the samples are of an older policy.
    Deviation: public GRPO code weighs k3 with the ratio of its own token alone, if at all, and so drops what a token
    does to the KL of later ones.

    Args:
        logprobs: (N, T), differentiable.
        old_logprobs: (N, T) of the policy that sampled.
        ref_logprobs: (N, T).
        mask: (N, T).

    Returns:
        (N, T), 0 where masked.
    """
    ratio = prefix_ratio(logprobs, old_logprobs, mask)
    return ratio * biased_k3_loss(logprobs, ref_logprobs, mask)


def sequence_k2_loss(
    logprobs: Float[Tensor, "sequences time"],
    old_logprobs: Float[Tensor, "sequences time"],
    ref_logprobs: Float[Tensor, "sequences time"],
    mask: Bool[Tensor, "sequences time"],
) -> Float[Tensor, "sequences time"]:
    r"""A loss whose expected gradient, summed over tokens, is $\nabla KL(\pi\|\pi_{ref})$ of whole sequences.

    $\tfrac12 \rho\, U^2$ with $U=\sum_t u_t$ and the detached ratio $\rho=\pi(y)/\pi_{old}(y)$ (1 on policy), laid out
    as $\tfrac12\rho\,U u_t$ per token. The value is no KL; the gradient is.

    Args:
        logprobs: (N, T), differentiable.
        old_logprobs: (N, T) of the policy that sampled.
        ref_logprobs: (N, T).
        mask: (N, T).

    Returns:
        (N, T), 0 where masked.
    """
    u = torch.where(mask, logprobs - ref_logprobs, 0.0)
    total = masked_sum(u, mask, dim=-1)[:, None]
    ratio = sequence_ratio(logprobs, old_logprobs, mask, length_normalized=False).detach()
    return 0.5 * ratio * total * u


def biased_k3_loss(
    logprobs: Float[Tensor, "sequences time"],
    ref_logprobs: Float[Tensor, "sequences time"],
    mask: Bool[Tensor, "sequences time"],
) -> Float[Tensor, "sequences time"]:
    r"""The loss of the GRPO paper (arXiv:2402.03300): k3 differentiated as it stands.

    On-policy its expected gradient is that of $KL(\pi_{ref}\|\pi)$, the other direction: the optimum it pulls to is
    $\beta\pi_{ref}/(L-r)$ with L a normaliser, not $\pi_{ref}e^{r/\beta}/Z$. Kept to reproduce published runs.

    Returns:
        (N, T), 0 where masked.
    """
    kept = torch.where(mask, logprobs, 0.0)
    return k3(kept, torch.where(mask, ref_logprobs, 0.0))
