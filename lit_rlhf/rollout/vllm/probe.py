"""Whether vLLM holds what it should: log-probs of a few tokens there and here."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone
from lit_rlhf.rollout.base import Sampling, completion_logprobs
from lit_rlhf.rollout.vllm.sampler import Completed, Request, Sampler, Version, sampling_options

_TOKENS = 16
_TIED = (
    "vLLM on CPUs doesn't replace an output layer that shares its weights with the embeddings: train adapters "
    "(AdapterSync), or start from a copy of the model with tie_word_embeddings: false."
)
_TEMPERATURE = 2.0
_SAME_MODEL = 0.5
"""Nats per token: other kernels, precisions or 4 bits stay far below, another model far above."""
_MOVED = 0.05
"""Nats per token by which a policy has surely changed, where not a bit of the server's answer has."""


_GROWN = 5.0
"""Times what a vLLM differed by at first: other kernels, precisions or 4 bits stay what they are."""


class _Seen(NamedTuple):
    answer: Completed
    ours: Tensor
    """(T,) the policy's log-probs of its tokens when this answer first came."""


class Probe:
    """Samples a few tokens after each change, and compares their log-probs with those of a training forward.

    Weights that aren't the policy's at all differ by more than half a nat a token, and those of which a part stays
    behind by more and more than at first. Weights that are the policy's of some updates ago may differ by less than
    other kernels do: those show in an answer that stays the same to the last bit while the policy's own log-probs of it
    move.
    """

    def __init__(self) -> None:
        self._prompt: list[int] | None = None
        self._seen: dict[tuple[int, str], _Seen] = {}
        self._first: dict[int, float] = {}
        """Of each vLLM, the nats by which it differed at first."""

    def check_base(self, sampler: Sampler, backbone: Backbone, prompt: list[int]) -> None:
        """Compare under both bases.

        Raises:
            ConfigurationError: vLLM holds another base, or gives log-probs from before the temperature.
        """
        self._check_mode(sampler, backbone, prompt)

    def check(
        self, sampler: Sampler, backbone: Backbone, role: str, prompt: list[int], version: Version
    ) -> None:
        """Compare under a version that it has just taken.

        Raises:
            ConfigurationError: vLLM holds other weights, older ones, or gives log-probs from before the temperature.
        """
        self._prompt = self._prompt or prompt
        answer, ours = self._check_mode(sampler, backbone, self._prompt, role, version)
        key = (id(sampler), role)
        before = self._seen.get(key)
        if before is None or before.answer != answer:
            self._seen[key] = _Seen(answer, ours)
            return
        moved = float((ours - before.ours).abs().mean())
        if moved > _MOVED:
            raise ConfigurationError(
                f"{sampler} took the {role}'s weights (version {version.number}) and goes on sampling from older ones: "
                f"its log-probs of {len(ours)} tokens are the same to the last bit, the {role}'s own have moved by "
                f"{moved:.2f} nats on average. Restart it; is it a vLLM of a version that docs/VLLM.md names?"
            )

    def _check_mode(
        self,
        sampler: Sampler,
        backbone: Backbone,
        prompt: list[int],
        role: str | None = None,
        version: Version | None = None,
    ) -> tuple[Completed, Tensor]:
        sampling = Sampling(max_new_tokens=_TOKENS, temperature=_TEMPERATURE)
        options = sampling_options(sampling, list(backbone.eos_token_ids))
        adapter = None if version is None else version.adapter
        answer = sampler.complete([Request(prompt, 0)], options, adapter)[0]
        found = torch.tensor(answer.logprobs)
        ids, tokens = (torch.tensor(x, device=backbone.device) for x in (prompt, answer.tokens))
        with torch.no_grad():
            here = partial(completion_logprobs, backbone, ids, tokens, role)
            ours, raw = here(_TEMPERATURE).cpu(), here().cpu()
        gap, raw_gap = (float((found - each).abs().mean()) for each in (ours, raw))
        if raw_gap < gap / 2:
            raise ConfigurationError(
                f"{sampler} gives log-probs of the distribution before the temperature, not of the one it samples "
                "from. Start it with --logprobs-mode processed_logprobs."
            )
        if gap > _SAME_MODEL:
            what = f"base isn't the policy's ({backbone.spec.name})"
            if version is not None:
                what = f"weights aren't the {role}'s (version {version.number})"
            raise ConfigurationError(
                f"{sampler}: its {what}: log-probs of the same {len(answer.tokens)} tokens differ by {gap:.2f} nats on "
                "average. Start vLLM with the model that model.backbone.name names."
            )
        first = self._first.setdefault(id(sampler), gap)
        if version is not None and gap > max(_MOVED, _GROWN * first):
            tied = getattr(backbone.model.config.get_text_config(), "tie_word_embeddings", False)
            raise ConfigurationError(
                f"{sampler} took the {role}'s weights (version {version.number}) in part: log-probs of the same "
                f"{len(answer.tokens)} tokens differ by {gap:.2g} nats on average, at first by {first:.2g}. "
                + (_TIED if tied and not version.is_adapter else "Look at its log.")
            )
        return answer, ours
