"""One decoder, many roles: loading, adapters, heads, the branched forward, critics and exports."""

import logging

# Said at import by bitsandbytes on every CPU without an optional package that fetches kernels from a hub at run time.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# ruff: noqa: E402
from lit_rlhf.models.backbone import Backbone as Backbone, evaluating as evaluating
from lit_rlhf.models.checkpoints import (
    load_checkpoint_backbone as load_checkpoint_backbone,
    load_policy as load_policy,
    load_reward_model as load_reward_model,
    read_checkpoint as read_checkpoint,
)
from lit_rlhf.models.critics import (
    Critic as Critic,
    RewardSource as RewardSource,
    ValueAdapter as ValueAdapter,
    ValueHead as ValueHead,
    ValueModel as ValueModel,
)
from lit_rlhf.models.export import (
    export_policy as export_policy,
    export_reward as export_reward,
    policy_weights as policy_weights,
)
from lit_rlhf.models.fingerprint import weights_fingerprint as weights_fingerprint
from lit_rlhf.models.lm_head import Comparison as Comparison, ScalarHead as ScalarHead
from lit_rlhf.models.loading import refuse_missing as refuse_missing
from lit_rlhf.models.sharding import (
    agreed as agreed,
    divide as divide,
    gathered as gathered,
    in_step as in_step,
    is_sharded as is_sharded,
    shard as shard,
)
from lit_rlhf.models.specs import LoraSpec as LoraSpec, ModelSpec as ModelSpec
