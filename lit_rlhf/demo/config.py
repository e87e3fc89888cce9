"""Sizes and rates of the demo: every number that its result depends on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_rlhf.demo.world_data import WorldData


@dataclass(frozen=True)
class SupervisedStage:
    """Imitation of what people write, which gives the initial policy.

    Attributes:
        demonstrations: Reviews to imitate, each seen once.
        batch_size: Reviews per optimizer step.
        lr: Peak learning rate.
    """

    demonstrations: int = 9600
    batch_size: int = 32
    lr: float = 3e-3


@dataclass(frozen=True)
class RewardStage:
    """The reward model, started from the initial policy.

    Attributes:
        pairs: Pairs that raters chose between, each seen once.
        raters: How many chose for each pair; their share is its soft label. Odd.
        heldout_pairs: Choices of single raters on prompts that nothing is trained on.
        batch_size: Pairs per optimizer step.
        lr: Peak learning rate.
    """

    pairs: int = 48000
    raters: int = 25
    heldout_pairs: int = 8000
    batch_size: int = 32
    lr: float = 2e-3


@dataclass(frozen=True)
class PolicyStage:
    """PPO against the reward model.

    Attributes:
        iterations: Rounds of rollout and update.
        prompts: Prompts per iteration.
        num_samples: Completions per prompt.
        num_epochs: Passes over each rollout.
        num_minibatches: Optimizer steps per pass.
        max_new_tokens: Longest completion.
        kl_coef: Reward given up per nat of KL to the initial policy; the reward is normalised to deviation 1.
        lr: Peak learning rate of the policy.
        value_lr: Peak learning rate of the critic.
        heldout_prompts: Completions by which the policy is judged before and after, on prompts that nothing is trained
            on.
    """

    iterations: int = 50
    prompts: int = 64
    num_samples: int = 2
    num_epochs: int = 2
    num_minibatches: int = 2
    max_new_tokens: int = 24
    kl_coef: float = 0.05
    lr: float = 5e-4
    value_lr: float = 1e-3
    heldout_prompts: int = 512


def _llama() -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }


@dataclass(frozen=True)
class DemoConfig:
    """Everything the demo does.

    Attributes:
        world: Utilities, writers and raters. Its seed is replaced by that of the run.
        model: Shape of the decoder, trained from random weights.
        supervised: First stage.
        reward: Second stage.
        policy: Third stage.
    """

    world: WorldData = field(default_factory=WorldData)
    model: Mapping[str, Any] = field(default_factory=_llama)
    supervised: SupervisedStage = field(default_factory=SupervisedStage)
    reward: RewardStage = field(default_factory=RewardStage)
    policy: PolicyStage = field(default_factory=PolicyStage)
