"""Preference losses one example at a time in Python floats, in the papers' own forms."""

import math
from collections.abc import Sequence


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def nll_of_sigmoid(x: float) -> float:
    """-log sigmoid(x)."""
    return -math.log(sigmoid(x))


# -- pairs: uw, ul are log-ratios, lw, ll log-probs, nw, nl lengths ----------------------------------------------------


def dpo(uw: float, ul: float, beta: float) -> float:
    return nll_of_sigmoid(beta * uw - beta * ul)


def soft_label_dpo(uw: float, ul: float, p: float, beta: float) -> float:
    return p * dpo(uw, ul, beta) + (1 - p) * dpo(ul, uw, beta)


def conservative_dpo(uw: float, ul: float, e: float, beta: float) -> float:
    return (1 - e) * dpo(uw, ul, beta) + e * dpo(ul, uw, beta)


def robust_dpo(uw: float, ul: float, e: float, beta: float) -> float:
    return ((1 - e) * dpo(uw, ul, beta) - e * dpo(ul, uw, beta)) / (1 - 2 * e)


def length_regularized_dpo(
    uw: float, ul: float, nw: int, nl: int, beta: float, alpha: float
) -> float:
    return nll_of_sigmoid((beta * uw + alpha * nw) - (beta * ul + alpha * nl))


def length_normalized_dpo(uw: float, ul: float, nw: int, nl: int, beta: float) -> float:
    return nll_of_sigmoid(beta * (uw / nw) - beta * (ul / nl))


def dpop(uw: float, ul: float, beta: float, penalty: float) -> float:
    return nll_of_sigmoid(beta * (uw - ul - penalty * max(0.0, -uw)))


def tdpo1(uw: float, ul: float, dw: float, dl: float, beta: float) -> float:
    return nll_of_sigmoid(beta * ((uw - ul) - (dl - dw)))


def tdpo2(uw: float, ul: float, dw: float, dl: float, beta: float, alpha: float) -> float:
    return nll_of_sigmoid(beta * ((uw - ul) - alpha * (dl - dw)))


def rpo(uw: float, ul: float, lw: float, nw: int, beta: float, alpha: float) -> float:
    return dpo(uw, ul, beta) - alpha * lw / nw


def forward_kl_dpo(uw: float, ul: float, beta: float) -> float:
    """f(t) = -log t has f'(t) = -1 / t."""
    return dpo(-1 / math.exp(uw), -1 / math.exp(ul), beta)


def jensen_shannon_dpo(uw: float, ul: float, beta: float) -> float:
    tw, tl = math.exp(uw), math.exp(ul)
    return dpo(math.log(2 * tw / (1 + tw)), math.log(2 * tl / (1 + tl)), beta)


def alpha_divergence_dpo(uw: float, ul: float, beta: float, alpha: float) -> float:
    tw, tl = math.exp(uw), math.exp(ul)
    return dpo((1 - tw**-alpha) / alpha, (1 - tl**-alpha) / alpha, beta)


def ipo(uw: float, ul: float, tau: float) -> float:
    return (uw - ul - 1 / (2 * tau)) ** 2


def ipo_mean(uw: float, ul: float, nw: int, nl: int, tau: float) -> float:
    return (uw / nw - ul / nl - 1 / (2 * tau)) ** 2


def rso_hinge(uw: float, ul: float, gamma: float) -> float:
    return max(0.0, 1 - gamma * (uw - ul))


def gpo_exponential(uw: float, ul: float, beta: float) -> float:
    return math.exp(-beta * (uw - ul))


def gpo_savage(uw: float, ul: float, beta: float) -> float:
    return 1 / (1 + math.exp(beta * (uw - ul))) ** 2


def gpo_squared(uw: float, ul: float, beta: float) -> float:
    return (1 - beta * (uw - ul)) ** 2


def exo(uw: float, ul: float, beta: float, e: float) -> float:
    q = sigmoid(beta * (uw - ul))
    return q * math.log(q / (1 - e)) + (1 - q) * math.log((1 - q) / e)


def discopop(uw: float, ul: float, beta: float, tau: float) -> float:
    z = beta * (uw - ul)
    m = sigmoid(z / tau)
    return (1 - m) * math.log(1 + math.exp(-z)) + m * math.exp(-z)


def simpo(lw: float, ll: float, nw: int, nl: int, beta: float, gamma: float) -> float:
    return nll_of_sigmoid(beta / nw * lw - beta / nl * ll - gamma)


def alphapo(
    lw: float, ll: float, nw: int, nl: int, beta: float, gamma: float, alpha: float
) -> float:
    rw, rl = ((1 - math.exp(x / n) ** -alpha) / alpha for x, n in ((lw, nw), (ll, nl)))
    return nll_of_sigmoid(beta * (rw - rl) - gamma)


def cpo(lw: float, ll: float, nw: int, beta: float, alpha: float) -> float:
    return nll_of_sigmoid(beta * (lw - ll)) - alpha * lw / nw


def orpo(lw: float, ll: float, nw: int, nl: int, weight: float) -> float:
    pw, pl = math.exp(lw / nw), math.exp(ll / nl)
    ratio = (pw / (1 - pw)) / (pl / (1 - pl))
    return -lw / nw - weight * math.log(ratio / (1 + ratio))


def slic(lw: float, ll: float, margin: float, weight: float) -> float:
    return max(0.0, margin - lw + ll) - weight * lw


def nca_pair(uw: float, ul: float, beta: float) -> float:
    return nll_of_sigmoid(beta * uw) + 0.5 * (
        nll_of_sigmoid(-beta * uw) + nll_of_sigmoid(-beta * ul)
    )


def bco_pair(uw: float, ul: float, shift: float, beta: float) -> float:
    return nll_of_sigmoid(beta * uw - shift) + nll_of_sigmoid(-(beta * ul - shift))


