"""Sampling from a geometric mixture of policies, with the native engine's decode."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.models import Backbone, evaluating, gathered
from lit_rlhf.rollout.base import RolloutRequest, end_tokens
from lit_rlhf.rollout.native import Decoder, GeneratedRows, NativeEngine, check_decodable, decode
from lit_rlhf.rollout.steps import choose_step, packs
from lit_rlhf.types import Generation


class Component(NamedTuple):
    """A distribution of a mixture."""

    backbone: Backbone
    role: str
    weight: float
    """Its exponent; those of a mixture sum to 1."""


@torch.no_grad()
def sample_mixture(components: Sequence[Component], request: RolloutRequest) -> Generation:
    r"""Sample from $\pi(y_t|s_t) \propto \prod_i \pi_i(y_t|s_t)^{w_i}$, normalised at each token.

    Of completions longer than a token this is not the normalised $\prod_i \pi_i(y)^{w_i}$, which can't be sampled token
    by token; Nash-MD (arXiv:2312.00886) takes the same form. All components are decoded side by side, each with a cache
    of its own.

    Args:
        components: Policies of one vocabulary, each with its own role, which stands in place of the request's.
        request: What is to be sampled; without values, of which a mixture has none.

    Raises:
        ConfigurationError: A model that `NativeEngine` can't decode, or prompts too long for it.
        FloatingPointError: A model gave log-probs that are not finite.
    """
    prompts, sampling, seeds = request.prompts, request.sampling, request.seeds
    first, steps = components[0].backbone, sampling.max_new_tokens
    lengths, device = prompts.mask.sum(-1), prompts.ids.device
    with ExitStack() as stack:
        packed: dict[int, bool] = {}
        for backbone, role, _ in {id(part.backbone): part for part in components}.values():
            request.check_fits(backbone)
            check_decodable(backbone, request.longest)
            NativeEngine().check(backbone, role, request.longest)
            packed[id(backbone)] = packs(backbone, steps)
            stack.enter_context(gathered(backbone, layers=not packed[id(backbone)]))
            stack.enter_context(evaluating(backbone))
        ids = prompts.ids[:, : int(lengths.max())]
        decoder = _MixtureDecoder(components, packed, ids, lengths, request.num_samples, steps)
        out = GeneratedRows(len(seeds), steps, first.pad_token_id, device)
        ends = end_tokens(first, sampling, device)
        decode(decoder, torch.arange(len(seeds), device=device), seeds, ends, sampling, out)
    return out.generation()


class _MixtureDecoder(Decoder):
    """A decoder of each component, and the mixture of their logits."""

    def __init__(
        self,
        components: Sequence[Component],
        packed: Mapping[int, bool],
        ids: Tensor,
        lengths: Tensor,
        num_samples: int,
        steps: int,
    ) -> None:
        self.parts: list[tuple[Component, Decoder]] = []
        for component in components:
            backbone = component.backbone
            with backbone.use_role(component.role):
                step = choose_step(backbone, steps, packed=packed[id(backbone)])
                decoder = Decoder(backbone, step, ids, lengths, num_samples)
            self.parts.append((component, decoder))
        self._mix()

    def select(self, rows: Tensor) -> None:
        for _, decoder in self.parts:
            decoder.select(rows)

    def advance(self, tokens: Tensor) -> None:
        for component, decoder in self.parts:
            with component.backbone.use_role(component.role):
                decoder.advance(tokens)
        self._mix()

    def _mix(self) -> None:
        parts = [component.weight * decoder.logits.float() for component, decoder in self.parts]
        self.logits = torch.stack(parts).sum(0)
