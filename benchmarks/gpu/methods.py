"""The five methods on tiny and on large models, and a reward that costs next to nothing."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule

from lit_rlhf.models import ModelSpec
from lit_rlhf.modules import (
    GRPOPolicyModule,
    PPOPolicyModule,
    PreferenceModule,
    RewardModelModule,
    SupervisedModule,
)
from lit_rlhf.rewards import Reward
from lit_rlhf.rollout import Sampling
from lit_rlhf.types import Completions, Scores

ADAM = partial(torch.optim.AdamW, lr=1e-3)
OFFLINE: dict[str, tuple[type[Any], str]] = {
    "SFT": (SupervisedModule, "sft"),
    "reward model": (RewardModelModule, "pairs"),
    "DPO": (PreferenceModule, "pairs"),
}
ONLINE: dict[str, type[Any]] = {"PPO": PPOPolicyModule, "GRPO": GRPOPolicyModule}
KINDS = {name: kind for name, (_, kind) in OFFLINE.items()} | dict.fromkeys(ONLINE, "prompts")
"""The data that each method reads."""


class EvenShare(Reward):
    """The share of even token ids: known on the device, so that nothing waits for it."""

    def score(self, completions: Completions) -> Scores:
        """See `Reward.score`."""
        mask = completions.response_mask
        even = (completions.tokens % 2 == 0) & mask
        return Scores(even.sum(-1).float() / mask.sum(-1).clamp_min(1))


def make(
    name: str,
    spec: ModelSpec,
    *,
    tokens: int,
    samples: int = 4,
    optimizer: Callable[..., Any] | None = None,
    **options: Any,
) -> LightningModule:
    """A method's module; the defaults of the method where nothing is said."""
    if name in OFFLINE:
        return OFFLINE[name][0](spec, optimizer=optimizer, **options)
    fixed: dict[str, Any] = {"reward": EvenShare(), "sampling": Sampling(max_new_tokens=tokens)}
    if name == "GRPO":
        fixed["num_samples"] = samples
    return ONLINE[name](spec, optimizer=optimizer, **(fixed | options))
