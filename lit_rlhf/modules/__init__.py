"""LightningModules: orchestration only; the mathematics is in `functional`, the formulas' knobs in `objectives`."""

from lit_rlhf.modules.acting import ActingModule
from lit_rlhf.modules.base import RLHFModule
from lit_rlhf.modules.dapo import DAPOPolicyModule
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
from lit_rlhf.modules.online import OnlineDPOPolicyModule, SPPOPolicyModule
from lit_rlhf.modules.opponents import NashMDPolicyModule, XPOPolicyModule
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.modules.ppo import PPOPolicyModule
from lit_rlhf.modules.preference import PreferenceModule
from lit_rlhf.modules.ptx import PPOPtxPolicyModule
from lit_rlhf.modules.rebel import REBELPolicyModule
from lit_rlhf.modules.remax import ReMaxPolicyModule
from lit_rlhf.modules.reward import RewardModelModule
from lit_rlhf.modules.supervised import SupervisedModule

__all__ = [
    "ActingModule",
    "CISPOPolicyModule",
    "DAPOPolicyModule",
    "DrGRPOPolicyModule",
    "GRPOPolicyModule",
    "GSPOPolicyModule",
    "GroupPolicyModule",
    "NashMDPolicyModule",
    "OnlineDPOPolicyModule",
    "PPOPolicyModule",
    "PPOPtxPolicyModule",
    "PolicyModule",
    "PreferenceModule",
    "REBELPolicyModule",
    "REINFORCEPolicyModule",
    "RLHFModule",
    "RLOOPolicyModule",
    "ReMaxPolicyModule",
    "ReinforcePPPolicyModule",
    "RewardModelModule",
    "SPPOPolicyModule",
    "SupervisedModule",
    "XPOPolicyModule",
]
