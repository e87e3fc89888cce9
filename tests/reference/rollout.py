"""A slow reference of rollouts: one sequence at a time, a forward per token, no cache, sums in float64."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lit_rlhf.seeding import uniforms


class Completion(NamedTuple):
    tokens: list[int]
    logprobs: list[float]
    finished: bool


def distribution(
    logits: Sequence[float],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    banned: Sequence[int] = (),
) -> list[float]:
    """Probabilities by sorting and counting; what is left out has probability 0."""
    scaled = [-math.inf if i in banned else value / temperature for i, value in enumerate(logits)]
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    if top_k:
        order = order[:top_k]
    highest = max(scaled)
    weights = {i: math.exp(scaled[i] - highest) for i in order}
    total = sum(weights.values())
    kept, mass = [], 0.0
    for i in order:
        kept.append(i)
        mass += weights[i] / total
        if mass >= top_p:
            break
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(scaled))]


def pick(probs: Sequence[float], uniform: float) -> int:
    running = 0.0
    for i, probability in enumerate(probs):
        running += probability
        if running > uniform:
            return i
    return max(i for i, probability in enumerate(probs) if probability > 0)


@torch.no_grad()
def complete(
    model: Any,
    prompt: Sequence[int],
    seed: int,
    max_new_tokens: int,
    ends: Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_new_tokens: int = 0,
) -> Completion:
    tokens: list[int] = []
    logprobs: list[float] = []
    for step in range(max_new_tokens):
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1].double().tolist()
        banned = ends if step < min_new_tokens else ()
        if temperature == 0:
            probs = distribution(logits, banned=banned)
            token = max(range(len(probs)), key=probs.__getitem__)
        else:
            probs = distribution(logits, temperature, top_k, top_p, banned)
            token = pick(probs, float(uniforms(torch.tensor([seed]), step)))
        tokens.append(token)
        logprobs.append(math.log(probs[token]))
        if token in ends:
            return Completion(tokens, logprobs, finished=True)
    return Completion(tokens, logprobs, finished=False)
