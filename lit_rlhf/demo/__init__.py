"""The demo: preference data, reward model and PPO end to end on a small world whose best policy is known."""

from lit_rlhf.demo.config import (
    DemoConfig as DemoConfig,
    PolicyStage as PolicyStage,
    RewardStage as RewardStage,
    SupervisedStage as SupervisedStage,
)
from lit_rlhf.demo.run import run_demo as run_demo
