r"""The optima that preference losses claim, in closed form or as the root of one equation: nothing here calls a loss.

Axes: Y completions. `reference` are probabilities, `rewards` those of Bradley-Terry raters. Derivations are in the
docstrings; $\sigma$ is the logistic function and C, L stand for normalisers.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


# -- tilts of the reference --------------------------------------------------------------------------------------------


def tilted(reference: Tensor, exponent: Tensor) -> Tensor:
    r"""$\pi_{ref}e^{f}/Z$. With $f = r/\beta$ the optimum $\pi^*$ of $E_\pi r - \beta KL(\pi\|\pi_{ref})$.

    Example:
        >>> tilted(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 3.0]).log1p()).tolist()
        [0.20000000298023224, 0.800000011920929]
    """
    return (reference.log() + exponent).softmax(-1)


def win_rates(preferences: Tensor, mu: Tensor) -> Tensor:
    r"""$P(y \succ \mu) = \sum_{y'}\mu(y')P(y \succ y')$ from preferences (Y, Y)."""
    return preferences @ mu


def tilted_per_token(reference: Tensor, lengths: Tensor, exponent: Tensor) -> Tensor:
    r"""$\pi_{ref}e^{n(f + c)}$ with c for the sum to be 1: what losses of log-ratios per token reach."""
    return _normalized(lambda c: reference * (lengths * (exponent + c)).exp(), -60.0, 60.0)


# -- other divergences -------------------------------------------------------------------------------------------------


def forward_kl_optimum(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    r"""$\pi = \beta\pi_{ref}/(L - r)$: $f' = -1/t$, so $t = -1/s$ at $s = (r - L)/\beta$."""
    top = float(rewards.max())
    return _normalized(lambda c: beta * reference / (top + (-c).exp() - rewards), -40.0, 40.0)


def jensen_shannon_optimum(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    r"""$\pi = \pi_{ref}\frac{e^s}{2 - e^s}$ at $s = (r - L)/\beta$, from $f' = \log\frac{2t}{1+t}$."""
    top = rewards.max() / beta - torch.log(torch.tensor(2.0, dtype=rewards.dtype))

    def policy(c: Tensor) -> Tensor:
        s = (rewards / beta - top - (-c).exp()).exp()
        return reference * s / (2 - s)

    return _normalized(policy, -40.0, 40.0)


def alpha_divergence_optimum(
    reference: Tensor, rewards: Tensor, beta: float, alpha: float
) -> Tensor:
    r"""$\pi = \pi_{ref}(1 - \alpha s)^{-1/\alpha}$ at $s = (r - L)/\beta$, from $f' = (1 - t^{-\alpha})/\alpha$."""
    top = float(rewards.max()) / beta

    def policy(c: Tensor) -> Tensor:
        # L is written so that 1 - alpha s = alpha (e^-c + top - r / beta) > 0 for every completion.
        return reference * (alpha * ((-c).exp() + top - rewards / beta)) ** (-1 / alpha)

    return _normalized(policy, -40.0, 40.0)


# -- margins of pairs --------------------------------------------------------------------------------------------------


def chained(margins: Tensor) -> Tensor:
    """Numbers (Y,) from the first, 0, whose differences to the next are margins (Y - 1,)."""
    return torch.cat([margins.new_zeros(1), -margins.cumsum(0)])


def from_margins(reference: Tensor, margins: Tensor) -> Tensor:
    r"""The policy whose log-ratios differ by the given margins $u(y_k) - u(y_{k+1})$, (Y - 1,), along a chain."""
    log_ratios = chained(margins)
    return tilted(reference, log_ratios)


def smoothed_margin(p: Tensor, label_smoothing: float) -> Tensor:
    r"""cDPO: $\mathrm{logit}((1-\epsilon)p + \epsilon(1-p))$."""
    return torch.logit((1 - label_smoothing) * p + label_smoothing * (1 - p))


def reverse_smoothed_margin(p: Tensor, label_smoothing: float) -> Tensor:
    r"""EXO: $(2p - 1)\log\frac{1-\epsilon}{\epsilon}$, the log-odds q that minimise $E\,KL(q\|\text{label})$."""
    return (2 * p - 1) * torch.logit(torch.tensor(1 - label_smoothing, dtype=p.dtype))


def target_margin(p: Tensor, gamma: float) -> Tensor:
    r"""SimPO's margin term: the z at which $p\,\sigma(\gamma - z) = (1-p)\,\sigma(\gamma + z)$.

    $e^z = \frac{(2p-1) + \sqrt{(2p-1)^2 + 4p(1-p)e^{-2\gamma}}}{2(1-p)e^{-\gamma}}$.
    """
    bias = 2 * p - 1
    shrink = torch.exp(torch.tensor(-gamma, dtype=p.dtype))
    root = (bias.square() + 4 * p * (1 - p) * shrink.square()).sqrt()
    return ((bias + root) / (2 * (1 - p) * shrink)).log()


def descent_margin(slope: Function, p: Tensor, step: float = 1e-3) -> Tensor:
    r"""The first stationary z on the way down from z = 0, where $p\,\phi'(z) - (1-p)\,\phi'(-z)$ has several roots."""

    def rise(z: Tensor) -> Tensor:
        return p * slope(z) - (1 - p) * slope(-z)

    direction = -rise(torch.zeros_like(p)).sign()
    away = step * torch.arange(1, 20_001, dtype=p.dtype)[:, None] * direction  # (steps, pairs)
    taken = (rise(away) * direction < 0).cumprod(0).sum(0)
    ends = torch.stack([step * taken * direction, step * (taken + 1) * direction])
    return _bisect(rise, ends.amin(0), ends.amax(0))


# -- two completions ---------------------------------------------------------------------------------------------------


def two_completions(stationarity: Function, low: float = -40.0, high: float = 40.0) -> Tensor:
    r"""The policy over two completions whose logit $x = \log\pi_1/\pi_2$ is the root of a rising function of x."""
    bounds = torch.tensor([low, high], dtype=torch.float64)
    x = _bisect(stationarity, bounds[:1], bounds[1:])
    return torch.cat([x, torch.zeros_like(x)]).softmax(-1)


# -- losses of single completions --------------------------------------------------------------------------------------


def anchored_optimum(reference: Tensor, slope: Function, flow: int = 1000) -> Tensor:
    r"""The stationary policy of $\sum_y\phi_y(u(y))$, where $\phi_y'(u) = \pi(y)\sum_{y'}\phi'_{y'}$.

    Found by its own flow, then by Newton steps.

    Args:
        reference: (Y,).
        slope: The derivatives $\phi'$ (Y,) as a function of all log-ratios u (Y,).
        flow: Steps of the flow, to come near the root that training comes to.
    """

    def residual(logits: Tensor) -> Tensor:
        log_policy = torch.cat([logits, logits.new_zeros(1)]).log_softmax(-1)
        g = slope(log_policy - reference.log())
        return (g - log_policy.exp() * g.sum())[:-1]

    logits = _follow_and_solve(residual, (reference[:-1] / reference[-1]).log(), flow)
    return torch.cat([logits, logits.new_zeros(1)]).softmax(-1)


def token_optimum(
    completions: Sequence[tuple[int, ...]], reference: Tensor, slope: Function, flow: int = 1000
) -> Tensor:
    r"""The stationary policy of losses whose gradient is $\sum_{y,t} w_{y,t}\nabla\log\pi(y_t\mid y_{<t})$.

    Where completions of other lengths weigh differently, no weight of a whole completion says where the policy settles.
    With $W(s, a)$ the sum of w over all steps from state s by token a, it is where $W(s, a) = \pi(a\mid s)\sum_{a'}W(s,
    a')$.

    Args:
        completions: Y sequences of tokens, none the beginning of another.
        reference: (Y,), where the flow starts.
        slope: From the log-probs of all tokens (Y, T), 0 behind the end, to w (Y, T); what is behind the end is left
            out.
        flow: Steps of the flow before the Newton steps.
    """
    steps = sorted({(y[:t], y[t]) for y in completions for t in range(len(y))})
    states = sorted({state for state, _ in steps})
    member = torch.tensor([[own == state for state in states] for own, _ in steps])
    member = member.to(reference.dtype)
    depth = max(map(len, completions))
    inside = torch.tensor([[t < len(y) for t in range(depth)] for y in completions])
    which = torch.tensor([steps.index((y[:t], y[t])) for y in completions for t in range(len(y))])
    passing = reference[:, None].expand(-1, depth)[inside]
    through = reference.new_zeros(len(steps)).index_add(0, which, passing)
    followed = [state == other for (state, _), (other, _) in itertools.pairwise(steps)]
    free = torch.tensor([*followed, False])

    def log_policy(logits: Tensor) -> Tensor:
        every = torch.zeros_like(through).masked_scatter(free, logits)
        return every - member @ (every.exp() @ member).log()

    def of_tokens(steps_taken: Tensor) -> Tensor:  # (Y, T)
        return through.new_zeros(inside.shape).masked_scatter(inside, steps_taken[which])

    def residual(logits: Tensor) -> Tensor:
        steps_taken = log_policy(logits)
        pull = torch.zeros_like(through).index_add(0, which, slope(of_tokens(steps_taken))[inside])
        return (pull - steps_taken.exp() * (member @ (pull @ member)))[free]

    ends = {state: k for k, (state, _) in enumerate(steps)}
    last = torch.tensor([ends[state] for state, _ in steps])
    start = (through / through[last]).log()[free]
    best = log_policy(_follow_and_solve(residual, start, flow))
    return of_tokens(best).sum(-1).exp()


def _follow_and_solve(residual: Function, logits: Tensor, flow: int) -> Tensor:
    """A root: by the flow towards it, then by Newton steps."""
    for _ in range(flow):
        step = residual(logits)
        logits = logits - 2.0 * step
        if step.abs().max() < 1e-8:
            break
    for _ in range(8):
        jacobian: Tensor = torch.autograd.functional.jacobian(residual, logits)
        step = torch.linalg.solve(jacobian, residual(logits))
        logits = logits - step
        if step.abs().max() < 1e-12:  # the next one would be of its square
            break
    return logits


def fixed_point(answer: Function, start: Tensor, steps: int = 500) -> Tensor:
    """The policy that is its own best answer, by steps half the way from a policy (Y,)."""
    policy = start
    for _ in range(steps):
        before, policy = policy, (policy + answer(policy)) / 2
        if (policy - before).abs().max() < 1e-15:
            break
    return policy


def greedy(rewards: Tensor) -> Tensor:
    """All on the completion with the highest reward: what losses without a finite optimum tend to."""
    return torch.nn.functional.one_hot(rewards.argmax(), len(rewards)).to(rewards.dtype)


# -- a tree of two steps -----------------------------------------------------------------------------------------------


def desensitized_tree(reference: Tensor, rewards: Tensor, beta: float, alpha: float) -> Tensor:
    r"""LD-DPO on `tabular.tree()`, compared along `DESENSITIZED_EDGES`.

    Completions: one of a single token, then three each that start with the tokens 0 and 1. Those with one start are as
        long as
    each other, so the second token's distribution is $\pi^*$'s; between the short one and the first of each start, the
    second token counts $\alpha$ times: $u(end) - u(s) - \alpha u(0|s) = \Delta r/\beta$.
    """
    starts = [slice(1, 4), slice(4, 7)]
    ref_root = torch.stack([reference[0], *(reference[part].sum() for part in starts)])
    tilt = [rewards.new_zeros(())]
    inner = []
    for part in starts:
        conditional = reference[part] / reference[part].sum()
        policy = tilted(conditional, rewards[part] / beta)
        inner.append(policy)
        second = (policy[0] / conditional[0]).log()
        tilt.append((rewards[part][0] - rewards[0]) / beta - alpha * second)
    root = tilted(ref_root, torch.stack(tilt))
    return torch.cat([root[:1], *(root[k + 1] * policy for k, policy in enumerate(inner))])


DESENSITIZED_EDGES: Sequence[tuple[int, int]] = ((1, 2), (2, 3), (4, 5), (5, 6), (0, 1), (0, 4))


# -- roots -------------------------------------------------------------------------------------------------------------


def _normalized(policy: Function, low: float, high: float) -> Tensor:
    """The policy of a one-parameter family, growing in its parameter, that sums to 1."""
    bounds = torch.tensor([low, high], dtype=torch.float64)
    return policy(_bisect(lambda c: policy(c).sum(-1, keepdim=True) - 1, bounds[:1], bounds[1:]))


def _bisect(rising: Function, low: Tensor, high: Tensor) -> Tensor:
    """Roots of functions that are below 0 at `low` and above at `high`, elementwise."""
    for _ in range(200):
        middle = (low + high) / 2
        if ((middle == low) | (middle == high)).all():  # no number lies between
            break
        above = rising(middle) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2
