"""Opponents: whom each of the policy's samples meets, for methods that learn from preferences between the two."""

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.objectives import PreferenceOracle
from lit_rlhf.options import check_option
from lit_rlhf.rollout import RolloutRequest
from lit_rlhf.rollout.mixture import Component, sample_mixture
from lit_rlhf.seeding import sample_seeds, uniforms
from lit_rlhf.types import Generation, Stage, change_tensors


class Opponent(ABC):
    """Writes a completion for each sample of the policy."""

    @abstractmethod
    def generate(self, policy: PolicyModule, request: RolloutRequest) -> Generation:
        """Completions of the prompts that the policy completes, with seeds of their own.

        Args:
            policy: Whom they meet.
            request: What is to be sampled; whose distribution, is for the opponent to say.
        """


class ReferenceOpponent(Opponent):
    """The initial policy, or what `MovingReference` made of it."""

    def generate(self, policy: PolicyModule, request: RolloutRequest) -> Generation:
        """Completions of the reference, by the policy's engine."""
        model, role = policy.reference.beside(policy.backbone)
        return policy.engine.generate(
            model, replace(request, role=role or "reference", values=None)
        )


class MixtureOpponent(Opponent):
    r"""The geometric mixture $\pi'(y_t|s_t) \propto \pi^{1-a}\pi_{ref}^a$ of the policy and the reference, by token.

    It is always sampled by `NativeEngine`'s decode.

    Args:
        weight: a in [0, 1]: 0 is self-play, 1 plays against the reference.

    Raises:
        ConfigurationError: The weight is out of range.
    """

    def __init__(self, weight: float = 0.5) -> None:
        check_option(0 <= weight <= 1, self, "weight", weight, "in [0, 1]")
        self.weight = weight

    def generate(self, policy: PolicyModule, request: RolloutRequest) -> Generation:
        """Completions of the mixture."""
        model, role = policy.reference.beside(policy.backbone)
        parts = [
            Component(policy.backbone, "policy", 1 - self.weight),
            Component(model, role or "reference", self.weight),
        ]
        return sample_mixture([part for part in parts if part.weight > 0], request)


def meet(own: Generation, others: Generation) -> Generation:
    """Completions of both by turns, (2N, T)."""
    width = max(own.tokens.shape[1], others.tokens.shape[1])

    def by_turns(*pair: Tensor) -> Tensor:
        wide = [pad(t, (0, width - t.shape[1])) if t.dim() == 2 else t for t in pair]
        return torch.stack(wide, dim=1).flatten(0, 1)

    met: Generation = change_tensors(by_turns, own, others)
    return met


def own_samples(rollout: Stage) -> Stage:
    """A rollout without the opponents, which are every second completion."""
    return rollout.map(lambda tensor: tensor, lambda tensor: tensor[::2])


def win_chances(oracle: PreferenceOracle, scores: Tensor, *, seed: int, iteration: int) -> Tensor:
    """How far each sample is preferred to the other one of its pair, (N,) in [0, 1].

    Args:
        oracle: Says so from the difference of two scores.
        scores: (N,); neighbours are a pair.
        seed: The module's.
        iteration: The module's; an oracle that draws does so by both and the pair's number.
    """
    pairs = scores.view(-1, 2)
    numbers = torch.arange(len(pairs), device=pairs.device)
    draws = uniforms(sample_seeds(seed, iteration, "preference", numbers), 0)
    first = oracle(pairs[:, 0] - pairs[:, 1], draws)
    return torch.stack([first, 1 - first], dim=-1).flatten()
