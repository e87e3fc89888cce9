"""What pairs of answers tell of the model that scores them: agreement, calibration, biases; functions of tensors."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.metrics.intervals import Estimate, bootstrap_mean, wilson_mean


def agreement(margins: Tensor, p_chosen: Tensor) -> Tensor:
    """How probably a rater agrees with the model's order of each pair; a tie counts 0, as in `PreferenceAccuracy`.

    Args:
        margins: (n,) scores of the chosen answers less those of the rejected.
        p_chosen: (n,) probability that a rater prefers the chosen one.
    """
    return p_chosen * (margins > 0) + (1 - p_chosen) * (margins < 0)


def brier_score(margins: Tensor, p_chosen: Tensor) -> float:
    r"""The mean squared error of $\sigma(\Delta)$ as a forecast of a rater's vote (Brier, 1950).

    $$\frac1n\sum_i p_i (1 - \sigma(\Delta_i))^2 + (1 - p_i)\,\sigma(\Delta_i)^2$$

    A coin has 0.25. With soft labels even the true probabilities leave $p(1-p)$.

    Args:
        margins: (n,) scores of the chosen answers less those of the rejected.
        p_chosen: (n,) probability that a rater prefers the chosen one.

    Example:
        >>> brier_score(torch.zeros(3), torch.ones(3))
        0.25
    """
    said, p = margins.double().sigmoid(), p_chosen.double()
    return float((p * (1 - said).square() + (1 - p) * said.square()).mean())


def best_temperature(margins: Tensor, p_chosen: Tensor) -> float:
    r"""The T > 0 for which $\sigma(\Delta / T)$ fits the raters best: above 1, the scores are too sure of themselves.

    Found by bisection on the slope of the negative log-likelihood in 1/T, which is convex (arXiv:1706.04599).

    Args:
        margins: (n,) scores of the chosen answers less those of the rejected.
        p_chosen: (n,) probability that a rater prefers the chosen one.

    Returns:
        From 1e-3 to 1e3 times the mean size of margins, in whatever unit scores are; the ends where no T in between
        fits best, as when every pair is in order. 1e3 where all margins are 0.

    Example:
        >>> round(best_temperature(torch.tensor([2.0, 2.0, 2.0, -2.0]), torch.ones(4)), 3)
        1.82
    """
    size = float(margins.double().abs().mean()) or 1.0
    deltas, p = margins.double() / size, p_chosen.double()
    varied = bool(deltas.any())
    low, high = math.log(1e-3), math.log(1e3)  # of 1 / T
    for _ in range(60):
        middle = (low + high) / 2
        slope = float((((deltas * math.exp(middle)).sigmoid() - p) * deltas).mean())
        # 0: all in order, and sigmoids that have reached 1
        falls = slope < 0 or (slope == 0 and varied)
        low, high = (middle, high) if falls else (low, middle)
    return size * math.exp(-(low + high) / 2)


@dataclass(frozen=True)
class Ceiling:
    """What agreement is possible at all.

    Attributes:
        best: Agreement with a rater that is reached by always going with the majority.
        raters: How often two raters agree with each other.
    """

    best: float
    raters: float


def rater_ceiling(p_chosen: Tensor, votes: Tensor | None = None) -> Ceiling:
    r"""How often raters agree with the majority, and with each other.

    Two raters agree with probability $p^2 + (1-p)^2$. Where p is a share of V votes, that is too much by chance; then
    the pairs of different votes are counted: $\frac{k(k-1) + (V-k)(V-k-1)}{V(V-1)}$, which is unbiased.

    Args:
        p_chosen: (n,) share of raters that prefer the chosen answer.
        votes: (n,) how many they were; rows with fewer than two say nothing. None: p is the probability itself.

    Example:
        >>> rater_ceiling(torch.tensor([0.75]), torch.tensor([4.0]))
        Ceiling(best=0.75, raters=0.5)
    """
    p = p_chosen.double()
    best = float(torch.maximum(p, 1 - p).mean())
    if votes is None:
        return Ceiling(best, float((p.square() + (1 - p).square()).mean()))
    v = votes.double()
    several = v > 1
    k, v = (p * v)[several], v[several]
    pairs = (k * (k - 1) + (v - k) * (v - k - 1)) / (v * (v - 1))
    return Ceiling(best, float(pairs.mean()))


@dataclass(frozen=True)
class Bias:
    """How far a model favors answers that have more of something than raters do.

    Attributes:
        pairs: Pairs in which one answer has more of it.
        raters: Share of them in which raters prefer that one.
        model: Share in which the model does; a tie counts one half.
        excess: The model's share less the raters', with its bootstrap interval: 0 is no bias.
        right_with: Accuracy where raters prefer the answer with more of it (Wilson).
        right_against: Accuracy where they prefer the other one.
    """

    pairs: int
    raters: float
    model: float
    excess: Estimate
    right_with: Estimate
    right_against: Estimate


def feature_bias(
    margins: Tensor, p_chosen: Tensor, differences: Tensor, clusters: Tensor | None = None
) -> Bias | None:
    """Whether a model goes by something countable, such as length, more than its raters do.

    Args:
        margins: (n,) scores of the chosen answers less those of the rejected.
        p_chosen: (n,) probability that a rater prefers the chosen one.
        differences: (n,) how much more of it the chosen answer has.
        clusters: (n,) as for `bootstrap_mean`.

    Returns:
        None where no pair differs in it.

    Example:
        >>> found = feature_bias(
        ...     torch.tensor([1.0, -1.0]), torch.ones(2), torch.tensor([5.0, -5.0])
        ... )
        >>> (found.raters, found.model) if found else None
        (0.5, 1.0)
    """
    differs = differences != 0
    if not bool(differs.any()):
        return None
    margins, p, more = margins[differs].double(), p_chosen[differs].double(), differences[differs]
    own = None if clusters is None else clusters[differs]
    towards = torch.where(more > 0, margins, -margins)
    raters = torch.where(more > 0, p, 1 - p)
    model = (towards.sign() + 1) / 2
    right = agreement(margins, p)
    with_it, against = raters > 0.5, raters < 0.5
    return Bias(
        pairs=len(margins),
        raters=float(raters.mean()),
        model=float(model.mean()),
        excess=bootstrap_mean(model - raters, own),
        right_with=wilson_mean(right[with_it], None if own is None else own[with_it]),
        right_against=wilson_mean(right[against], None if own is None else own[against]),
    )
