r"""Pairwise losses with a logistic link: DPO and its relatives (layer L1).

Notation: $u(y) = \log\pi(y|x) - \log\pi_{ref}(y|x)$, the log-ratio of a whole completion (a sum over its tokens, end of
sequence included); w = chosen, l = rejected; $h = u_w - u_l$; n = number of tokens. All losses are unreduced.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import softplus

from lit_rlhf.functional.numerics import per_token

Pairs = Float[Tensor, " pairs"]
Lengths = Int[Tensor, " pairs"]


def dpo_loss(chosen: Pairs, rejected: Pairs, beta: float | Tensor = 0.1) -> Pairs:
    r"""$-\log\sigma(\beta h)$ (DPO, arXiv:2305.18290).

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        beta: Strength of the KL penalty to the reference; a number or one per pair.

    Example:
        >>> dpo_loss(torch.tensor([1.0]), torch.tensor([1.0])).item() == torch.tensor(
        ...     2.0
        ... ).log().item()
        True
    """
    return softplus(-beta * (chosen - rejected))


def soft_label_dpo_loss(
    chosen: Pairs, rejected: Pairs, p_chosen: Float[Tensor, "..."] | float, beta: float = 0.1
) -> Pairs:
    r"""$-p\log\sigma(\beta h) - (1 - p)\log\sigma(-\beta h)$: DPO where p is the probability that the label is right.

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        p_chosen: Probability in [0, 1] that a rater prefers the chosen completion; one for all or one per pair.
        beta: Strength of the KL penalty to the reference.

    Example:
        >>> h = torch.tensor([2.0])
        >>> bool(soft_label_dpo_loss(h, 0 * h, torch.tensor([1.0])) == dpo_loss(h, 0 * h))
        True
    """
    z = beta * (chosen - rejected)
    return p_chosen * softplus(-z) + (1 - p_chosen) * softplus(z)


def conservative_dpo_loss(
    chosen: Pairs, rejected: Pairs, label_smoothing: float, beta: float = 0.1
) -> Pairs:
    r"""$-(1-\epsilon)\log\sigma(\beta h) - \epsilon\log\sigma(-\beta h)$ (cDPO, E. Mitchell's note of 2023).

    It shrinks the margins: with a true flip rate of $\epsilon$ in the data use `robust_dpo_loss`.

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        label_smoothing: $\epsilon$ in [0, 0.5).
        beta: Strength of the KL penalty to the reference.
    """
    return soft_label_dpo_loss(chosen, rejected, 1 - label_smoothing, beta)


def robust_dpo_loss(
    chosen: Pairs, rejected: Pairs, label_smoothing: float, beta: float = 0.1
) -> Pairs:
    r"""$\frac{-(1-\epsilon)\log\sigma(\beta h) + \epsilon\log\sigma(-\beta h)}{1 - 2\epsilon}$.

    rDPO, arXiv:2403.00409. Its expectation over labels flipped with probability $\epsilon$ is the DPO loss of the true
    labels. A single pair's loss may be negative, and is unbounded below as h goes to minus infinity.

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        label_smoothing: The known flip rate $\epsilon$ in [0, 0.5).
        beta: Strength of the KL penalty to the reference.
    """
    z = beta * (chosen - rejected)
    return ((1 - label_smoothing) * softplus(-z) - label_smoothing * softplus(z)) / (
        1 - 2 * label_smoothing
    )


def length_regularized_dpo_loss(
    chosen: Pairs,
    rejected: Pairs,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    beta: float = 0.1,
    alpha: float = 0.01,
) -> Pairs:
    r"""$-\log\sigma(\beta h + \alpha(n_w - n_l))$ (R-DPO, arXiv:2403.19159).

    The optimum is that of the reward $r - \alpha n$.

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        chosen_lengths: Tokens of the chosen completions.
        rejected_lengths: Tokens of the rejected ones.
        beta: Strength of the KL penalty to the reference.
        alpha: Price of a token in units of reward; positive makes completions shorter.
    """
    excess = (chosen_lengths - rejected_lengths).to(chosen.dtype)
    return softplus(-(beta * (chosen - rejected) + alpha * excess))


def length_normalized_dpo_loss(
    chosen: Pairs,
    rejected: Pairs,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    beta: float = 5.0,
) -> Pairs:
    r"""$-\log\sigma(\beta(u_w / n_w - u_l / n_l))$ (LN-DPO, arXiv:2411.15124).

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        chosen_lengths: Tokens of the chosen completions.
        rejected_lengths: Tokens of the rejected ones.
        beta: Strength of the penalty, per token: larger than DPO's by about the length.
    """
    return softplus(
        -beta * (per_token(chosen, chosen_lengths) - per_token(rejected, rejected_lengths))
    )


def length_desensitized_logprobs(
    token_logprobs: Float[Tensor, "rows branches time"],
    mask: Shaped[Tensor, "rows branches time"],
    alpha: float = 0.5,
) -> Float[Tensor, "rows branches"]:
    r"""Sum of log-probs where tokens beyond the row's shortest branch weigh $\alpha$ (LD-DPO, arXiv:2409.06411).

    Args:
        token_logprobs: Log-probs of the tokens of each branch.
        mask: 1 where a token exists; boolean or a number.
        alpha: Weight in [0, 1]; 1 gives the plain sum, 0 ignores what exceeds the shortest branch.

    Example:
        >>> length_desensitized_logprobs(
        ...     -torch.ones(1, 2, 3), torch.tensor([[[1, 1, 1], [1, 0, 0]]])
        ... ).tolist()
        [[-2.0, -1.0]]
    """
    shared = mask.sum(-1).amin(-1)[:, None, None]
    steps = torch.arange(mask.shape[-1], device=mask.device)
    beyond = (steps >= shared).to(token_logprobs.dtype)
    return (token_logprobs * mask * (1 - (1 - alpha) * beyond)).sum(-1)


def dpop_loss(chosen: Pairs, rejected: Pairs, beta: float = 0.3, penalty: float = 50.0) -> Pairs:
    r"""$-\log\sigma(\beta(h - \lambda\max(0, -u_w)))$ (DPO-positive, Smaug, arXiv:2402.13228).

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        beta: Strength of the KL penalty to the reference.
        penalty: $\lambda$, the price of a chosen completion less likely than under the reference; 0 is DPO.
    """
    return softplus(-beta * (chosen - rejected - penalty * (-chosen).clamp_min(0)))


def tdpo_loss(
    chosen: Pairs, rejected: Pairs, chosen_kl: Pairs, rejected_kl: Pairs, beta: float = 0.1
) -> Pairs:
    r"""$-\log\sigma(\beta(h - (D_l - D_w)))$ (TDPO1, arXiv:2404.11999).

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        chosen_kl: $D_w$: sum over tokens of $KL(\pi_{ref}(\cdot|s_t) \| \pi(\cdot|s_t))$ over the whole vocabulary.
        rejected_kl: $D_l$, the same of the rejected completions.
        beta: Strength of the KL penalty to the reference.
    """
    return softplus(-beta * (chosen - rejected - (rejected_kl - chosen_kl)))


def tdpo2_loss(
    chosen: Pairs,
    rejected: Pairs,
    chosen_kl: Pairs,
    rejected_kl: Pairs,
    beta: float = 0.1,
    alpha: float = 0.5,
) -> Pairs:
    r"""$-\log\sigma(\beta(h - \alpha(D_l - \mathrm{sg}\,D_w)))$ (TDPO2, arXiv:2404.11999).

    No gradient flows through $D_w$, so the rejected side's divergence is a force that pulls towards the reference.

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        chosen_kl: $D_w$, see `tdpo_loss`.
        rejected_kl: $D_l$.
        beta: Strength of the KL penalty to the reference.
        alpha: Weight of the divergences.
    """
    return softplus(-beta * (chosen - rejected - alpha * (rejected_kl - chosen_kl.detach())))


def rpo_loss(
    chosen: Pairs, rejected: Pairs, chosen_nll: Pairs, beta: float = 0.1, alpha: float = 1.0
) -> Pairs:
    r"""$-\log\sigma(\beta h) + \alpha\,NLL(y_w)$ (RPO, arXiv:2404.19733 and 2405.16436).

    Args:
        chosen: Log-ratios of the chosen completions.
        rejected: Log-ratios of the rejected ones.
        chosen_nll: Negative log-likelihood of the chosen completions: per token (2404.19733) or summed (2405.16436).
        beta: Strength of the KL penalty to the reference.
        alpha: Weight of the likelihood.
    """
    return dpo_loss(chosen, rejected, beta) + alpha * chosen_nll


def spin_loss(real: Pairs, generated: Pairs, scale: float = 0.1) -> Pairs:
    r"""$-\log\sigma(\lambda(u(y) - u(y')))$ with y from the data, y' from the last policy (SPIN, arXiv:2401.01335).

    Args:
        real: Log-ratios, to the last policy, of the demonstrations.
        generated: Log-ratios of the last policy's own completions.
        scale: $\lambda$.
    """
    return dpo_loss(real, generated, scale)


def on_policy_weight(
    chosen_logprobs: Pairs,
    rejected_logprobs: Pairs,
    chosen_log_collision: Pairs,
    rejected_log_collision: Pairs,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
) -> Pairs:
    r"""$\min(1, w(y_w)w(y_l))$ with $w(y) = \exp\frac1n\sum_t\log\frac{\pi(y_t)}{\sum_v\pi(v)^2}$.

    WPO's weight of a pair, arXiv:2406.11827. It carries no gradient; the cap at 1 is TRL's.

    Args:
        chosen_logprobs: Summed log-probs of the chosen completions under the policy.
        rejected_logprobs: The same of the rejected ones.
        chosen_log_collision: Sum over tokens of $\log\sum_v\pi(v|s_t)^2$.
        rejected_log_collision: The same of the rejected ones.
        chosen_lengths: Tokens of the chosen completions.
        rejected_lengths: Tokens of the rejected ones.
    """
    chosen = per_token(chosen_logprobs - chosen_log_collision, chosen_lengths)
    rejected = per_token(rejected_logprobs - rejected_log_collision, rejected_lengths)
    return (chosen + rejected).detach().exp().clamp_max(1)


def dynamic_beta(
    gap: Float[Tensor, ""],
    threshold: Float[Tensor, ""] | float,
    beta: float = 0.1,
    alpha: float = 0.6,
) -> Float[Tensor, ""]:
    r"""$\max(10^{-3}, \beta_0(1 + \alpha(\bar h - M_0)))$ without gradient (beta-DPO, arXiv:2407.08639).

    Args:
        gap: $\bar h$, mean log-ratio gap of the batch's kept pairs; not multiplied by beta.
        threshold: $M_0$, its running mean.
        beta: $\beta_0$.
        alpha: How strongly a batch of clear pairs raises beta; 0 is DPO.
    """
    return (beta * (1 + alpha * (gap.detach() - threshold))).clamp_min(1e-3)


def gap_log_weights(gaps: Pairs, mean: Float[Tensor, ""], std: Float[Tensor, ""]) -> Pairs:
    r"""$-\frac12((h - M_0)/\sigma)^2$: log of the weight by which beta-DPO (arXiv:2407.08639) samples what it keeps.

    Args:
        gaps: Log-ratio gaps h of a batch.
        mean: $M_0$, their running mean.
        std: $\sigma$, their running standard deviation; where it is 0 all pairs weigh the same.
    """
    return -0.5 * ((gaps.detach() - mean) / torch.where(std > 0, std, torch.inf)).square()
