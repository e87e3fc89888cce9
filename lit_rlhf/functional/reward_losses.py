r"""Losses that fit scores to human judgements, unreduced: one number per row (comparison, list or completion).

Axes: rows, branches of a row, attributes of a completion, steps of a solution. A mask says what exists; the rest may
hold anything. Comparisons fix scores up to a constant per prompt, regression and outcomes fix them absolutely.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from lit_rlhf.functional.masking import masked_mean


def bradley_terry_loss(
    chosen: Float[Tensor, " rows"],
    rejected: Float[Tensor, " rows"],
    *,
    margin: Float[Tensor, " rows"] | None = None,
    p_chosen: Float[Tensor, " rows"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " rows"]:
    r"""$-p\log\sigma(\Delta) - (1-p)\log\sigma(-\Delta)$ with $\Delta = r_w - r_l - m$ (arXiv:2009.01325).

    With p = 1 and m = 0 the Bradley--Terry likelihood. A margin (Llama 2, arXiv:2307.09288) asks for a difference of
    scores beyond what the label implies: a constant one inflates all differences. Soft labels, the share of raters that
    prefer the first, leave the optimum of Bernoulli labels where it is and lower the variance.

    Args:
        chosen: (B,) scores.
        rejected: (B,) scores.
        margin: (B,) in units of reward, 0 or more; default 0.
        p_chosen: (B,) in [0, 1]; default 1.
        label_smoothing: Probability in [0, 0.5) that a label is flipped: p becomes p(1 - e) + (1 - p)e. Larger shrinks
            the differences: the best one for certain labels is log((1 - e)/e).

    Example:
        >>> bradley_terry_loss(torch.tensor([1.0]), torch.tensor([1.0]))
        tensor([0.6931])
    """
    delta = chosen - rejected if margin is None else chosen - rejected - margin
    p = torch.ones_like(delta) if p_chosen is None else p_chosen
    return _cross_entropy(delta, p + label_smoothing * (1 - 2 * p))


def scaled_bradley_terry_loss(
    chosen: Float[Tensor, " rows"],
    rejected: Float[Tensor, " rows"],
    scale: Float[Tensor, " rows"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " rows"]:
    r"""$-m\log\sigma(r_w - r_l)$: strong preferences count m times (HelpSteer2-Preference, arXiv:2410.01257).

    Args:
        chosen: (B,) scores.
        rejected: (B,) scores.
        scale: (B,), 0 or more: strength of the preference, there 1 to 3.
        label_smoothing: In [0, 0.5).
    """
    return scale * bradley_terry_loss(chosen, rejected, label_smoothing=label_smoothing)


def centering_penalty(
    chosen: Float[Tensor, " rows"], rejected: Float[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    r"""$(r_w + r_l)^2$, which holds scores near 0; to be weighted by about 0.01 (arXiv:2312.09244).

    It bears on sums of pairs, so with more than two completions of a prompt it shrinks differences, too.
    """
    return (chosen + rejected).square()


def all_pairs_loss(
    scores: Float[Tensor, "rows branches"],
    targets: Float[Tensor, "rows branches"],
    mask: Bool[Tensor, "rows branches"],
    temperature: float | None = None,
) -> Float[Tensor, " rows"]:
    r"""Mean over the pairs of a ranking of $-\log\sigma(r_i - r_j)$, i above j (InstructGPT, arXiv:2203.02155).

    All pairs of a prompt weigh as much as one comparison: as separate rows they would be fitted K(K - 1)/2 times.
    With a temperature T each pair has the soft label $p = \sigma((y_i - y_j) / T)$ and the loss is
    $-p\log\sigma(r_i - r_j) - (1-p)\log\sigma(r_j - r_i)$, least at $r = y / T + c$.

    Args:
        scores: (B, K).
        targets: (B, K): any numbers whose order is that of the ranking, higher is better; ties are no pairs, unless
            there is a temperature.
        mask: (B, K).
        temperature: Above 0, in units of the targets: how much raters' opinions of them scatter. None: the better one
            always wins.

    Returns:
        (B,), 0 where there is no pair.

    Example:
        >>> everything = torch.ones(1, 3, dtype=torch.bool)
        >>> all_pairs_loss(torch.zeros(1, 3), torch.tensor([[2.0, 1.0, 0.0]]), everything)
        tensor([0.6931])
    """
    pairs = _ordered_pairs(targets, mask) if temperature is None else _pairs(mask)
    gaps = torch.where(pairs, scores[:, :, None] - scores[:, None, :], 0.0)
    if temperature is None:
        losses = softplus(-gaps)
    else:
        differences = torch.where(pairs, targets[:, :, None] - targets[:, None, :], 0.0)
        losses = _cross_entropy(gaps, (differences / temperature).sigmoid())
    return masked_mean(losses.flatten(1), pairs.flatten(1), dim=-1)


def pair_agreement(
    scores: Float[Tensor, "rows branches"],
    targets: Float[Tensor, "rows branches"],
    mask: Bool[Tensor, "rows branches"],
) -> Float[Tensor, " rows"]:
    """Share of the pairs of a ranking that the scores order the same way; 0 where there is no pair.

    Example:
        >>> everything = torch.ones(1, 2, dtype=torch.bool)
        >>> pair_agreement(torch.tensor([[0.1, 0.3]]), torch.tensor([[1.0, 2.0]]), everything)
        tensor([1.])
    """
    pairs = _ordered_pairs(targets, mask)
    right = (scores[:, :, None] > scores[:, None, :]).to(scores.dtype)
    return masked_mean(right.flatten(1), pairs.flatten(1), dim=-1)


def plackett_luce_loss(
    scores: Float[Tensor, "rows branches"],
    targets: Float[Tensor, "rows branches"],
    mask: Bool[Tensor, "rows branches"],
    top: int | None = None,
) -> Float[Tensor, " rows"]:
    r"""$-\sum_k \log\frac{e^{r_{(k)}}}{\sum_{j\ge k} e^{r_{(j)}}}$: the likelihood of a ranking, best first.

    Plackett 1975; K-wise reward models, arXiv:2301.11270. Tied completions share their denominator (Breslow), so the
    result does not depend on their order.

    Args:
        scores: (B, K).
        targets: (B, K): any numbers whose order is that of the ranking, higher is better.
        mask: (B, K).
        top: Count the choices of the best `top` completions only, 1 or more; 1 = cross-entropy of the best. Default:
            all.

    Returns:
        (B,), 0 with fewer than two completions.

    Example:
        >>> everything = torch.ones(1, 3, dtype=torch.bool)
        >>> round(
        ...     float(
        ...         plackett_luce_loss(
        ...             torch.zeros(1, 3), torch.tensor([[2.0, 1.0, 0.0]]), everything
        ...         ).exp()
        ...     ),
        ...     4,
        ... )
        6.0
    """
    kept = torch.where(mask, scores, 0.0)
    above = _ordered_pairs(targets, mask)
    rank = above.sum(1)  # how many are better
    # Row i: what is left to choose from when i is chosen. Every row keeps itself, so that none is empty.
    not_below = targets[:, None, :] <= targets[:, :, None]
    left = (not_below & mask[:, None, :]) | torch.eye(
        mask.shape[1], dtype=torch.bool, device=mask.device
    )
    normalizer = torch.where(left, kept[:, None, :], -torch.inf).logsumexp(-1)
    counted = mask if top is None else mask & (rank < top)
    return torch.where(counted, normalizer - kept, 0.0).sum(-1)


def regression_loss(
    predictions: Float[Tensor, "rows attributes"],
    targets: Float[Tensor, "rows attributes"],
    mask: Bool[Tensor, "rows attributes"],
) -> Float[Tensor, " rows"]:
    r"""Mean over the attributes that were rated of $(f_k - y_k)^2$ (SteerLM, HelpSteer2, arXiv:2406.08673).

    With scores of completions in place of attributes: pointwise regression on a scalar rating.

    Args:
        predictions: (B, A).
        targets: (B, A), in units of reward.
        mask: (B, A): which were rated.

    Returns:
        (B,), 0 where nothing was.
    """
    errors = torch.where(mask, predictions - targets, 0.0)
    return masked_mean(errors.square(), mask, dim=-1)


def gaussian_nll_loss(
    means: Float[Tensor, "*shape"],
    log_stds: Float[Tensor, "*shape"],
    targets: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    r"""$\tfrac12((y-\mu)/\sigma)^2 + \log\sigma + \tfrac12\log 2\pi$: ratings with a spread of their own.

    The uncertainty-aware reward model of arXiv:2410.00847 has such a head for each attribute.

    Args:
        means: Predicted ratings, any shape.
        log_stds: Natural log of the predicted standard deviation.
        targets: Ratings.
    """
    return (
        0.5 * ((targets - means) * torch.exp(-log_stds)).square()
        + log_stds
        + 0.5 * math.log(2 * math.pi)
    )


def process_loss(
    logits: Float[Tensor, "rows steps"],
    labels: Float[Tensor, "rows steps"],
    mask: Bool[Tensor, "rows steps"],
) -> Float[Tensor, "rows steps"]:
    r"""Cross-entropy of each step of a solution, $-y\log\sigma(z) - (1-y)\log\sigma(-z)$ (arXiv:2305.20050).

    Args:
        logits: (B, S) at the last token of each step.
        labels: (B, S) in [0, 1]: 1 = right; in between where rollouts estimated it (Math-Shepherd, arXiv:2312.08935).
        mask: (B, S): which steps were labelled.

    Returns:
        (B, S), 0 where masked.
    """
    return _cross_entropy(
        torch.where(mask, logits, 0.0), torch.where(mask, labels, 0.0)
    ).masked_fill(~mask, 0.0)


def outcome_loss(
    logits: Float[Tensor, "*shape"], labels: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Cross-entropy of "the answer is right", $-y\log\sigma(z) - (1-y)\log\sigma(-z)$ (arXiv:2110.14168).

    Args:
        logits: Any shape, at the last token.
        labels: In [0, 1].
    """
    return _cross_entropy(logits, labels)


