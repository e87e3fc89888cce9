"""Sampling completions with vLLM: an engine that this process owns, or a server."""

from lit_rlhf.rollout.vllm.owned import VLLMEngine as VLLMEngine
from lit_rlhf.rollout.vllm.server import VLLMServerEngine as VLLMServerEngine
