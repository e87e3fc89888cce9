"""Sampling completions with vLLM: an engine that this process owns, or a server."""

from lit_rlhf.rollout.vllm.owned import VLLMEngine
from lit_rlhf.rollout.vllm.server import VLLMServerEngine

__all__ = ["VLLMEngine", "VLLMServerEngine"]