def length_debiased_loss(
    quality: Float[Tensor, "rows 2"],
    length_scores: Float[Tensor, "rows 2"],
    lengths: Int[Tensor, "rows 2"],
    coef: float = 1.0,
) -> Float[Tensor, " rows"]:
    r"""ODIN's two heads: length goes into one, and the other is used as the reward (arXiv:2402.07319).

    $-\log\sigma(\Delta(q + \ell)) + \lambda(|\mathrm{corr}(q, n)| + 1 - \mathrm{corr}(\ell, n))$, correlations over the
    completions of the batch: a batch of a few pairs estimates them badly. Deviation: the paper's penalty on the inner
    product of the two heads' weights is not a function of scores and is left to the module.

    Args:
        quality: (B, 2) scores of the head to keep, chosen first.
        length_scores: (B, 2) scores of the head to throw away.
        lengths: (B, 2) tokens.
        coef: lambda, 0 or more; 1 in the paper.

    Returns:
        (B,): the penalty of the batch is added to each row, so that the mean is the loss.
    """
    total = quality + length_scores
    correlation = _correlation(quality.flatten(), lengths.flatten().to(quality.dtype)).abs()
    explained = _correlation(length_scores.flatten(), lengths.flatten().to(quality.dtype))
    return bradley_terry_loss(total[:, 0], total[:, 1]) + coef * (correlation + 1 - explained)


