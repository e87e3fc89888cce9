r"""Pairwise losses that need no reference (layer L1).

Notation: $l(y) = \log\pi(y|x)$ summed over the completion's tokens, n = their number; w = chosen, l = rejected.
"""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from lit_rlhf.functional.numerics import bounded_exp, log1mexp, per_token

Pairs = Float[Tensor, " pairs"]
Lengths = Int[Tensor, " pairs"]


def simpo_loss(
    chosen: Pairs,
    rejected: Pairs,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Pairs:
    r"""$-\log\sigma(\beta(l_w/n_w - l_l/n_l) - \gamma)$ (SimPO, arXiv:2405.14734).

    Args:
        chosen: Summed log-probs of the chosen completions.
        rejected: Summed log-probs of the rejected ones.
        chosen_lengths: Tokens of the chosen completions.
        rejected_lengths: Tokens of the rejected ones.
        beta: Scale of the length-normalised reward, 2 to 10.
        gamma: Margin asked for, in units of reward (not divided by beta); 0.1 to 0.8 times beta.
    """
    return softplus(
        gamma - beta * (per_token(chosen, chosen_lengths) - per_token(rejected, rejected_lengths))
    )


def alphapo_loss(
    chosen: Pairs,
    rejected: Pairs,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    beta: float = 2.0,
    gamma: float = 1.0,
    alpha: float = 0.25,
) -> Pairs:
    r"""SimPO with reward $(1 - p^{-\alpha})/\alpha$, $p = e^{l/n}$ (AlphaPO, arXiv:2501.03884).

    Args:
        chosen: Summed log-probs of the chosen completions.
        rejected: Summed log-probs of the rejected ones.
        chosen_lengths: Tokens of the chosen completions.
        rejected_lengths: Tokens of the rejected ones.
        beta: Scale of the reward.
        gamma: Margin asked for, in units of reward.
        alpha: Shape of the reward: 0 is SimPO; positive bends it down where p is small.
    """
    better = alpha_reward(per_token(chosen, chosen_lengths), alpha)
    worse = alpha_reward(per_token(rejected, rejected_lengths), alpha)
    return softplus(gamma - beta * (better - worse))


def alpha_reward(mean_logprobs: Pairs, alpha: float) -> Pairs:
    r"""$(1 - p^{-\alpha})/\alpha$ with $p = e^{l/n}$; $l/n$ itself at $\alpha = 0$ (arXiv:2501.03884).

    Args:
        mean_logprobs: $l/n$, log-probs averaged over tokens.
        alpha: Shape of the reward.
    """
    return mean_logprobs if alpha == 0 else (1 - bounded_exp(-alpha * mean_logprobs)) / alpha


def cpo_loss(
    chosen: Pairs, rejected: Pairs, chosen_nll: Pairs, beta: float = 0.1, alpha: float = 1.0
) -> Pairs:
    r"""$-\log\sigma(\beta(l_w - l_l)) + \alpha\,NLL(y_w)$ (CPO, arXiv:2401.08417).

    Args:
        chosen: Summed log-probs of the chosen completions.
        rejected: Summed log-probs of the rejected ones.
        chosen_nll: Negative log-likelihood of the chosen completions.
        beta: Scale of the preference term.
        alpha: Weight of the likelihood.
    """
    return softplus(-beta * (chosen - rejected)) + alpha * chosen_nll


def log_odds(mean_logprobs: Pairs) -> Pairs:
    r"""$\log\frac{P}{1 - P}$ with $P = e^{l/n}$; finite even for P = 1 in the precision at hand.

    Args:
        mean_logprobs: $l/n$.

    Example:
        >>> import torch
        >>> round(log_odds(torch.tensor([0.75]).log()).exp().item(), 5)
        3.0
    """
    return mean_logprobs - log1mexp(mean_logprobs)


def orpo_loss(
    chosen: Pairs,
    rejected: Pairs,
    chosen_lengths: Lengths,
    rejected_lengths: Lengths,
    weight: float = 0.1,
) -> Pairs:
    r"""$-\frac{l_w}{n_w} - \lambda\log\sigma\left(\log\frac{odds(y_w)}{odds(y_l)}\right)$ (ORPO, arXiv:2403.07691).

    The odds are of the mean token probability $P = e^{l/n}$. The likelihood is of the completion alone; the authors'
    code and TRL take the prompt in, too.

    Args:
        chosen: Summed log-probs of the chosen completions.
        rejected: Summed log-probs of the rejected ones.
        chosen_lengths: Tokens of the chosen completions.
        rejected_lengths: Tokens of the rejected ones.
        weight: $\lambda$ of the odds ratio.
    """
    chosen, rejected = per_token(chosen, chosen_lengths), per_token(rejected, rejected_lengths)
    return -chosen + weight * softplus(-(log_odds(chosen) - log_odds(rejected)))


def slic_loss(
    chosen: Pairs, rejected: Pairs, target_nll: Pairs, margin: float = 1.0, weight: float = 0.1
) -> Pairs:
    r"""$\max(0, \delta - l_w + l_l) + \lambda\,NLL(y_{target})$ (SLiC-HF, arXiv:2305.10425).

    Args:
        chosen: Summed log-probs of the chosen completions.
        rejected: Summed log-probs of the rejected ones.
        target_nll: Negative log-likelihood of the completion to stay close to.
        margin: $\delta$, in nats.
        weight: $\lambda$.
    """
    return (margin - chosen + rejected).clamp_min(0) + weight * target_nll
