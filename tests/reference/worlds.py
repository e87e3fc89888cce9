"""A world small enough to enumerate: two steps over three tokens, one of which ends the sequence.

Seven sequences: "end", and "a" or "b" followed by any token. A policy is a table of logits, one row a state: the start,
after "a", after "b". Expectations over samples are sums over the seven, so gradients are exact.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

END = 2


class Sequences(NamedTuple):
    """All sequences of the world; axes: the 7 sequences, 2 steps."""

    tokens: Tensor
    states: Tensor
    mask: Tensor


def all_sequences() -> Sequences:
    pairs = [(END, 0), *itertools.product((0, 1), (0, 1, END))]
    tokens = torch.tensor(pairs)
    states = torch.stack(
        [torch.zeros(len(pairs), dtype=torch.int64), tokens[:, 0].remainder(2) + 1], dim=1
    )
    mask = torch.tensor([[True, first != END] for first, _ in pairs])
    return Sequences(tokens, states * mask, mask)


def logprobs_of(logits: Tensor) -> Tensor:
    """(7, 2) log-probs of the tokens of each sequence under a (3, 3) table; garbage behind the end."""
    world = all_sequences()
    table = logits.log_softmax(-1)
    return torch.where(world.mask, table[world.states, world.tokens], -77.0)


def sequence_logprobs(logits: Tensor) -> Tensor:
    """(7,)."""
    return torch.where(all_sequences().mask, logprobs_of(logits), 0.0).sum(-1)


def random_logits(seed: int) -> Tensor:
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_scores(seed: int = 9) -> Tensor:
    return torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Gradient of a scalar function of the table."""
    leaf = logits.clone().requires_grad_()
    (out,) = torch.autograd.grad(function(leaf), leaf)
    return out


def reverse_kl(logits: Tensor, ref: Tensor) -> Tensor:
    """KL(policy || reference) over sequences."""
    logp, logq = sequence_logprobs(logits), sequence_logprobs(ref)
    return (logp.exp() * (logp - logq)).sum()


def objective(logits: Tensor, ref: Tensor, scores: Tensor, beta: float) -> Tensor:
    """E[r] - beta KL(policy || reference)."""
    return (sequence_logprobs(logits).exp() * scores).sum() - beta * reverse_kl(logits, ref)


def state_values(logits: Tensor, rewards: Tensor) -> Tensor:
    """(7, 2) expected reward to go of the state before each token, for rewards (7, 2) of tokens."""
    world = all_sequences()
    probabilities = sequence_logprobs(logits).exp()
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)
    values = torch.zeros_like(rewards)
    for t in range(2):
        for state in range(3):
            here = world.mask[:, t] & (world.states[:, t] == state)
            weight = torch.where(here, probabilities, 0.0)
            if bool(here.any()):
                values[here, t] = (weight * to_go[:, t]).sum() / weight.sum()
    return values


def optimal_logits(ref: Tensor, scores: Tensor, beta: float) -> Tensor:
    """The table of ref * exp(r / beta) / Z."""
    world = all_sequences()
    weights = (sequence_logprobs(ref) + scores / beta).softmax(-1)
    table = torch.zeros(3, 3, dtype=torch.float64)
    for t in range(2):
        for n in range(7):
            if world.mask[n, t]:
                table[world.states[n, t], world.tokens[n, t]] += weights[n]
    return table.log()
