"""Options of a request by vLLM's names."""

from typing import Any

from lit_rlhf.rollout.base import Sampling


def sampling_options(sampling: Sampling, ends: list[int]) -> dict[str, Any]:
    """Options of a request, none left to the defaults of a model's or server's configuration."""
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
