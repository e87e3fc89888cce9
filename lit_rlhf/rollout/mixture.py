"""Sampling from a geometric mixture of policies, with the native engine's decode."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.models import Backbone, evaluating, gathered
from lit_rlhf.rollout.base import Sampling, check_request, end_tokens
from lit_rlhf.rollout.native import GeneratedRows, NativeEngine, check_decodable, prefill
from lit_rlhf.rollout.sampling import draw_tokens
from lit_rlhf.rollout.steps import choose_step
from lit_rlhf.seeding import uniforms
from lit_rlhf.types import Generation


class Component(NamedTuple):
    """A distribution of a mixture."""

    backbone: Backbone
    role: str | None
    weight: float
    """Its exponent; those of a mixture sum to 1."""


@torch.no_grad()
def sample_mixture(
    components: Sequence[Component],
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    sampling: Sampling,
    seeds: Tensor,
    num_samples: int = 1,
) -> Generation:
    r"""Sample from $\pi(y_t|s_t) \propto \prod_i \pi_i(y_t|s_t)^{w_i}$, normalised at each token.

    Of completions longer than a token this is not the normalised $\prod_i \pi_i(y)^{w_i}$, which can't be sampled token
    by token; Nash-MD (arXiv:2312.00886) takes the same form. All components are decoded side by side, each with a cache
    of its own; arguments and result are those of `RolloutEngine.generate`.

    Args:
        components: Policies of one vocabulary.
        prompt_ids: (B, P), right-padded.
        prompt_mask: (B, P) bool.
        sampling: How tokens are drawn from the mixture.
        seeds: (N,), one per completion.
        num_samples: Completions of each prompt.

    Raises:
        ConfigurationError: A model that `NativeEngine` can't decode, or prompts too long for it.
        FloatingPointError: A model gave log-probs that are not finite.
    """
    first = components[0].backbone
    lengths = prompt_mask.sum(-1)
    with ExitStack() as stack:
        for backbone in {
            id(component.backbone): component.backbone for component in components
        }.values():
            check_request(backbone, prompt_ids, prompt_mask, sampling, seeds, num_samples)
            check_decodable(backbone, int(lengths.max()) + sampling.max_new_tokens)
            NativeEngine().check(backbone, None)
            stack.enter_context(gathered(backbone))
            stack.enter_context(evaluating(backbone))
        rows = GeneratedRows(
            len(seeds), sampling.max_new_tokens, first.pad_token_id, prompt_ids.device
        )
        ids = prompt_ids[:, : int(lengths.max())]
        steps = sampling.max_new_tokens
        decoders = [
            _Decoder(component, ids, lengths, num_samples, steps) for component in components
        ]
        _decode(decoders, seeds, sampling, rows)
    return rows.generation()


class _Decoder:
    """A component in the midst of decoding."""

    def __init__(
        self,
        component: Component,
        ids: Tensor,
        lengths: Tensor,
        num_samples: int,
        steps: int,
    ) -> None:
        self.backbone, self.role, self.weight = component
        with self.backbone.use_role(self.role):
            hidden, self.cache = prefill(self.backbone, ids, lengths, num_samples)
            self.logits = self.backbone.logits(hidden)[self.cache.prompt_of_row]
            self.decode = choose_step(self.backbone, steps)

    def step(self, tokens: Tensor) -> None:
        with self.backbone.use_role(self.role):
            _hidden, self.logits = self.decode(tokens, self.cache)


def _decode(
    decoders: Sequence[_Decoder], seeds: Tensor, sampling: Sampling, out: GeneratedRows
) -> None:
    rows = torch.arange(len(seeds), device=seeds.device)
    ends = end_tokens(decoders[0].backbone, sampling, seeds.device)
    live = torch.ones_like(rows, dtype=torch.bool)
    for step in range(sampling.max_new_tokens):
        logits = torch.stack([decoder.weight * decoder.logits.float() for decoder in decoders]).sum(
            0
        )
        banned = ends if step < sampling.min_new_tokens else None
        tokens, logprobs = draw_tokens(logits, uniforms(seeds, step), sampling, banned)
        out.append(rows, live, step, tokens, logprobs)
        ended = live & torch.isin(tokens, ends)
        out.finish(rows, ended)
        live = live & ~ended
        if not bool(live.any()) or step + 1 == sampling.max_new_tokens:
            return
        stay = live.nonzero()[:, 0]
        if len(stay) < len(live):
            rows, seeds, tokens, live = rows[stay], seeds[stay], tokens[stay], live[stay]
            for decoder in decoders:
                decoder.cache.select(stay)
        for decoder in decoders:
            decoder.step(tokens)
