"""Configurations whose memory is estimated and measured: modules on random weights, every row as long as it may be."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from lit_rlhf.estimate import Workload
from lit_rlhf.models import LoraSpec, ModelSpec, ValueModel
from lit_rlhf.modules import (
    GRPOPolicyModule,
    PPOPolicyModule,
    PreferenceModule,
    RewardModelModule,
    SupervisedModule,
    Updates,
)
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.rewards import LengthReward
from lit_rlhf.rollout import Sampling

_SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M's, with 12 of its 30 layers: 71M weights."""
_LORA = LoraSpec(rank=16, alpha=32)


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        make: The module, of a spec.
        workload: What a step is given.
        spec: The model's but for its tokenizer.
    """

    make: Callable[[ModelSpec], RLHFModule]
    workload: Workload
    spec: ModelSpec

    def module(self, tokenizer: str, **shape: int) -> RLHFModule:
        """With a directory of a tokenizer, and other sizes of the model where they are given."""
        config = {**(self.spec.config or {}), **shape}
        return self.make(replace(self.spec, tokenizer=tokenizer, config=config))


def _spec(dtype: str, lora: bool, **options: Any) -> ModelSpec:
    adapters = _LORA if lora else None
    return ModelSpec(config=_SHAPE, dtype=cast("Any", dtype), lora=adapters, **options)


def _policy(kind: Any, tokens: int, **options: Any) -> Callable[[ModelSpec], RLHFModule]:
    def make(spec: ModelSpec) -> RLHFModule:
        sampling = Sampling(max_new_tokens=tokens)
        made: RLHFModule = kind(spec, LengthReward(32), sampling=sampling, **options)
        return made

    return make


def _ppo_with_critic(spec: ModelSpec) -> RLHFModule:
    value = ValueModel(spec=spec, start="spec")
    return _policy(PPOPolicyModule, 64, value=value, updates=Updates(2, microbatch_tokens=1024))(
        spec
    )


CASES = {
    "SFT, full, float32": Case(SupervisedModule, Workload(8, 128, 128, 1), _spec("float32", False)),
    "SFT, LoRA, bfloat16": Case(
        SupervisedModule, Workload(16, 128, 128, 1), _spec("bfloat16", True)
    ),
    "reward model, LoRA, bfloat16, recomputed": Case(
        RewardModelModule,
        Workload(32, 128, 64, 2),
        _spec("bfloat16", True, gradient_checkpointing=True),
    ),
    "DPO, full, float32": Case(PreferenceModule, Workload(8, 128, 64, 2), _spec("float32", False)),
    "DPO, LoRA, bfloat16": Case(
        PreferenceModule, Workload(16, 128, 64, 2), _spec("bfloat16", True)
    ),
    "PPO, LoRA, bfloat16": Case(
        _policy(PPOPolicyModule, 64), Workload(32, 128, 64, 1), _spec("bfloat16", True)
    ),
    "PPO with a critic of its own, full, float32": Case(
        _ppo_with_critic, Workload(16, 128, 64, 1), _spec("float32", False)
    ),
    "GRPO, LoRA, float32": Case(
        _policy(GRPOPolicyModule, 64), Workload(4, 128, 64, 8), _spec("float32", True)
    ),
    "GRPO, full, float32, microbatches of 1,024": Case(
        _policy(GRPOPolicyModule, 64, updates=Updates(microbatch_tokens=1024)),
        Workload(4, 128, 64, 8),
        _spec("float32", False),
    ),
}
