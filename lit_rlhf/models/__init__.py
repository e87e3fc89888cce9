"""One decoder, many roles: loading, adapters, heads, the branched forward, critics and exports."""

import logging

# Said at import by bitsandbytes on every CPU without an optional package that fetches kernels from a hub at run time.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# ruff: noqa: E402
from lit_rlhf.models.backbone import Backbone, evaluating
from lit_rlhf.models.checkpoints import load_checkpoint_backbone, read_checkpoint
from lit_rlhf.models.critics import Critic, RewardSource, ValueAdapter, ValueHead, ValueModel
from lit_rlhf.models.export import export_policy, export_reward
from lit_rlhf.models.fingerprint import weights_fingerprint
from lit_rlhf.models.heads import ScalarHead
from lit_rlhf.models.reward_models import load_reward_model
from lit_rlhf.models.sharding import gathered, shard
from lit_rlhf.models.specs import LoraSpec, ModelSpec

__all__ = [
    "Backbone",
    "Critic",
    "LoraSpec",
    "ModelSpec",
    "RewardSource",
    "ScalarHead",
    "ValueAdapter",
    "ValueHead",
    "ValueModel",
    "evaluating",
    "export_policy",
    "export_reward",
    "gathered",
    "load_checkpoint_backbone",
    "load_reward_model",
    "read_checkpoint",
    "shard",
    "weights_fingerprint",
]
