"""LightningModules: orchestration only; the mathematics is in `functional`, the formulas' knobs in `objectives`."""

from lit_rlhf.modules.acting import ActingModule
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.modules.group import (
    CISPOPolicyModule,
    DrGRPOPolicyModule,
    GroupPolicyModule,
    GRPOPolicyModule,
    GSPOPolicyModule,
    REINFORCEPolicyModule,
    ReinforcePPPolicyModule,
    RLOOPolicyModule,
)
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.modules.ppo import PPOPolicyModule
from lit_rlhf.modules.preference import PreferenceModule
from lit_rlhf.modules.reward import RewardModelModule
from lit_rlhf.modules.supervised import SupervisedModule

__all__ = [
    "ActingModule",
    "CISPOPolicyModule",
    "DrGRPOPolicyModule",
    "GRPOPolicyModule",
    "GSPOPolicyModule",
    "GroupPolicyModule",
    "PPOPolicyModule",
    "PolicyModule",
    "PreferenceModule",
    "REINFORCEPolicyModule",
    "RLHFModule",
    "RLOOPolicyModule",
    "ReinforcePPPolicyModule",
    "RewardModelModule",
    "SupervisedModule",
]
