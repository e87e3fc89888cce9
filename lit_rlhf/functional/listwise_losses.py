r"""Losses of ranked or scored lists of completions (layer L1): pure, unreduced.

Axes: rows x branches. A boolean mask says which branches exist; what the others hold is never read. A row with fewer
    than
two branches that exist has no ranking: its ranking loss is 0 (terms of single completions, as NCA's, remain).
"""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from lit_rlhf.functional.numerics import per_token, ranks_descending
from lit_rlhf.functional.reward_losses import plackett_luce_loss

Lists = Float[Tensor, "rows branches"]
Mask = Bool[Tensor, "rows branches"]
Rows = Float[Tensor, " rows"]

# In place of minus infinity, whose differences and gradients would be nan.
_MISSING = -1e30


def plackett_luce_dpo_loss(logratios: Lists, scores: Lists, mask: Mask, beta: float = 0.1) -> Rows:
    r"""$-\sum_k\log\frac{e^{\beta u_{(k)}}}{\sum_{j\ge k}e^{\beta u_{(j)}}}$: DPO of rankings (arXiv:2305.18290, A.3).

    Args:
        logratios: u, log-ratios to the reference.
        scores: Higher is better; only their order counts, and ties share their denominator.
        mask: Which branches exist.
        beta: Strength of the KL penalty to the reference.

    Example:
        >>> plackett_luce_dpo_loss(
        ...     torch.zeros(1, 3),
        ...     torch.tensor([[3.0, 2.0, 1.0]]),
        ...     torch.ones(1, 3, dtype=torch.bool),
        ... )
        tensor([1.7918])
    """
    return plackett_luce_loss(beta * logratios, scores, mask)


def info_nca_loss(
    logratios: Lists, scores: Lists, mask: Mask, beta: float = 0.01, temperature: float = 1.0
) -> Rows:
    r"""$-\sum_i q_i\log\mathrm{softmax}(\beta u)_i$ with $q = \mathrm{softmax}(r/\alpha)$ (InfoNCA, arXiv:2402.05369).

    Args:
        logratios: u.
        scores: r, rewards.
        mask: Which branches exist.
        beta: Strength of the KL penalty to the reference.
        temperature: $\alpha$ of the scores; beta times alpha acts as DPO's beta does.
    """
    target = _masked_softmax(scores / temperature, mask)
    logits = (beta * logratios).masked_fill(~mask, _MISSING)
    return -(target * logits.log_softmax(-1)).sum(-1)


def nca_loss(
    logratios: Lists, scores: Lists, mask: Mask, beta: float = 0.01, temperature: float = 1.0
) -> Rows:
    r"""$-\sum_i[q_i\log\sigma(\beta u_i) + \frac1K\log\sigma(-\beta u_i)]$, q as in `info_nca_loss` (arXiv:2402.05369).

    Args:
        logratios: u.
        scores: r, rewards.
        mask: Which branches exist.
        beta: Strength of the KL penalty to the reference.
        temperature: $\alpha$ of the scores.
    """
    target = _masked_softmax(scores / temperature, mask)
    count = mask.sum(-1, keepdim=True).clamp_min(1)
    z = beta * torch.where(mask, logratios, 0.0)
    return -((target * logsigmoid(z) + logsigmoid(-z) / count) * mask).sum(-1)


def lipo_lambda_loss(logratios: Lists, scores: Lists, mask: Mask, beta: float = 0.05) -> Rows:
    r"""$\sum_{\psi_i > \psi_j}\Delta_{ij}\log(1 + e^{-(s_i - s_j)})$, $s = \beta u$ (LiPO-lambda, arXiv:2402.01878).

    $\Delta_{ij} = |2^{\psi_i} - 2^{\psi_j}| \cdot |\frac{1}{\log(1 + \tau_i)} - \frac{1}{\log(1 + \tau_j)}|$ with
    $\tau$ the rank by s, 1 the highest; it carries no gradient.

    Args:
        logratios: u.
        scores: $\psi$, labels; gains grow with 2 to their power, so scale them to about [0, 1].
        mask: Which branches exist.
        beta: Strength of the KL penalty to the reference.
    """
    s, scores = beta * torch.where(mask, logratios, 0.0), torch.where(mask, scores, 0.0)
    rank = ranks_descending(s.masked_fill(~mask, _MISSING)).to(s.dtype)
    discount = 1 / torch.log1p(rank)
    weight = _differences(scores.exp2()).abs() * _differences(discount).abs()
    return (_better(scores, mask) * weight * softplus(-_differences(s))).sum((-2, -1))


