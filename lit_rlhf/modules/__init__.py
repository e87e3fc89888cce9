"""LightningModules: orchestration only; the mathematics is in `functional`, the formulas' knobs in `objectives`."""

from lit_rlhf.internals.lightning import FSDP2Strategy as FSDP2Strategy
from lit_rlhf.modules.base import RLHFModule as RLHFModule
from lit_rlhf.modules.best_of_n import BestOfNPolicyModule as BestOfNPolicyModule
from lit_rlhf.modules.dapo import DAPOPolicyModule as DAPOPolicyModule
from lit_rlhf.modules.distillation import DistillationPolicyModule as DistillationPolicyModule
from lit_rlhf.modules.group import (
    CISPOPolicyModule as CISPOPolicyModule,
    DrGRPOPolicyModule as DrGRPOPolicyModule,
    GroupPolicyModule as GroupPolicyModule,
    GRPOPolicyModule as GRPOPolicyModule,
    GSPOPolicyModule as GSPOPolicyModule,
    REINFORCEPolicyModule as REINFORCEPolicyModule,
    ReinforcePPPolicyModule as ReinforcePPPolicyModule,
    RLOOPolicyModule as RLOOPolicyModule,
)
from lit_rlhf.modules.nash_md import NashMDPolicyModule as NashMDPolicyModule
from lit_rlhf.modules.offline import OfflineModule as OfflineModule
from lit_rlhf.modules.online import (
    OnlineDPOPolicyModule as OnlineDPOPolicyModule,
    SPPOPolicyModule as SPPOPolicyModule,
    XPOPolicyModule as XPOPolicyModule,
)
from lit_rlhf.modules.opponents import (
    MixtureOpponent as MixtureOpponent,
    Opponent as Opponent,
    ReferenceOpponent as ReferenceOpponent,
)
from lit_rlhf.modules.policy import PolicyModule as PolicyModule
from lit_rlhf.modules.ppo import (
    GAE as GAE,
    PPOPolicyModule as PPOPolicyModule,
    ValueLoss as ValueLoss,
)
from lit_rlhf.modules.preference import PreferenceModule as PreferenceModule
from lit_rlhf.modules.ptx import PPOPtxPolicyModule as PPOPtxPolicyModule
from lit_rlhf.modules.rebel import REBELPolicyModule as REBELPolicyModule
from lit_rlhf.modules.reference import (
    Teacher as Teacher,
    TeacherAdapter as TeacherAdapter,
    TeacherModel as TeacherModel,
)
from lit_rlhf.modules.remax import ReMaxPolicyModule as ReMaxPolicyModule
from lit_rlhf.modules.reward import RewardModelModule as RewardModelModule
from lit_rlhf.modules.steps import Steps as Steps, Updates as Updates, WarmupCosine as WarmupCosine
from lit_rlhf.modules.supervised import SupervisedModule as SupervisedModule
from lit_rlhf.modules.teacher_server import TeacherServer as TeacherServer