def ensemble_mean(scores: Float[Tensor, " members *shape"]) -> Float[Tensor, "*shape"]:
    """Mean over the members of an ensemble of reward models (arXiv:2312.09244)."""
    return scores.mean(0)


def ensemble_worst(scores: Float[Tensor, " members *shape"]) -> Float[Tensor, "*shape"]:
    """The least of the members' scores: worst-case optimization (arXiv:2310.02743)."""
    return scores.amin(0)


def ensemble_uncertainty_weighted(
    scores: Float[Tensor, " members *shape"], coef: float = 0.5
) -> Float[Tensor, "*shape"]:
    """Mean minus `coef` times the variance over the members (population variance; arXiv:2310.02743).

    Args:
        scores: (members, ...), on a common scale.
        coef: 0 or more, in 1 / units of reward; larger trusts agreement more.

    Example:
        >>> ensemble_uncertainty_weighted(torch.tensor([[1.0], [3.0]]), coef=0.5)
        tensor([1.5000])
    """
    return scores.mean(0) - coef * scores.var(0, correction=0)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-y log s(z) - (1 - y) log s(-z), by softplus: it overflows for no z."""
    return labels * softplus(-logits) + (1 - labels) * softplus(logits)


def _ordered_pairs(targets: Tensor, mask: Tensor) -> Tensor:
    """(B, K, K): i exists, j exists, i is better than j."""
    return (targets[:, :, None] > targets[:, None, :]) & mask[:, :, None] & mask[:, None, :]


def _pairs(mask: Tensor) -> Tensor:
    """(B, K, K): i and j exist, i before j."""
    both = mask[:, :, None] & mask[:, None, :]
    return both.triu(diagonal=1)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's; 0 where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = x.square().sum() * y.square().sum()
    varies = scale > torch.finfo(x.dtype).tiny
    return torch.where(varies, (x * y).sum() * torch.where(varies, scale, 1.0).rsqrt(), 0.0)