def pro_loss(
    logprobs: Lists,
    lengths: Shaped[Tensor, "rows branches"],
    scores: Lists,
    mask: Mask,
    sft_weight: float = 0.05,
) -> Rows:
    r"""$\sum_{k<K}-\log\frac{e^{p_kT_k}}{e^{p_kT_k} + \sum_{i>k}e^{p_i(r_k - r_i)}} + b(K-1)^2 NLL(y_1)$.

    Preference ranking optimization, arXiv:2306.17492. p is the mean log-prob per token, completions are in the order of
    their scores r, and $T_k = \max_{i>k}(r_k - r_i)$. The likelihood is that of the best completion, summed over
    tokens. A tie of all that is left has $T_k = 0$: its term is a constant.

    Args:
        logprobs: Log-probs summed over tokens; no reference.
        lengths: Tokens of each completion.
        scores: r, rewards.
        mask: Which branches exist.
        sft_weight: b.
    """
    p, exists = _by_score(per_token(logprobs, lengths), scores, mask)
    r, _ = _by_score(scores, scores, mask)
    after = torch.ones(mask.shape[-1:] * 2, dtype=torch.bool, device=mask.device).triu(1)
    rest = exists[:, None, :] & after  # [k, i]: i exists and comes after k
    gap = torch.where(rest, _differences(r), 0.0)
    positive = p * gap.amax(-1)
    against = (p[:, None, :] * gap).masked_fill(~rest, _MISSING)
    total = torch.cat([positive[..., None], against], dim=-1).logsumexp(-1)
    others = (exists.sum(-1) - 1).to(p.dtype)
    ranking = (total - positive).sum(-1)  # with nothing left to compare with, both are the same
    return ranking + sft_weight * others.square() * -_best(logprobs, scores, mask)


def rrhf_loss(
    logprobs: Lists,
    lengths: Shaped[Tensor, "rows branches"],
    scores: Lists,
    mask: Mask,
    length_power: float = 1.0,
    rank_weight: float = 1.0,
) -> Rows:
    r"""$w\sum_{r_i<r_j}\max(0, p_i - p_j) + NLL(y_{best})$ with $p = l/n^a$ (RRHF, arXiv:2304.05302).

    The hinge has no margin. The likelihood is the mean over the best completion's tokens.

    Args:
        logprobs: Log-probs l summed over tokens; no reference.
        lengths: Tokens n of each completion.
        scores: r, rewards.
        mask: Which branches exist.
        length_power: a.
        rank_weight: w.
    """
    p = torch.where(mask, logprobs, 0.0) / lengths.clamp_min(1).to(logprobs.dtype) ** length_power
    ranking = (_better(scores, mask) * (-_differences(p)).clamp_min(0)).sum((-2, -1))
    return rank_weight * ranking - _best(per_token(logprobs, lengths), scores, mask)


def _by_score(values: Lists, scores: Lists, mask: Mask) -> tuple[Lists, Mask]:
    """Columns in the order of falling scores, missing ones last and set to 0."""
    order = scores.masked_fill(~mask, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    exists = mask.gather(-1, order)
    return torch.where(exists, values.gather(-1, order), 0.0), exists


def _best(values: Lists, scores: Lists, mask: Mask) -> Rows:
    """The value of the branch with the highest score; 0 in a row without branches."""
    best = scores.masked_fill(~mask, -torch.inf).argmax(-1, keepdim=True)
    return torch.where(mask.any(-1), values.gather(-1, best)[:, 0], 0.0)


def _better(scores: Lists, mask: Mask) -> Bool[Tensor, "rows branches branches"]:
    """[i, j]: both exist and i has the higher score."""
    return (scores[:, :, None] > scores[:, None, :]) & mask[:, :, None] & mask[:, None, :]


def _differences(values: Lists) -> Float[Tensor, "rows branches branches"]:
    return values[:, :, None] - values[:, None, :]


def _masked_softmax(logits: Lists, mask: Mask) -> Lists:
    """Softmax over the branches that exist; zeros in a row without any."""
    return logits.masked_fill(~mask, _MISSING).softmax(-1) * mask
