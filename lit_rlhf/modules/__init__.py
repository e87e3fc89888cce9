"""LightningModules: orchestration only; the mathematics is in `functional`, the formulas' knobs in `objectives`."""

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
from lit_rlhf.modules.nash_md import NashMDPolicyModule
from lit_rlhf.modules.online import OnlineDPOPolicyModule, SPPOPolicyModule, XPOPolicyModule
from lit_rlhf.modules.opponents import MixtureOpponent, Opponent, ReferenceOpponent
from lit_rlhf.modules.policy import PolicyModule
from lit_rlhf.modules.ppo import GAE, PPOPolicyModule, ValueLoss
from lit_rlhf.modules.preference import PreferenceModule
from lit_rlhf.modules.ptx import PPOPtxPolicyModule
from lit_rlhf.modules.rebel import REBELPolicyModule
from lit_rlhf.modules.remax import ReMaxPolicyModule
from lit_rlhf.modules.reward import RewardModelModule
from lit_rlhf.modules.schedules import WarmupCosine
from lit_rlhf.modules.steps import Steps, Updates
from lit_rlhf.modules.supervised import SupervisedModule

__all__ = [
    "GAE",
    "CISPOPolicyModule",
    "DAPOPolicyModule",
    "DrGRPOPolicyModule",
    "GRPOPolicyModule",
    "GSPOPolicyModule",
    "GroupPolicyModule",
    "MixtureOpponent",
    "NashMDPolicyModule",
    "OnlineDPOPolicyModule",
    "Opponent",
    "PPOPolicyModule",
    "PPOPtxPolicyModule",
    "PolicyModule",
    "PreferenceModule",
    "REBELPolicyModule",
    "REINFORCEPolicyModule",
    "RLHFModule",
    "RLOOPolicyModule",
    "ReMaxPolicyModule",
    "ReferenceOpponent",
    "ReinforcePPPolicyModule",
    "RewardModelModule",
    "SPPOPolicyModule",
    "Steps",
    "SupervisedModule",
    "Updates",
    "ValueLoss",
    "WarmupCosine",
    "XPOPolicyModule",
]
