"""Sampling completions with vLLM: an engine that this process owns, or servers."""

from lit_rlhf.rollout.vllm.owned import VLLMEngine
from lit_rlhf.rollout.vllm.server import VLLMServerEngine
from lit_rlhf.rollout.vllm.weights import AdapterSync, DiskSync, WeightSync

__all__ = ["AdapterSync", "DiskSync", "VLLMEngine", "VLLMServerEngine", "WeightSync"]
