"""Sampling completions with vLLM: an engine that this process owns, or servers."""

from lit_rlhf.rollout.vllm.nccl import NCCLSync as NCCLSync
from lit_rlhf.rollout.vllm.owned import VLLMEngine as VLLMEngine
from lit_rlhf.rollout.vllm.server import VLLMServerEngine as VLLMServerEngine
from lit_rlhf.rollout.vllm.weights import (
    AdapterSync as AdapterSync,
    DiskSync as DiskSync,
    WeightSync as WeightSync,
)
