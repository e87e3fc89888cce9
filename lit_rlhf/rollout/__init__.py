"""Sampling completions from a policy."""

from lit_rlhf.rollout.base import RolloutEngine, Sampling
from lit_rlhf.rollout.hf import HFEngine
from lit_rlhf.rollout.native import NativeEngine
from lit_rlhf.rollout.vllm import VLLMEngine, VLLMServerEngine

__all__ = [
    "HFEngine",
    "NativeEngine",
    "RolloutEngine",
    "Sampling",
    "VLLMEngine",
    "VLLMServerEngine",
]