def apo_zero(uw: float, ul: float, beta: float) -> float:
    return 1 - sigmoid(beta * uw) + sigmoid(beta * ul)


def apo_down(uw: float, ul: float, beta: float) -> float:
    return sigmoid(beta * uw) + 1 - sigmoid(beta * uw - beta * ul)


def cal_dpo(uw: float, ul: float, beta: float) -> float:
    return dpo(uw, ul, 1.0) + 0.5 * ((uw - 1 / (2 * beta)) ** 2 + (ul + 1 / (2 * beta)) ** 2)


def sppo(uw: float, ul: float, p: float, beta: float) -> float:
    eta = 1 / beta
    return ((uw - eta * (p - 0.5)) ** 2 + (ul - eta * (1 - p - 0.5)) ** 2) / 2


def length_desensitized_dpo(
    tw: Sequence[float], tl: Sequence[float], beta: float, alpha: float
) -> float:
    """Of log-ratios by token."""
    shared = min(len(tw), len(tl))
    uw, ul = (sum(tokens[:shared]) + alpha * sum(tokens[shared:]) for tokens in (tw, tl))
    return dpo(uw, ul, beta)


def wpo(
    uw: float,
    ul: float,
    lw: float,
    ll: float,
    cw: float,
    cl: float,
    nw: int,
    nl: int,
    beta: float,
) -> float:
    weight = min(1.0, math.exp((lw - cw) / nw) * math.exp((ll - cl) / nl))
    return weight * dpo(uw, ul, beta)


# -- single completions ------------------------------------------------------------------------------------------------


def kto(
    u: float, label: bool, z0: float, beta: float, desirable: float, undesirable: float
) -> float:
    if label:
        return desirable * (1 - sigmoid(beta * u - beta * z0))
    return undesirable * (1 - sigmoid(beta * z0 - beta * u))


def bco(u: float, label: bool, shift: float, beta: float) -> float:
    return nll_of_sigmoid(beta * u - shift if label else -(beta * u - shift))


def apo_zero_unpaired(u: float, label: bool, beta: float) -> float:
    return 1 - sigmoid(beta * u) if label else sigmoid(beta * u)


def dro_v(u: float, score: float, value: float, tau: float) -> float:
    return (score - value - tau * u) ** 2 / 2


def npo(u: float, beta: float) -> float:
    return -2 / beta * math.log(sigmoid(-beta * u))


def npo_labelled(u: float, label: bool, beta: float) -> float:
    return 0.0 if label else npo(u, beta)


def nll(logprob: float, length: int, label: bool) -> float:
    return -logprob / length if label else 0.0


# -- lists: only the completions that exist, in any order --------------------------------------------------------------


def _ranked(values: Sequence[float], scores: Sequence[float]) -> list[tuple[float, float]]:
    """(value, score), best first."""
    return sorted(zip(values, scores, strict=True), key=lambda pair: -pair[1])


def plackett_luce(u: Sequence[float], scores: Sequence[float], beta: float) -> float:
    order = [math.exp(beta * x) for x, _ in _ranked(u, scores)]
    return -sum(math.log(order[k] / sum(order[k:])) for k in range(len(order) - 1))


def _softmax(values: Sequence[float]) -> list[float]:
    exps = [math.exp(v) for v in values]
    return [e / sum(exps) for e in exps]


def info_nca(u: Sequence[float], scores: Sequence[float], beta: float, temperature: float) -> float:
    target, model = _softmax([s / temperature for s in scores]), _softmax([beta * x for x in u])
    return -sum(t * math.log(m) for t, m in zip(target, model, strict=True))


def nca(u: Sequence[float], scores: Sequence[float], beta: float, temperature: float) -> float:
    target = _softmax([s / temperature for s in scores])
    terms = zip(target, u, strict=True)
    return sum(t * nll_of_sigmoid(beta * x) + nll_of_sigmoid(-beta * x) / len(u) for t, x in terms)


def lipo_lambda(u: Sequence[float], scores: Sequence[float], beta: float) -> float:
    s = [beta * x for x in u]
    rank = [1 + sum(other > mine for other in s) for mine in s]
    total = 0.0
    for i in range(len(s)):
        for j in range(len(s)):
            if scores[i] > scores[j]:
                gain = abs(2 ** scores[i] - 2 ** scores[j])
                discount = abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
                total += gain * discount * math.log(1 + math.exp(-(s[i] - s[j])))
    return total


def pro(
    logprobs: Sequence[float], lengths: Sequence[int], scores: Sequence[float], sft_weight: float
) -> float:
    order = _ranked([x / n for x, n in zip(logprobs, lengths, strict=True)], scores)
    total = 0.0
    for k in range(len(order) - 1):
        p, r = order[k]
        temperature = max(r - ri for _, ri in order[k + 1 :])
        positive = math.exp(p * temperature)
        negative = sum(math.exp(pi * (r - ri)) for pi, ri in order[k + 1 :])
        total -= math.log(positive / (positive + negative))
    best = max(range(len(scores)), key=lambda i: scores[i])
    return total - sft_weight * (len(order) - 1) ** 2 * logprobs[best]


def rrhf(
    logprobs: Sequence[float],
    lengths: Sequence[int],
    scores: Sequence[float],
    power: float,
    weight: float,
) -> float:
    p = [x / n**power for x, n in zip(logprobs, lengths, strict=True)]
    pairs = [(i, j) for i in range(len(p)) for j in range(len(p)) if scores[i] < scores[j]]
    best = max(range(len(scores)), key=lambda i: scores[i])
    return weight * sum(max(0.0, p[i] - p[j]) for i, j in pairs) - logprobs[best] / lengths[best]
