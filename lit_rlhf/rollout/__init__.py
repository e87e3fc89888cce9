"""Sampling completions from a policy."""

from lit_rlhf.rollout.base import RolloutEngine, Sampling
from lit_rlhf.rollout.hf import HFEngine
from lit_rlhf.rollout.native import NativeEngine
from lit_rlhf.rollout.vllm import AdapterSync, DiskSync, VLLMEngine, VLLMServerEngine, WeightSync

__all__ = [
    "AdapterSync",
    "DiskSync",
    "HFEngine",
    "NativeEngine",
    "RolloutEngine",
    "Sampling",
    "VLLMEngine",
    "VLLMServerEngine",
    "WeightSync",
]
