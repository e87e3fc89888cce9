"""The demo: preference data, reward model and PPO end to end on a small world whose best policy is known."""

from lit_rlhf.demo.config import DemoConfig, PolicyStage, RewardStage, SupervisedStage
from lit_rlhf.demo.run import run_demo

__all__ = ["DemoConfig", "PolicyStage", "RewardStage", "SupervisedStage", "run_demo"]
