"""Sampling completions from a policy."""

from lit_rlhf.rollout.ahead import Ahead as Ahead
from lit_rlhf.rollout.base import (
    RolloutEngine as RolloutEngine,
    RolloutRequest as RolloutRequest,
    Sampling as Sampling,
)
from lit_rlhf.rollout.hf import HFEngine as HFEngine
from lit_rlhf.rollout.native import NativeEngine as NativeEngine
from lit_rlhf.rollout.vllm import (
    AdapterSync as AdapterSync,
    DiskSync as DiskSync,
    NCCLSync as NCCLSync,
    VLLMEngine as VLLMEngine,
    VLLMServerEngine as VLLMServerEngine,
    WeightSync as WeightSync,
)
