"""What both ways to vLLM share: requests, adapters that follow the policy, and the check that both hold one model."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.models import Backbone, gathered
from lit_rlhf.rollout.base import (
    RolloutEngine,
    Sampling,
    check_request,
    completion_logprobs,
    end_tokens,
)
from lit_rlhf.rollout.native import GeneratedRows
from lit_rlhf.rollout.vllm.adapters import PublishedAdapters
from lit_rlhf.types import Generation, change_tensors

_COOLEST = 0.01
"""vLLM raises lower temperatures to this."""
_PROBE_TOKENS = 16
_PROBE_TEMPERATURE = 2.0
_SAME_MODEL = 0.5
"""Nats per token: what other kernels, another precision or 4 bits do stays far below, what another model does far above."""


class Request(NamedTuple):
    """A completion to be sampled."""

    prompt: list[int]
    seed: int


class Completed(NamedTuple):
    """A sampled completion."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool
    """vLLM's word: ended by a token, not by the length limit."""


class VLLMRollouts(RolloutEngine):
    """Base of the engines on vLLM.

    Args:
        directory: Where adapters are written for vLLM to read, which must see it under the same path.
    """

    own_arithmetic = False

    def __init__(self, directory: Path | None) -> None:
        self._adapters = PublishedAdapters(directory, self.load_adapter, self.unload_adapter)
        self._checked: int | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: Lightning copies a module's arguments, and what is at the other end can't be copied."""
        return self

    # -- what the two ways differ in ----------------------------------------------------------------------------------

    @abstractmethod
    def start(self, backbone: Backbone) -> None:
        """Have vLLM ready for a backbone's base; called before each request, so cheap from the second time on."""

    @abstractmethod
    def load_adapter(self, name: str, number: int, path: Path) -> None:
        """Let vLLM know an adapter; name and number have never been used before."""

    @abstractmethod
    def unload_adapter(self, name: str, number: int) -> None:
        """Let vLLM forget an adapter."""

    @abstractmethod
    def complete(
        self, requests: Sequence[Request], options: dict[str, Any], adapter: tuple[str, int] | None
    ) -> list[Completed]:
        """Sample completions, in the order of the requests, with an adapter or from the base."""

    # -- the engine ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        backbone: Backbone,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        *,
        sampling: Sampling,
        seeds: Tensor,
        num_samples: int = 1,
        role: str = "policy",
        values: str | None = None,
    ) -> Generation:
        """See `RolloutEngine.generate`.

        Raises:
            ConfigurationError: The role's weights can't be brought to vLLM, vLLM holds another base, doesn't answer, or
                samples otherwise than asked.
            FloatingPointError: The model gave log-probs that are not finite.
        """
        check_request(backbone, prompt_ids, prompt_mask, sampling, seeds, num_samples)
        if 0 < sampling.temperature < _COOLEST:
            raise ConfigurationError(
                f"Sampling.temperature={sampling.temperature}: vLLM raises temperatures below {_COOLEST} to that in "
                f"silence. Use {_COOLEST} or more, or 0 (greedy)."
            )
        self._require_lora(backbone, role)
        self.start(backbone)
        ends = end_tokens(backbone, sampling, torch.device("cpu")).tolist()
        prompts = [
            ids[mask].tolist() for ids, mask in zip(prompt_ids, prompt_mask.bool(), strict=True)
        ]
        if self._checked != id(backbone):
            self._check_base(backbone, prompts[0])
            self._checked = id(backbone)
        with gathered(backbone):
            adapter = self._adapters.current(backbone, role) if role in backbone.adapters else None
        pairs = zip(
            (prompt for prompt in prompts for _ in range(num_samples)), seeds.tolist(), strict=True
        )
        requests = [Request(prompt, seed) for prompt, seed in pairs]
        found = self.complete(requests, sampling_options(sampling, ends), adapter)
        rows = GeneratedRows(
            len(found), sampling.max_new_tokens, backbone.pad_token_id, torch.device("cpu")
        )
        for row, completed in enumerate(found):
            _store(rows, row, completed, ends)
        generation: Generation = change_tensors(
            lambda x: x.to(prompt_ids.device), rows.generation()
        )
        return generation

    def _require_lora(self, backbone: Backbone, role: str) -> None:
        if not backbone.has_lora:
            raise ConfigurationError(
                f"{type(self).__name__} brings LoRA adapters to vLLM, never whole models: without model.backbone.lora "
                f"it would go on sampling the weights that vLLM was started with as the {role}. Set "
                "model.backbone.lora, or use NativeEngine, which samples the weights that are trained."
            )

    def _check_base(self, backbone: Backbone, prompt: list[int]) -> None:
        """Compare log-probs of a few tokens under both bases."""
        ends = list(backbone.eos_token_ids)
        options = sampling_options(
            Sampling(max_new_tokens=_PROBE_TOKENS, temperature=_PROBE_TEMPERATURE), ends
        )
        theirs = self.complete([Request(prompt, 0)], options, None)[0]
        found = torch.tensor(theirs.logprobs)
        ids, tokens = (torch.tensor(x, device=backbone.device) for x in (prompt, theirs.tokens))
        gap, raw_gap = (
            float((found - completion_logprobs(backbone, ids, tokens, None, at).cpu()).abs().mean())
            for at in (_PROBE_TEMPERATURE, 1.0)
        )
        if raw_gap < gap / 2:
            raise ConfigurationError(
                "vLLM gives log-probs of the distribution before the temperature, not of the one it samples from. "
                "Start it with --logprobs-mode processed_logprobs."
            )
        if gap <= _SAME_MODEL:
            return
        raise ConfigurationError(
            f"vLLM's base isn't the policy's ({backbone.spec.name}): log-probs of the same {len(theirs.tokens)} tokens "
            f"differ by {gap:.2f} nats on average. Start vLLM with the model that model.backbone.name names."
        )


def sampling_options(sampling: Sampling, ends: list[int]) -> dict[str, Any]:
    """Options of a request by vLLM's names, none left to the defaults of a model's or server's configuration."""
    return {
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": sampling.min_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": ends,
        "ignore_eos": True,  # it is among the stop tokens, if it is an end at all
        "logprobs": 0,  # of the sampled token alone
    }


def _store(rows: GeneratedRows, row: int, completed: Completed, ends: list[int]) -> None:
    length = len(completed.tokens)
    finished = length > 0 and completed.tokens[-1] in ends
    if completed.stopped != finished or length == 0:
        last = completed.tokens[-1] if length else None
        raise ConfigurationError(
            f"vLLM ended completion {row} of the batch by a stop token of its own, after token "
            f"{last}; those asked for are {ends}. "
            "Start the server with --generation-config vllm, so that the model's generation_config.json adds none."
        )
    rows.tokens[row, :length] = torch.tensor(completed.tokens)
    rows.logprobs[row, :length] = torch.tensor(completed.logprobs)
    rows.lengths[row] = length
    rows.finished[row] = finished
